"""Command A Vision: as Aya Vision, with a line break behind each tile and another choice of tiles."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .aya_vision import WINDOWS_AND_FLASH, AyaVision
from .base import Description
from .geometry import Geometry, Size, least_enlarging
from .tower import joined_within

MOST_TILES = 12
"""Of a picture, its thumbnail left out, by default in `Cohere2VisionImageProcessor`."""


class Cohere2Vision(AyaVision):
    """One square grid per tile."""

    model_types = ("cohere2_vision",)
    described = Description(
        saliency="attention received, mean over the patches of a token",
        grids="tile; those with one token at most between them are one picture",
        refuses=("another encoder", WINDOWS_AND_FLASH),
    )

    def geometry(self, size: Size) -> Geometry:
        side = self.model.config.vision_config.image_size
        rows, columns = least_enlarging(
            MOST_TILES, lambda rows, columns: min(columns * side / size.width, rows * side / size.height)
        )
        return self._cut_into(rows * columns + (rows * columns > 1))

    def joined(self, tokens: Tensor, starts: Sequence[tuple[int, int]], lengths: Sequence[int]) -> list[bool]:
        return joined_within(1, starts, lengths)
