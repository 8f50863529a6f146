"""Video-LLaVA: one encoder for pictures and one for videos, whose frames keep their [CLS] token."""

from __future__ import annotations

from typing import Any

from .base import Call, Description, Observation
from .encoders import CLIP, Watched
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

    def observe(self, modality: str, call: Call, watched: Watched) -> Observation:
        side = self.side
        patches = self.patches(watched)
        grids = len(watched.hidden_states)
        if modality == "image":
            return Observation.of(patches, [[(side, side)]] * grids)
        videos, frames = self.videos(call)
        video = Grids.join([Grids.separator(), Grids.full((side, side))] * frames)
        return Observation((video,) * videos, patches)

    def tower(self, modality: str) -> Any:
        return getattr(self.base, f"{modality}_tower")
