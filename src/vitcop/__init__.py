"""Faster vision-language models: drop the visual tokens that an answer does not need, without training."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .methods import METHODS

if TYPE_CHECKING:
    from .costs.plan import Plan, Planner
    from .engine import ImagePrefix, Pruning, Skipping, prune, pruning_of, skip_repeated_patches
    from .errors import BudgetError, UnsupportedModelError, VitcopError
    from .inputs.downsample import downsample
    from .methods.averagepool import AveragePool
    from .methods.cdpruner import CDPruner
    from .methods.census import Census
    from .methods.dart import DART
    from .methods.deft import DeFT
    from .methods.divprune import DivPrune
    from .methods.earlyvitcop import EarlyViTCoP
    from .methods.fastv import FastV
    from .methods.hawk import HAWK
    from .methods.hiprune import HiPrune
    from .methods.knorm import KNorm
    from .methods.mmtok import MMTok
    from .methods.pyramiddrop import PyramidDrop
    from .methods.random import Random
    from .methods.scope import SCOPE
    from .methods.score import SCoRe
    from .methods.sparsevlm import SparseVLM
    from .methods.uniformgrid import UniformGrid
    from .methods.visionzip import VisionZip
    from .methods.vispruner import VisPruner
    from .methods.vitcop import MergeClusters, MostSignificant, SalientClusters, ViTCoP
    from .methods.vscan import TwoScans, VScan
    from .models import FAMILIES, Grids, ModelFamily, Observation
    from .report import Report, StageReport
    from .selection.bases import EntrancePruner, LayerPruner, ScorePruner
    from .selection.pipeline import Pipeline, Stage
    from .selection.pruner import Description, Pruner, Selector
    from .selection.stage_shape import StageShape
    from .selection.tokens import EncoderSignal, Selection, VisualTokens

__version__ = "0.1.0"

__all__ = [
    "DART",
    "FAMILIES",
    "HAWK",
    "METHODS",
    "SCOPE",
    "AveragePool",
    "BudgetError",
    "CDPruner",
    "Census",
    "DeFT",
    "Description",
    "DivPrune",
    "EarlyViTCoP",
    "EncoderSignal",
    "EntrancePruner",
    "FastV",
    "Grids",
    "HiPrune",
    "ImagePrefix",
    "KNorm",
    "LayerPruner",
    "MMTok",
    "MergeClusters",
    "ModelFamily",
    "MostSignificant",
    "Observation",
    "Pipeline",
    "Plan",
    "Planner",
    "Pruner",
    "Pruning",
    "PyramidDrop",
    "Random",
    "Report",
    "SCoRe",
    "SalientClusters",
    "ScorePruner",
    "Selection",
    "Selector",
    "Skipping",
    "SparseVLM",
    "Stage",
    "StageReport",
    "StageShape",
    "TwoScans",
    "UniformGrid",
    "UnsupportedModelError",
    "VScan",
    "ViTCoP",
    "VisPruner",
    "VisionZip",
    "VisualTokens",
    "VitcopError",
    "downsample",
    "prune",
    "pruning_of",
    "skip_repeated_patches",
]

# torch and transformers take seconds to import: the command line must be able to refuse bad input before that.
_HOMES = {
    "engine": ("ImagePrefix", "Pruning", "Skipping", "prune", "pruning_of", "skip_repeated_patches"),
    "inputs.downsample": ("downsample",),
    "errors": ("BudgetError", "UnsupportedModelError", "VitcopError"),
    "methods": (
        "AveragePool",
        "CDPruner",
        "Census",
        "DART",
        "DeFT",
        "DivPrune",
        "EarlyViTCoP",
        "FastV",
        "HAWK",
        "HiPrune",
        "KNorm",
        "MMTok",
        "MergeClusters",
        "PyramidDrop",
        "Random",
        "SCOPE",
        "SCoRe",
        "SalientClusters",
        "MostSignificant",
        "SparseVLM",
        "TwoScans",
        "UniformGrid",
        "VScan",
        "ViTCoP",
        "VisPruner",
        "VisionZip",
    ),
    "models": ("FAMILIES", "Grids", "ModelFamily", "Observation"),
    "selection.bases": ("EntrancePruner", "LayerPruner", "ScorePruner"),
    "selection.pipeline": ("Pipeline", "Stage"),
    "selection.pruner": ("Description", "Pruner", "Selector"),
    "costs.plan": ("Plan", "Planner"),
    "report": ("Report", "StageReport"),
    "selection.stage_shape": ("StageShape",),
    "selection.tokens": ("EncoderSignal", "Selection", "VisualTokens"),
}


if not TYPE_CHECKING:  # or type checkers would let any name pass

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f".{home}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
