"""LLaVA-OneVision: tiles as in LLaVA-NeXT, shrunk where there are many, and videos whose frames are shrunk."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import UnsupportedModelError
from .base import Call, Description
from .encoders import SIGLIP, Patches, Watched
from .geometry import Geometry, Size
from .grids import Grids
from .llava_next import LlavaNext
from .tower import OTHER_FEATURES


class LlavaOnevision(LlavaNext):
    """One grid per tile or frame. Of several pictures in a prompt each is a thumbnail only."""

    model_types = ("llava_onevision",)
    modalities = ("image", "video")
    encoders = {"siglip_vision_model": SIGLIP}
    described = Description(
        saliency="attention received, interpolated where the features are",
        grids="thumbnail, tile, frame",
        refuses=OTHER_FEATURES,
    )

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        if modality == "image":
            return super().grids(modality, call)
        videos, frames = self.videos(call)
        return (self._video(frames),) * videos

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        if modality == "image":
            return super().shown(modality, call, watched)
        videos, frames = self.videos(call)
        return self.patches(watched, videos * frames).through(
            lambda channels: self.base.apply_pooling(channels.unflatten(0, (videos * frames, -1))).flatten(0, 1)
        )

    def geometry(self, size: Size) -> Geometry:
        if size.frames is None:
            return super().geometry(size)
        return Geometry.of([self.square] * size.frames, image=self._video(size.frames), cls=self.encoder.has_cls)

    def _video(self, frames: int) -> Grids:
        """Frames of half as many rows and columns of tokens as of patches, and a newline."""
        side = -(-self.side // 2)
        return Grids.join([Grids.full(*[(side, side)] * frames), Grids.separator()])

    def _tiles(self, call: Call) -> list[int]:
        pictures, sizes = call.get("batch_num_images"), call["image_sizes"]
        alone = [True] * len(sizes)
        if pictures is not None:
            alone = [count == 1 for count in pictures for _ in range(int(count))]
        if len(alone) != len(sizes):
            raise UnsupportedModelError(
                f"batch_num_images counts {len(alone)} pictures, of which image_sizes has {len(sizes)}; pass all of "
                "what one call of the processor makes, with nothing cut off."
            )
        return [tiles if own else 1 for tiles, own in zip(super()._tiles(call), alone, strict=True)]

    def _pack(self, tiles: Sequence[Tensor], call: Call, newline: Tensor) -> list[Tensor]:
        aspect = call.get("vision_aspect_ratio") or self.model.config.vision_aspect_ratio
        return self.base.pack_image_features(list(tiles), call["image_sizes"], newline, aspect)[0]
