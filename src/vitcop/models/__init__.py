"""The supported model families, one file each: a new file is found by itself."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from ..errors import UnsupportedModelError, unknown_name
from .base import Description, ModelFamily, Observation, VisionModules
from .encoders import Encoder, Patches, Watched
from .geometry import Geometry, Size
from .grids import Grids, merged_grids
from .tower import TowerFamily

TABLE = "docs/models.md"
TEXT_ONLY = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)
"""Types of models that transformers knows to continue text, and to take nothing else."""


def _families() -> dict[str, type[ModelFamily]]:
    """The families defined in the modules beside this one, by the model types that they know."""
    families: dict[str, type[ModelFamily]] = {}
    for module in iter_modules(__path__, f"{__name__}."):
        for value in vars(import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, ModelFamily) and value.__module__ == module.name:
                families |= dict.fromkeys(value.model_types, value)
    return families


FAMILIES: dict[str, type[ModelFamily]] = _families()
"""`model_type` of a config -> the family that prunes it. One of your own is put in here."""


def family_of(model: PreTrainedModel) -> ModelFamily:
    """The family that `model` belongs to.

    Raises:
        UnsupportedModelError: no family knows this type of model, or the family cannot prune this one.
    """
    return known_family(model.config.model_type)(model)


def known_family(model_type: str) -> type[ModelFamily]:
    """The family of a `config.model_type`.

    Raises:
        UnsupportedModelError: there is none; the message names the nearest and the table of families.
    """
    if model_type not in FAMILIES:
        if model_type in TEXT_ONLY:
            raise UnsupportedModelError(
                f"Models of type {model_type!r} take no pictures, and so have no visual tokens to drop; name a "
                f"vision-language model. See {TABLE}."
            )
        raise UnsupportedModelError(f"{unknown_name('model type', model_type, FAMILIES)} See {TABLE}.")
    return FAMILIES[model_type]


__all__ = [
    "FAMILIES",
    "TABLE",
    "Description",
    "Encoder",
    "Geometry",
    "Grids",
    "ModelFamily",
    "Observation",
    "Patches",
    "Size",
    "TowerFamily",
    "VisionModules",
    "Watched",
    "family_of",
    "known_family",
    "merged_grids",
]
