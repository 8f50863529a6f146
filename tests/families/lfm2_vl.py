"""LFM2-VL: patches of 4 x 4 pixels, unshuffled by two, of a picture or of four tiles and a thumbnail, padded to 36.

The layers attend before which methods look ahead, but for the first; the others are short convolutions.
"""

import torch
from torch.nn.functional import pad
from transformers import Lfm2Config, Lfm2VlConfig, Lfm2VlForConditionalGeneration, Siglip2VisionConfig

from .base import DECODER, ENCODER, IMAGE, TinyFamily, of_kind

PATCH, MERGE = 4, 2
SIDE = PATCH * MERGE
SETTINGS = {"tile_size": 3 * SIDE, "min_tiles": 2, "max_tiles": 4, "min_image_tokens": 4, "max_image_tokens": 9}
KINDS = {"c": "conv", "a": "full_attention"}
TILE_MARKERS, THUMBNAIL_MARKER = (50, 51, 52, 53), 57


def patches(picture):
    """(3, height, width) -> one row per patch, padded, as the processor does it."""
    rows, columns = (pixels // PATCH for pixels in picture.shape[1:])
    values = picture.reshape(3, rows, PATCH, columns, PATCH).permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)
    return pad(values, (0, 0, 0, SETTINGS["max_image_tokens"] * MERGE**2 - len(values)))


class Lfm2Vl(TinyFamily):
    name = "lfm2_vl"
    sizes = 2
    kinds_of_layers = "caacacaa"
    refuses = frozenset({"hawk"})

    def build(self, attention):
        text = DECODER | {"layer_types": [KINDS[kind] for kind in self.kinds_of_layers], "block_multiple_of": 16}
        config = Lfm2VlConfig(
            vision_config=Siglip2VisionConfig(**ENCODER, patch_size=PATCH, num_patches=16, vision_use_head=False),
            text_config=Lfm2Config(**text),
            image_token_id=IMAGE,
            projector_hidden_size=48,
        )
        return Lfm2VlForConditionalGeneration._from_config(config, attn_implementation=attention)

    def shape(self, kind, size, alone):
        return ((1, 2 * SIDE, 4 * SIDE), (5, 3 * SIDE, 3 * SIDE))[size]

    def tokens(self, visual):
        pictures, _, height, width = visual.pixels.shape
        grid = [IMAGE] * (height // SIDE * (width // SIDE))
        if pictures == 1:
            return [59, *grid, 58]
        return [59, *(token for marker in (*TILE_MARKERS, THUMBNAIL_MARKER) for token in (marker, *grid)), 58]

    def inputs(self, rows):
        pictures = [picture for visual in of_kind(rows, "image") for picture in visual.pixels]
        shapes = torch.tensor([picture.shape[1:] for picture in pictures]) // PATCH
        values = torch.stack([patches(picture) for picture in pictures])
        real = torch.arange(values.shape[1]) < shapes.prod(1, keepdim=True)
        return {"pixel_values": values, "spatial_shapes": shapes, "pixel_attention_mask": real.int()}


LFM2_VL = Lfm2Vl()
