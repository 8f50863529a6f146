"""GLM-4.1V, GLM-4.5V and GLM-4.6V: Qwen2-VL's grids, merged by a convolution, and one placeholder for all."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil, smart_resize

from ..ops.segments import upload
from ..selection.tokens import VisualTokens
from .base import Call, Description, VisionModules
from .geometry import Size
from .qwen2_vl import Qwen2VL

VIDEO_SIZE = {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 2 * 30000}
"""Least and most pixels of all frames of a video by default in `Glm4vVideoProcessor` and `Glm46VVideoProcessor`."""


class Glm4v(Qwen2VL):
    """As Qwen2-VL without windows. The frames of a video stand apart, each with its time behind it."""

    model_types = ("glm4v", "glm4v_moe", "glm46v")
    described = Description(
        saliency="attention received in the last layer, mean over the patches of a token",
        grids="picture, two frames",
        refuses=("pictures and videos in one batch",),
    )

    def placeholders(self, call: Call) -> dict[str, Bool[Tensor, "batch seq"]]:
        found = super().placeholders(call)
        shown = self.sole_modality(call)
        if call.get("input_ids") is None:
            return found  # where the model takes that of videos for them after all
        none, placeholder = torch.zeros_like(found["image"]), found["image"]
        return {kind: placeholder if kind == shown else none for kind in self.modalities}

    def positions_alone(self, tokens: VisualTokens) -> Int[Tensor, "visual 3"]:
        """Frame, row and column of each token. On all axes, a frame begins behind the longer side of the one before."""
        positions = super().positions_alone(tokens)
        longest = upload([max(shape) for shape in tokens.shapes], positions.device)[tokens.segments]
        start = positions[:, :1] * longest[:, None]
        return torch.cat([start, positions[:, 1:] + start], 1)

    def vision(self, modality: str) -> VisionModules:
        modules = super().vision(modality)
        return replace(modules, projector=[modules.tower.get_submodule("downsample"), *modules.projector])

    def _resized(self, size: Size, factor: int) -> tuple[int, int]:
        limits = Glm4vImageProcessorPil.size if size.frames is None else VIDEO_SIZE
        temporal = self.model.config.vision_config.temporal_patch_size
        frames = temporal if size.frames is None else size.frames
        pixels = limits["shortest_edge"], limits["longest_edge"]
        return smart_resize(frames, size.height, size.width, temporal, factor, *pixels)

    def _markers(self, modality: str, grids: int) -> int:
        # A video is between two markers, as each of its frames is; their time stamps are left to the text.
        return 2 + 2 * grids if modality == "video" else 2
