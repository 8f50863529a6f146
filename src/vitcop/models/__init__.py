"""The supported model families, one file each. A new one is added to the tuple below, and nowhere else."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..errors import UnsupportedModelError, unknown_name
from .base import ModelFamily, Observation
from .llava import Llava

FAMILIES: dict[str, type[ModelFamily]] = {
    model_type: family for family in (Llava,) for model_type in family.model_types
}


def family_of(model: PreTrainedModel) -> ModelFamily:
    """The family that `model` belongs to.

    Raises:
        UnsupportedModelError: no family knows this type of model, or the family cannot prune this one.
    """
    model_type = model.config.model_type
    if model_type not in FAMILIES:
        raise UnsupportedModelError(unknown_name("model type", model_type, FAMILIES))
    return FAMILIES[model_type](model)


__all__ = ["FAMILIES", "ModelFamily", "Observation", "family_of"]
