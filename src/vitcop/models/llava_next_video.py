"""LLaVA-NeXT-Video: the pictures of LLaVA-NeXT, and videos whose frames are pooled."""

from __future__ import annotations

from .base import Call, Description, Observation
from .encoders import Watched
from .geometry import Geometry, Size
from .llava_next import LlavaNext
from .tower import OTHER_FEATURES


class LlavaNextVideo(LlavaNext):
    """One grid per frame of a video."""

    model_types = ("llava_next_video",)
    modalities = ("image", "video")
    described = Description(
        saliency="attention of [CLS], in videos the mean over the pooled patches",
        grids="thumbnail, tile, frame",
        refuses=OTHER_FEATURES,
    )

    def observe(self, modality: str, call: Call, watched: Watched) -> Observation:
        if modality == "image":
            return super().observe(modality, call, watched)
        videos, frames = self.videos(call)
        shapes = [(self.side, self.side)] * frames
        stride = self.model.config.spatial_pool_stride
        return Observation.of(self.patches(watched), [shapes] * videos, stride)

    def geometry(self, size: Size) -> Geometry:
        if size.frames is None:
            return super().geometry(size)
        # Frames are pooled before they are projected.
        stride = self.model.config.spatial_pool_stride
        return Geometry.of([self.square] * size.frames, side=stride, cls=self.encoder.has_cls)
