"""Gemma 3: 8 x 8 patches pooled to 4 x 4 tokens, every other layer with a window shorter than a picture."""

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

from .base import DECODER, ENCODER, IMAGE, NUM_LAYERS, SPREAD, TinyFamily, of_kind


class Gemma3(TinyFamily):
    name = "gemma3"

    def build(self, attention):
        text = Gemma3TextConfig(
            **DECODER,
            query_pre_attn_scalar=8,
            sliding_window=12,
            layer_types=["sliding_attention", "full_attention"] * (NUM_LAYERS // 2),
        )
        vision = SiglipVisionConfig(**ENCODER, image_size=56, patch_size=7, vision_use_head=False)
        config = Gemma3Config(vision_config=vision, text_config=text, image_token_id=IMAGE, mm_tokens_per_image=16)
        model = Gemma3ForConditionalGeneration._from_config(config, attn_implementation=attention)
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=SPREAD)
        return model

    def shape(self, kind, size, alone):
        return 1, 56, 56

    def tokens(self, visual):
        return [59, *[IMAGE] * 16, 58]

    def inputs(self, rows):
        return {"pixel_values": torch.cat([visual.pixels for visual in of_kind(rows, "image")])}

    def token_kinds(self, input_ids):
        return {"token_type_ids": (input_ids == IMAGE).long()}


GEMMA3 = Gemma3()
