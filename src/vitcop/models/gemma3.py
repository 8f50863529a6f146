"""Gemma 3: average-pooled pictures, whose tokens see each other both ways, and layers with a sliding window."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from .base import Call, Description, Observation
from .encoders import SIGLIP, Watched
from .geometry import Geometry, Size
from .tower import TowerFamily


class Gemma3(TowerFamily):
    """One square grid per picture."""

    model_types = ("gemma3",)
    encoders = {"siglip_vision_model": SIGLIP}
    described = Description(
        saliency="attention received, mean over the patches of a token",
        refuses=("another encoder", "flash attention"),
    )
    has_windows = True

    def observe(self, modality: str, call: Call, watched: Watched) -> Observation:
        projector = self.base.multi_modal_projector
        shape = (projector.patches_per_image, projector.patches_per_image)
        pictures = len(watched.hidden_states)
        return Observation.of(self.patches(watched), [[shape]] * pictures, projector.kernel_size)

    def geometry(self, size: Size) -> Geometry:
        projector = self.base.multi_modal_projector
        # Two line breaks and a marker on either side.
        return Geometry.of([self.square], side=projector.kernel_size, markers=4)

    def attention_blocks(self, call: Call) -> Int[Tensor, "batch seq"] | None:
        kinds = call.get("token_type_ids")
        if kinds is None:
            return None
        image = kinds == 1
        starts = image & ~torch.nn.functional.pad(image, (1, 0))[:, :-1]
        return torch.where(image, starts.cumsum(1) - 1, -1)
