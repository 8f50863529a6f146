"""The pruning methods, one file each. A new one is added to the tuple below, and nowhere else."""

from __future__ import annotations

from ..pruner import Pruner
from .knorm import KNorm
from .random import Random
from .vitcop import ViTCoP

METHODS: dict[str, type[Pruner]] = {method.name: method for method in (ViTCoP, KNorm, Random)}

__all__ = ["METHODS", "KNorm", "Random", "ViTCoP"]
