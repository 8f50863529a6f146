"""Aya Vision and Command A Vision: tiles of 6 x 6 patches, shuffled to 3 x 3 tokens; one to three tiles a picture.

Some layers see all and have no positions: one before a stage of the shared tests, one behind, and the last. The windows
of the others are shorter than a third of the longest picture, which is what a probe is made of.
"""

import torch
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    CohereConfig,
    SiglipVisionConfig,
)

from .base import DECODER, ENCODER, IMAGE, NUM_LAYERS, TinyFamily, of_kind

TILES = (1, 3)
TILE_MARKERS, THUMBNAIL_MARKER, BREAK = (55, 56), 57, 54
KINDS = ["full_attention" if layer in (1, 5, 7) else "sliding_attention" for layer in range(NUM_LAYERS)]
TEXT = {name: value for name, value in DECODER.items() if name != "head_dim"} | {"logit_scale": 1.0}


class AyaVision(TinyFamily):
    name = "aya_vision"
    sizes = 2

    def build(self, attention):
        config = AyaVisionConfig(vision_config=self.vision(), text_config=self.text(), image_token_index=IMAGE)
        return AyaVisionForConditionalGeneration._from_config(config, attn_implementation=attention)

    def vision(self):
        return SiglipVisionConfig(**ENCODER, image_size=48, patch_size=8, vision_use_head=False)

    def text(self):
        return Cohere2Config(**TEXT, sliding_window=8, layer_types=KINDS)

    def shape(self, kind, size, alone):
        return TILES[size], 48, 48

    def tokens(self, visual):
        markers = (*TILE_MARKERS, THUMBNAIL_MARKER)[-TILES[visual.size] :]
        return [59, *(token for marker in markers for token in (marker, *[IMAGE] * 9)), 58]

    def inputs(self, rows):
        return {"pixel_values": torch.cat([visual.pixels for visual in of_kind(rows, "image")])}


class AyaVisionCohere(AyaVision):
    """With Cohere's first decoder, as the one of 32 billion parameters."""

    name = "aya_vision with cohere"

    def text(self):
        return CohereConfig(**TEXT)


class Cohere2Vision(AyaVision):
    name = "cohere2_vision"

    def build(self, attention):
        config = Cohere2VisionConfig(
            vision_config=self.vision(),
            text_config=self.text(),
            image_token_id=IMAGE,
            alignment_intermediate_size=64,
        )
        return Cohere2VisionForConditionalGeneration._from_config(config, attn_implementation=attention)

    def tokens(self, visual):
        return [59, *[*[IMAGE] * 9, BREAK] * TILES[visual.size], 58]


AYA_VISION, AYA_VISION_COHERE, COHERE2_VISION = AyaVision(), AyaVisionCohere(), Cohere2Vision()
