"""Faster vision-language models: drop the visual tokens that an answer does not need, without training."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cost import StageShape
    from .engine import Pruning, prune
    from .errors import BudgetError, UnsupportedModelError, VitcopError
    from .methods import METHODS, KNorm, Random, ViTCoP
    from .models import FAMILIES, Grids, ModelFamily, Observation
    from .plan import Plan, Planner
    from .pruner import Pruner, ScorePruner
    from .report import Report, StageReport
    from .tokens import Selection, VisualTokens

__version__ = "0.1.0"

__all__ = [
    "FAMILIES",
    "METHODS",
    "BudgetError",
    "Grids",
    "KNorm",
    "ModelFamily",
    "Observation",
    "Plan",
    "Planner",
    "Pruner",
    "Pruning",
    "Random",
    "Report",
    "ScorePruner",
    "Selection",
    "StageReport",
    "StageShape",
    "UnsupportedModelError",
    "ViTCoP",
    "VisualTokens",
    "VitcopError",
    "prune",
]

# torch and transformers take seconds to import: the command line must be able to refuse bad input before that.
_HOMES = {
    "engine": ("Pruning", "prune"),
    "cost": ("StageShape",),
    "errors": ("BudgetError", "UnsupportedModelError", "VitcopError"),
    "methods": ("METHODS", "KNorm", "Random", "ViTCoP"),
    "models": ("FAMILIES", "Grids", "ModelFamily", "Observation"),
    "plan": ("Plan", "Planner"),
    "pruner": ("Pruner", "ScorePruner"),
    "report": ("Report", "StageReport"),
    "tokens": ("Selection", "VisualTokens"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
