"""PaliGemma 1 and 2: 4 x 4 patches a picture; in the second, every other layer has a window shorter than a picture.

What the prefix ends in is a marker, so that a longer prompt has no longer prefix; what follows is answered or asked.
"""

import torch
from transformers import (
    Gemma2Config,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)

from .base import DECODER, ENCODER, IMAGE, NUM_LAYERS, PAD, TinyFamily, of_kind

END = 58


class PaliGemma(TinyFamily):
    name = "paligemma"
    refuses = frozenset({"earlyvitcop"})

    def build(self, attention):
        vision = SiglipVisionConfig(**ENCODER, image_size=24, patch_size=6, vision_use_head=False)
        config = PaliGemmaConfig(
            vision_config=vision,
            text_config=self.text(),
            image_token_index=IMAGE,
            projection_dim=DECODER["hidden_size"],
            hidden_size=DECODER["hidden_size"],
            vocab_size=DECODER["vocab_size"],
        )
        return PaliGemmaForConditionalGeneration._from_config(config, attn_implementation=self.attention(attention))

    def attention(self, name):
        return name

    def text(self):
        return GemmaConfig(**DECODER)

    def shape(self, kind, size, alone):
        return 1, 24, 24

    def tokens(self, visual):
        return [*[IMAGE] * 16, 59, 30, END]

    def inputs(self, rows):
        return {"pixel_values": torch.cat([visual.pixels for visual in of_kind(rows, "image")])}

    def token_kinds(self, input_ids):
        ends = (input_ids == END) | (input_ids == IMAGE)
        prefix = ends.flip(1).cumsum(1).flip(1) > 0
        return {"token_type_ids": (~prefix & (input_ids != PAD)).long()}


class PaliGemma2(PaliGemma):
    """Logits of attention have a soft cap, which sdpa has not, and so no rows that can be worked out."""

    name = "paligemma with gemma2"
    refuses = PaliGemma.refuses | {
        "dart",
        "deft",
        "fastv",
        "hawk",
        "pyramiddrop",
        "sparsevlm",
        "vitcop_calibrated",
        "vitcop_last_query",
        "vitcop_question",
        "vscan",
    }

    cap: float | None = 50.0

    def attention(self, name):
        return {"text_config": "eager", "vision_config": name}

    def text(self):
        return Gemma2Config(
            **DECODER,
            query_pre_attn_scalar=8,
            sliding_window=12,
            attn_logit_softcapping=self.cap,
            layer_types=["sliding_attention", "full_attention"] * (NUM_LAYERS // 2),
        )


PALIGEMMA, PALIGEMMA2 = PaliGemma(), PaliGemma2()
