"""LLaVA-NeXT-Video: the pictures of LLaVA-NeXT, and videos whose frames are pooled."""

from __future__ import annotations

from .base import Call, Description
from .encoders import Patches, Watched
from .geometry import Geometry, Size
from .grids import Grids, Shape, merged_grids
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

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        if modality == "image":
            return super().grids(modality, call)
        return merged_grids(self._videos(call), self._stride)

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        if modality == "image":
            return super().shown(modality, call, watched)
        videos = self._videos(call)
        return self.patches(watched, sum(map(len, videos))).merged(videos, self._stride)

    def geometry(self, size: Size) -> Geometry:
        if size.frames is None:
            return super().geometry(size)
        # Frames are pooled before they are projected.
        return Geometry.of([self.square] * size.frames, side=self._stride, cls=self.encoder.has_cls)

    def _videos(self, call: Call) -> list[list[Shape]]:
        videos, frames = self.videos(call)
        return [[self.square] * frames] * videos

    @property
    def _stride(self) -> int:
        """Rows and columns of patches that become one visual token of a frame."""
        return self.model.config.spatial_pool_stride
