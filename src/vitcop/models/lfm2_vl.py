"""LFM2-VL: pictures and tiles of any shape, padded, before a decoder of short convolutions and some attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from ..errors import UnsupportedModelError
from .base import Call, Description, VisionModules
from .encoders import KEYS, SIGLIP, Patches, Watched
from .geometry import Geometry, Size
from .grids import Grids, Shape, merged_grids, patch_numbers
from .tower import TowerFamily, joined_within

PROCESSOR = {"tile_size": 512, "min_tiles": 2, "max_tiles": 10, "min_image_tokens": 64, "max_image_tokens": 256}
"""Settings by default of `Lfm2VlImageProcessor`, which needs torchvision to be imported."""


class Lfm2Vl(TowerFamily):
    """One grid per picture, or per tile and thumbnail of one that is cut."""

    model_types = ("lfm2_vl",)
    encoders = {"siglip2_vision_model": SIGLIP}
    described = Description(
        saliency="attention received, mean over the patches of a token",
        grids="tile; those with one token at most between them are one picture",
        first_layer="behind the first full-attention layer",
        refuses=("another encoder", "looking ahead at a layer that does not attend", "biases in short convolutions"),
    )
    tiles_are_images = True
    has_states = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        if self.decoder.config.conv_bias:
            raise UnsupportedModelError(
                "conv_bias=True lets padding through the short convolutions of this decoder, so that a row of a batch "
                "would not answer as alone; use a checkpoint without these biases, as LFM2-VL is published."
            )

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        return merged_grids([[shape] for shape in self._tiles(call)], self._merged)

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        tiles, padded = self._tiles(call), watched.made_by(KEYS).shape[1]
        return self.patches(watched, len(tiles)).mean(patch_numbers(tiles, self._merged, padded))

    @property
    def default_size(self) -> Size:
        return Size(PROCESSOR["tile_size"], PROCESSOR["tile_size"])

    def geometry(self, size: Size) -> Geometry:
        side, patch = self._merged, self.model.config.vision_config.patch_size
        tile, most = PROCESSOR["tile_size"] // patch, PROCESSOR["max_image_tokens"]
        rows, columns = _tokens(size, side * patch)
        shapes, markers = [(side * rows, side * columns)], 2
        if _is_large(size, side * patch, patch):
            across, down = get_optimal_tiled_canvas(
                (size.height, size.width), (tile * patch, tile * patch), PROCESSOR["min_tiles"], PROCESSOR["max_tiles"]
            )
            shapes = [(tile, tile)] * (across * down) + shapes
            markers += len(shapes)
        padded = max(side**2 * most, tile**2)
        seen = Geometry.of(shapes, side=side, projected=len(shapes) * (padded // side**2), markers=markers)
        return replace(seen, stretches=(padded,) * len(shapes), patches=padded * len(shapes))

    def vision(self, modality: str) -> VisionModules:
        modules = super().vision(modality)
        return replace(modules, embedding=[modules.tower.get_submodule("embeddings.patch_embedding")])

    def joined(self, tokens: Tensor, starts: Sequence[tuple[int, int]], lengths: Sequence[int]) -> list[bool]:
        # A marker stands before each tile and before the thumbnail, and two of them between pictures.
        return joined_within(1, starts, lengths)

    @staticmethod
    def _tiles(call: Call) -> list[Shape]:
        """Rows and columns of patches of each picture, tile and thumbnail, padding left out."""
        return [(rows, columns) for rows, columns in call["spatial_shapes"].tolist()]

    @property
    def _merged(self) -> int:
        """Rows and columns of patches that become one visual token."""
        factor: int = self.model.config.downsample_factor
        return factor


def _tokens(size: Size, side: int) -> Shape:
    """Rows and columns of tokens that a whole picture is resized to, of `side` x `side` pixels each."""
    rows, columns = (max(1, round(pixels / side)) for pixels in (size.height, size.width))
    least, most = (PROCESSOR[name] * side**2 for name in ("min_image_tokens", "max_image_tokens"))
    if rows * columns * side**2 > most:
        scale = math.sqrt(size.height * size.width / most)
        rows, columns = (max(1, math.floor(pixels / scale / side)) for pixels in (size.height, size.width))
    elif rows * columns * side**2 < least:
        scale = math.sqrt(least / (size.height * size.width))
        rows, columns = (math.ceil(pixels * scale / side) for pixels in (size.height, size.width))
    return rows, columns


def _is_large(size: Size, side: int, patch: int) -> bool:
    """Whether the processor cuts a picture: above twice the most tokens that it may have in one piece."""
    height, width = (max(patch, round(pixels / side) * side) for pixels in (size.height, size.width))
    return height * width > 2 * PROCESSOR["max_image_tokens"] * side**2
