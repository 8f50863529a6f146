"""Mistral 3: pictures of any size, whose patches are merged by two in each direction."""

from __future__ import annotations

from .base import Call, Observation
from .tower import TowerFamily


class Mistral3(TowerFamily):
    """One grid per picture; the tokens between its rows are text and stay."""

    model_types = ("mistral3",)
    encoders = ("pixtral",)
    refuses = ("another encoder", "several feature layers")
    saliency = "attention received, mean over the patches of a token"

    def observe(self, modality: str, call: Call, attention: Call) -> Observation:
        return self._observe_pixtral(modality, call, attention, self.model.config.spatial_merge_size)
