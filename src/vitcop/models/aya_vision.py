"""Aya Vision: tiles with a marker before each, pixel shuffle, and layers with a sliding window or without positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from .base import Call, Description
from .encoders import SIGLIP, Patches, Watched
from .geometry import Geometry, Size
from .grids import Grids, Shape, merged_grids
from .tower import OTHER_FEATURES, TowerFamily

WINDOWS_AND_FLASH = "flash attention where there are sliding windows"


class AyaVision(TowerFamily):
    """One square grid per tile. Of Cohere's second decoder, only layers with a sliding window turn queries and keys."""

    model_types: ClassVar[tuple[str, ...]] = ("aya_vision",)
    encoders = {"siglip_vision_model": SIGLIP}
    described = Description(
        saliency="attention received, mean over the patches of a token",
        grids="tile; those up to a thumbnail are one picture",
        refuses=(*OTHER_FEATURES, WINDOWS_AND_FLASH),
    )
    tiles_are_images = True

    def __init__(self, model: PreTrainedModel) -> None:
        # Aya Vision 32B has Cohere's first decoder, without windows.
        self.has_windows = "sliding_attention" in getattr(model.get_decoder().config, "layer_types", ())
        super().__init__(model)

    def turns(self, layer: int) -> bool:
        return self.decoder.config.model_type != "cohere2" or self.layer_kinds[layer] == "sliding_attention"

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        return merged_grids(self._tiles(call), self._merged)

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        tiles = self._tiles(call)
        return self.patches(watched, len(tiles)).merged(tiles, self._merged)

    def geometry(self, size: Size) -> Geometry:
        tile = self.model.config.vision_config.image_size
        processor = GotOcr2ImageProcessorPil(size={"height": tile, "width": tile}, crop_to_patches=True)
        return self._cut_into(processor.get_number_of_image_patches(size.height, size.width))

    def joined(self, tokens: Tensor, starts: Sequence[tuple[int, int]], lengths: Sequence[int]) -> list[bool]:
        # The last tile of a picture is its thumbnail, whose marker ends in a token of its own; so ends each row.
        rows, columns = (list(place) for place in zip(*starts, strict=True))
        last = dict(zip(rows, columns, strict=True))
        marks = tokens[rows, [column - 1 for column in columns]]
        alike = marks == tokens[rows, [last[row] - 1 for row in rows]]
        thumbnails = (alike if alike.ndim == 1 else alike.all(-1)).tolist()
        ends = [(row, column + length) for row, column, length in zip(rows, columns, lengths, strict=True)]
        before = zip(starts[1:], ends, thumbnails, strict=False)
        return [False, *(start == end or not thumbnail for start, end, thumbnail in before)]

    def _cut_into(self, tiles: int) -> Geometry:
        """A picture of so many tiles, with a marker for each, and one on either side."""
        return Geometry.of([self.square] * tiles, side=self._merged, markers=2 + tiles)

    def _tiles(self, call: Call) -> list[list[Shape]]:
        return [[self.square]] * len(call["pixel_values"])

    @property
    def _merged(self) -> int:
        """Rows and columns of patches that become one visual token."""
        factor: int = self.model.config.downsample_factor
        return factor
