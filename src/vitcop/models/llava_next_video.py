"""LLaVA-NeXT-Video: the pictures of LLaVA-NeXT, and videos whose frames are pooled."""

from __future__ import annotations

from .base import Call, Observation
from .llava_next import LlavaNext


class LlavaNextVideo(LlavaNext):
    """One grid per frame of a video."""

    model_types = ("llava_next_video",)
    modalities = ("image", "video")
    grids = "thumbnail, tile, frame"
    saliency = "attention of [CLS], in videos the mean over the pooled patches"

    def observe(self, modality: str, call: Call, attention: Call) -> Observation:
        if modality == "image":
            return super().observe(modality, call, attention)
        videos, frames = self._videos(call)
        shapes = [(self._side, self._side)] * frames
        stride = self.model.config.spatial_pool_stride
        return Observation.of(self._patches(modality, attention), [shapes] * videos, stride)
