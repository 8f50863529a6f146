"""InternVL 3: tiles of equal size, whose patches are merged by pixel shuffle."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from .base import Call, Description, Observation
from .encoders import Encoder, Watched
from .geometry import Geometry, Size
from .grids import Shape
from .tower import OTHER_FEATURES, TowerFamily


class InternVL(TowerFamily):
    """One grid per tile; tiles whose placeholders follow each other are one picture."""

    model_types = ("internvl",)
    encoders = {"internvl_vision": Encoder("encoder.layer", "attention", has_cls=True)}
    described = Description(
        saliency="attention of [CLS], mean over the patches of a token",
        grids="tile; those that follow each other are one picture, so that frames of a video are pictures",
        refuses=OTHER_FEATURES,
    )
    tiles_are_images = True

    def observe(self, modality: str, call: Call, watched: Watched) -> Observation:
        tiles, tokens, _ = watched.hidden_states.shape
        side = int((tokens - 1) ** 0.5)
        return Observation.of(self.patches(watched), [[(side, side)]] * tiles, self._merged)

    @property
    def default_size(self) -> Size:
        return Size(*self.model.config.vision_config.image_size)

    def geometry(self, size: Size) -> Geometry:
        vision = self.model.config.vision_config
        height, width = vision.image_size
        processor = GotOcr2ImageProcessorPil(size={"height": height, "width": width}, crop_to_patches=True)
        tiles = processor.get_number_of_image_patches(size.height, size.width)
        shape: Shape = height // vision.patch_size[0], width // vision.patch_size[1]
        return Geometry.of([shape] * tiles, side=self._merged, cls=True, markers=2)

    @property
    def _merged(self) -> int:
        """Rows and columns of patches that become one visual token."""
        return int(1 / self.model.config.downsample_ratio)

    def joined(self, tokens: Tensor, starts: Sequence[tuple[int, int]], lengths: Sequence[int]) -> list[bool]:
        ends = [None, *((row, column + length) for (row, column), length in zip(starts, lengths, strict=True))]
        return [start == end for start, end in zip(starts, ends, strict=False)]
