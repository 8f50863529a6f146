"""Average pooling: every part of the picture becomes one token."""

from __future__ import annotations

from dataclasses import dataclass

from ..ops.pooling import central, grid_cells
from ..ops.segments import indices_of
from ..selection.bases import EntrancePruner
from ..selection.pruner import Calibrate, Description
from ..selection.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class AveragePool(EntrancePruner):
    """Averages the tokens of every cell of a grid, at the entrance of the decoder.

    The cells are those of `UniformGrid`; the mean of each stands at its middle token. Where the cells divide the
    grid evenly, this is average pooling as models do it themselves.

    Cost: none.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        calibrate: "size" lets a token count in later layers' attention as often as tokens were merged into it.
    """

    described = Description(where="entrance", signal="place", merges=True)
    calibrate: Calibrate = "none"

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        quotas = tokens.quotas(budget)
        cell = grid_cells(tokens.cells, tokens.segments, tokens.shapes, quotas)
        middle = central(tokens.grid, cell, sum(quotas))
        return Selection(indices_of(middle, sum(budget)), tokens.groups(cell, middle, budget))
