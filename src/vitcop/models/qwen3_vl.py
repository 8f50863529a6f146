"""Qwen3-VL: DeepStack features in the first decoder layers, and normalised keys."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from ..layout import gather_slots
from ..ops.segments import indices_of
from .base import Call, Description
from .qwen2_vl import Qwen2VL


class Qwen3VL(Qwen2VL):
    """As Qwen2-VL without windows. Each layer of DeepStack needs all tokens that entered the decoder."""

    model_types = ("qwen3_vl", "qwen3_vl_moe")
    described = Description(
        saliency="attention received in the last layer, mean over the patches of a token",
        grids="picture, two frames",
        first_layer="behind DeepStack: as many as its layers",
        refuses=("stages between the layers of DeepStack",),
    )

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.first_stage_layer = max(1, len(model.config.vision_config.deepstack_visual_indexes))

    def gather_features(self, kwargs: Call, slots: Int[Tensor, "batch kept"], alive: Tensor, count: int) -> Call:
        before = kwargs["visual_pos_masks"]
        mask = gather_slots(before, slots, -1) & alive
        number = gather_slots(before.flatten().cumsum(0).view_as(before) - 1, slots, -1)
        kept = number.flatten()[indices_of(mask.flatten(), count)]
        features = [feature[kept.to(feature.device)] for feature in kwargs["deepstack_visual_embeds"]]
        return {"visual_pos_masks": mask, "deepstack_visual_embeds": features}
