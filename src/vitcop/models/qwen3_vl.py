"""Qwen3-VL: DeepStack features in the first decoder layers, and normalised keys."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from ..ops.gather import gather_slots
from ..ops.segments import indices_of
from .base import Call, Description
from .geometry import Size
from .qwen2_vl import Qwen2VL

VIDEO_SIZE = {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}
"""Least and most pixels of all frames of a video by default in `Qwen3VLVideoProcessor`."""


class Qwen3VL(Qwen2VL):
    """As Qwen2-VL without windows. Each layer of DeepStack needs all tokens that entered the decoder."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe")
    described = Description(
        saliency="attention received in the last layer, mean over the patches of a token",
        grids="picture, two frames",
        first_layer="behind DeepStack: as many as its layers",
        refuses=("stages between the layers of DeepStack",),
    )

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        deepstack = getattr(model.config.vision_config, "deepstack_visual_indexes", ())
        self.first_stage_layer = max(self.first_stage_layer, len(deepstack))

    def gather_features(self, kwargs: Call, slots: Int[Tensor, "batch kept"], alive: Tensor, count: int) -> Call:
        before = kwargs.get("visual_pos_masks")
        if before is None:
            return {}
        mask = gather_slots(before, slots, -1) & alive
        number = gather_slots(before.flatten().cumsum(0).view_as(before) - 1, slots, -1)
        kept = number.flatten()[indices_of(mask.flatten(), count)]
        features = [feature[kept.to(feature.device)] for feature in kwargs["deepstack_visual_embeds"]]
        return {"visual_pos_masks": mask, "deepstack_visual_embeds": features}

    def _of_patches(self, sizes: Tensor) -> Call:
        vision = self.base.visual
        indices, weights = get_vision_interpolation_indices_and_weights(
            sizes,
            num_grid_per_side=vision.num_grid_per_side,
            mode=vision.interpolation_mode,
            align_corners=vision.interpolation_align_corners,
            spatial_merge_size=self._merged,
        )
        return super()._of_patches(sizes) | {"interp_indices": indices, "interp_weights": weights}

    def _resized(self, size: Size, factor: int) -> tuple[int, int]:
        if size.frames is None:
            return super()._resized(size, factor)
        temporal = self.model.config.vision_config.temporal_patch_size
        limits = VIDEO_SIZE["shortest_edge"], VIDEO_SIZE["longest_edge"]
        return smart_resize(size.frames, size.height, size.width, temporal, factor, *limits)

    def _markers(self, modality: str, grids: int) -> int:
        # The frames of a video are each between two markers; their time stamps are left to the text.
        return 2 * grids if modality == "video" else 2
