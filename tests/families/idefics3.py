"""Idefics3 and SmolVLM: tiles of 6 x 6 patches with a marker before each, shuffled to 3 x 3 or 2 x 2 tokens."""

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from .base import DECODER, ENCODER, IMAGE, TinyFamily, padded

# A picture is its thumbnail alone, or a row of two tiles and the thumbnail.
TILES = (1, 3)
AROUND, TILE_MARKERS, THUMBNAIL_MARKER = 59, (55, 56), 57


class Idefics3(TinyFamily):
    name = "idefics3"
    sizes = 2
    scale = 2
    config, architecture = Idefics3Config, Idefics3ForConditionalGeneration

    def build(self, attention):
        vision = ENCODER | {"image_size": 48, "patch_size": 8}
        config = self.config(
            vision_config=vision,
            text_config=LlamaConfig(**DECODER),
            image_token_id=IMAGE,
            scale_factor=self.scale,
            pad_token_id=0,
        )
        return self.architecture._from_config(config, attn_implementation=attention)

    def shape(self, kind, size, alone):
        return TILES[size], 48, 48

    def tokens(self, visual):
        markers = (*TILE_MARKERS, THUMBNAIL_MARKER)[-TILES[visual.size] :]
        tile = [IMAGE] * (6 // self.scale) ** 2
        return [token for marker in markers for token in (AROUND, marker, *tile)] + [AROUND]

    def inputs(self, rows):
        tiles = [torch.cat([torch.zeros(0, 3, 48, 48), *(visual.pixels for visual in row)]) for row in rows]
        return {"pixel_values": padded(tiles)}


class SmolVLM(Idefics3):
    """The lowest of the six rows of patches of a thumbnail that stands alone is padding."""

    name = "smolvlm"
    scale = 3
    config, architecture = SmolVLMConfig, SmolVLMForConditionalGeneration

    def inputs(self, rows):
        masks = []
        for row in rows:
            real = [torch.ones(len(visual.pixels), 48, 48, dtype=torch.bool) for visual in row]
            for mask in real:
                mask[:, 40:] = len(mask) > 1
            masks.append(torch.cat([torch.zeros(0, 48, 48, dtype=torch.bool), *real]))
        return super().inputs(rows) | {"pixel_attention_mask": padded(masks).bool()}


IDEFICS3, SMOLVLM = Idefics3(), SmolVLM()
