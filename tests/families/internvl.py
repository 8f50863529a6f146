"""InternVL: tiles of 6 x 6 patches, shuffled to 3 x 3 tokens; one to three tiles a picture."""

import torch
from transformers import (
    GptOssConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    Qwen2Config,
    Qwen3Config,
)

from .base import DECODER, ENCODER, IMAGE, TinyFamily, of_kind

TILES = (1, 3)


class InternVL(TinyFamily):
    name = "internvl"
    has_cls = True
    sizes = 2

    def build(self, attention):
        vision = InternVLVisionConfig(**ENCODER, image_size=84, patch_size=14, layer_scale_init_value=1.0)
        config = InternVLConfig(vision_config=vision, text_config=self.text(), image_token_id=IMAGE)
        return InternVLForConditionalGeneration._from_config(config, attn_implementation=attention)

    def text(self):
        return Qwen2Config(**DECODER)

    def shape(self, kind, size, alone):
        return TILES[size], 84, 84

    def tokens(self, visual):
        return [59, *[IMAGE] * 9 * TILES[visual.size], 58]

    def inputs(self, rows):
        return {"pixel_values": torch.cat([visual.pixels for visual in of_kind(rows, "image")])}


class InternVL35(InternVL):
    """As InternVL 3.5; no further run of the shared tests, as its decoder is that of other families."""

    def text(self):
        return Qwen3Config(**DECODER)


class InternVL35Oss(InternVL):
    """As the InternVL 3.5 of 20 billion parameters: with sinks, and windows in every other layer."""

    def text(self):
        return GptOssConfig(**DECODER, num_local_experts=2, num_experts_per_tok=1)


INTERNVL = InternVL()
