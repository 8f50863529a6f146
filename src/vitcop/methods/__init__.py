"""The pruning methods, one file each. A new one is added to the tuple below, and nowhere else."""

from __future__ import annotations

from ..selection.pruner import Pruner, Selector
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
from .vitcop import MergeClusters, SalientClusters, SmallestKeyNorms, ViTCoP
from .vscan import TwoScans, VScan

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

STAGES: dict[str, type[Selector]] = {
    stage.name: stage for stage in (SalientClusters, MergeClusters, SmallestKeyNorms, TwoScans)
}
"""Stages of methods that have several, for a `Pipeline`."""

__all__ = ["METHODS", "STAGES", *(selector.__name__ for selector in (METHODS | STAGES).values())]
