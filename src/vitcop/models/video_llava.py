"""Video-LLaVA: one encoder for pictures and one for videos, whose frames keep their [CLS] token."""

from __future__ import annotations

from typing import Any

from .base import Call, Description
from .encoders import CLIP, Patches, Watched
from .geometry import Geometry, Size
from .grids import Grids
from .tower import OTHER_FEATURES, TowerFamily


class VideoLlava(TowerFamily):
    """One grid per picture or frame. The [CLS] token of a frame stays."""

    model_types = ("video_llava",)
    modalities = ("image", "video")
    encoders = {"clip_vision_model": CLIP}
    described = Description(
        saliency="attention of [CLS]",
        grids="picture, frame",
        refuses=OTHER_FEATURES,
    )

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        if modality == "image":
            return (Grids.full(self.square),) * len(self.pixels(modality, call))
        videos, frames = self.videos(call)
        return (self._video(frames),) * videos

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        pixels = self.pixels(modality, call)
        return self.patches(watched, pixels.shape[:-3].numel())

    def geometry(self, size: Size) -> Geometry:
        if size.frames is None:
            return Geometry.of([self.square], cls=True)
        video, shapes = self._video(size.frames), [self.square] * size.frames
        return Geometry.of(shapes, image=video, cls=True, projected=video.placeholders)

    def _video(self, frames: int) -> Grids:
        """Frames with [CLS] before each."""
        return Grids.join([Grids.separator(), Grids.full(self.square)] * frames)

    def tower(self, modality: str) -> Any:
        return getattr(self.base, f"{modality}_tower")
