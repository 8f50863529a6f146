"""Gemma 3: average-pooled pictures, whose tokens see each other both ways, and layers with a sliding window.

It is what ShieldGemma 2 classifies pictures by.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .base import Call, Description
from .encoders import SIGLIP, Patches, Watched
from .geometry import Geometry, Size
from .grids import Grids, Shape, merged_grids
from .tower import TowerFamily


class Gemma3(TowerFamily):
    """One square grid per picture."""

    model_types = ("gemma3", "shieldgemma2")
    encoders = {"siglip_vision_model": SIGLIP}
    described = Description(
        saliency="attention received, mean over the patches of a token",
        refuses=("another encoder", "flash attention", "the classifier of ShieldGemma 2, whose `.model` can be pruned"),
    )
    has_windows = True
    has_blocks = True

    def __init__(self, model: PreTrainedModel) -> None:
        if model.config.model_type == "shieldgemma2" and not model.can_generate():
            raise UnsupportedModelError(
                "ShieldGemma 2 reads its classes off the last logits of a Gemma 3 that it holds: prune that, "
                "vitcop.prune(model.model, ...), and call the whole as ever."
            )
        super().__init__(model)

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        return merged_grids(self._pictures(call), self._merged)

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        pictures = self._pictures(call)
        return self.patches(watched, len(pictures)).merged(pictures, self._merged)

    def geometry(self, size: Size) -> Geometry:
        # Two line breaks and a marker on either side.
        return Geometry.of([self.square], side=self._merged, markers=4)

    def _pictures(self, call: Call) -> list[list[Shape]]:
        return [[self.square]] * len(call["pixel_values"])

    @property
    def _merged(self) -> int:
        """Rows and columns of patches that become one visual token."""
        return self.base.multi_modal_projector.kernel_size

    def attention_blocks(self, call: Call) -> dict[str, Int[Tensor, "batch seq"]]:
        kinds = call.get("token_type_ids")
        return {} if kinds is None else dict.fromkeys(self.layer_kinds, runs(kinds == 1))


def runs(chosen: Bool[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Number of the run of chosen tokens that each is in, -1 for none."""
    starts = chosen & ~torch.nn.functional.pad(chosen, (1, 0))[:, :-1]
    return torch.where(chosen, starts.cumsum(1) - 1, -1)
