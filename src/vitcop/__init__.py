"""Faster vision-language models: drop the visual tokens that an answer does not need, without training."""

from __future__ import annotations

from .engine import Pruning, prune
from .errors import BudgetError, UnsupportedModelError, VitcopError
from .methods import METHODS, KNorm, Random, ViTCoP
from .models import FAMILIES, ModelFamily, Observation
from .pruner import Pruner, ScorePruner
from .report import Report, StageReport
from .tokens import Selection, VisualTokens

__version__ = "0.1.0"

__all__ = [
    "FAMILIES",
    "METHODS",
    "BudgetError",
    "KNorm",
    "ModelFamily",
    "Observation",
    "Pruner",
    "Pruning",
    "Random",
    "Report",
    "ScorePruner",
    "Selection",
    "StageReport",
    "UnsupportedModelError",
    "ViTCoP",
    "VisualTokens",
    "VitcopError",
    "prune",
]
