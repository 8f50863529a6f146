"""A uniform grid: every part of the picture keeps a token."""

from __future__ import annotations

from dataclasses import dataclass

from ..ops.pooling import central, grid_cells
from ..ops.segments import indices_of
from ..selection.bases import EntrancePruner
from ..selection.pruner import Description
from ..selection.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class UniformGrid(EntrancePruner):
    """Keeps the middle token of every cell of a grid, at the entrance of the decoder.

    It looks at nothing, and still is a rival that published methods lose to on some tasks. A grid (picture, tile or
    frame) is divided into as many cells as it may keep tokens, of about equal size.

    Cost: none.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
    """

    described = Description(where="entrance", signal="place")

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        quotas = tokens.quotas(budget)
        cell = grid_cells(tokens.cells, tokens.segments, tokens.shapes, quotas)
        return Selection(indices_of(central(tokens.grid, cell, sum(quotas)), sum(budget)))
