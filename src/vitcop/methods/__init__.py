"""The pruning methods, one file each. A new one is added to the list below, and nowhere else.

Nothing is imported before it is asked for, so that the command line knows all names at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..selection.registry import Catalogue, announce

if TYPE_CHECKING:
    from ..selection.pruner import Pruner, Selector

METHODS: Catalogue[type[Pruner]] = announce(
    "vitcop.methods.vitcop:ViTCoP",
    "vitcop.methods.earlyvitcop:EarlyViTCoP",
    "vitcop.methods.census:Census",
    "vitcop.methods.fastv:FastV",
    "vitcop.methods.pyramiddrop:PyramidDrop",
    "vitcop.methods.sparsevlm:SparseVLM",
    "vitcop.methods.deft:DeFT",
    "vitcop.methods.hawk:HAWK",
    "vitcop.methods.visionzip:VisionZip",
    "vitcop.methods.divprune:DivPrune",
    "vitcop.methods.dart:DART",
    "vitcop.methods.cdpruner:CDPruner",
    "vitcop.methods.hiprune:HiPrune",
    "vitcop.methods.vispruner:VisPruner",
    "vitcop.methods.vscan:VScan",
    "vitcop.methods.mmtok:MMTok",
    "vitcop.methods.scope:SCOPE",
    "vitcop.methods.score:SCoRe",
    "vitcop.methods.knorm:KNorm",
    "vitcop.methods.random:Random",
    "vitcop.methods.uniformgrid:UniformGrid",
    "vitcop.methods.averagepool:AveragePool",
)
"""Name -> class of every method here."""

STAGES: Catalogue[type[Selector]] = announce(
    "vitcop.methods.vitcop:SalientClusters",
    "vitcop.methods.vitcop:MergeClusters",
    "vitcop.methods.vitcop:MostSignificant",
    "vitcop.methods.vscan:TwoScans",
    stages=True,
)
"""Stages of methods that have several, for a `Pipeline`."""

announce("vitcop.selection.pipeline:Pipeline")

_BY_CLASS = {
    place.rpartition(":")[2]: (kinds, name) for kinds in (METHODS, STAGES) for name, place in kinds.places.items()
}
__all__ = ["METHODS", "STAGES", *_BY_CLASS]


def __getattr__(name: str) -> Any:
    if name not in _BY_CLASS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    catalogue, own = _BY_CLASS[name]
    return catalogue[own]
