"""InternVL 3 and 3.5: tiles of equal size, whose patches are merged by pixel shuffle."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from .base import Call, Description
from .encoders import Encoder, Patches, Watched
from .geometry import Geometry, Size
from .grids import Grids, Shape, merged_grids
from .tower import OTHER_FEATURES, TowerFamily, joined_within


class InternVL(TowerFamily):
    """One grid per tile; tiles whose placeholders follow each other are one picture."""

    model_types = ("internvl",)
    encoders = {"internvl_vision": Encoder("encoder.layer", "attention", has_cls=True)}
    described = Description(
        saliency="attention of [CLS], mean over the patches of a token",
        grids="tile; those that follow each other are one picture, so that frames of a video are pictures",
        refuses=(*OTHER_FEATURES, "sliding windows in the decoder"),
    )
    tiles_are_images = True

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        return merged_grids(self._tiles(call), self._merged)

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        tiles = self._tiles(call)
        return self.patches(watched, len(tiles)).merged(tiles, self._merged)

    @property
    def default_size(self) -> Size:
        return Size(*self.model.config.vision_config.image_size)

    def geometry(self, size: Size) -> Geometry:
        height, width = self.model.config.vision_config.image_size
        processor = GotOcr2ImageProcessorPil(size={"height": height, "width": width}, crop_to_patches=True)
        tiles = processor.get_number_of_image_patches(size.height, size.width)
        return Geometry.of([self._shape(height, width)] * tiles, side=self._merged, cls=True, markers=2)

    def _tiles(self, call: Call) -> list[list[Shape]]:
        tiles, _, height, width = call["pixel_values"].shape
        return [[self._shape(height, width)]] * tiles

    def _shape(self, height: int, width: int) -> Shape:
        """Rows and columns of patches of a tile of so many pixels."""
        rows, columns = self.model.config.vision_config.patch_size
        return height // rows, width // columns

    @property
    def _merged(self) -> int:
        """Rows and columns of patches that become one visual token."""
        return int(1 / self.model.config.downsample_ratio)

    def joined(self, tokens: Tensor, starts: Sequence[tuple[int, int]], lengths: Sequence[int]) -> list[bool]:
        return joined_within(0, starts, lengths)
