"""The pruning methods, one file each. A new one is added to the tuple below, and nowhere else."""

from __future__ import annotations

from ..pruner import Pruner
from .averagepool import AveragePool
from .cdpruner import CDPruner
from .dart import DART
from .divprune import DivPrune
from .fastv import FastV
from .hiprune import HiPrune
from .knorm import KNorm
from .mmtok import MMTok
from .pyramiddrop import PyramidDrop
from .random import Random
from .sparsevlm import SparseVLM
from .uniformgrid import UniformGrid
from .visionzip import VisionZip
from .vispruner import VisPruner
from .vitcop import ViTCoP
from .vscan import VScan

METHODS: dict[str, type[Pruner]] = {
    method.name: method
    for method in (
        ViTCoP,
        FastV,
        PyramidDrop,
        SparseVLM,
        VisionZip,
        DivPrune,
        DART,
        CDPruner,
        HiPrune,
        VisPruner,
        VScan,
        MMTok,
        KNorm,
        Random,
        UniformGrid,
        AveragePool,
    )
}

__all__ = ["METHODS", *(method.__name__ for method in METHODS.values())]
