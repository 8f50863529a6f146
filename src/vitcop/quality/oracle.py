"""What nobody can know: pruning by the true masks of the objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..selection.bases import EntrancePruner, ScorePruner
from ..selection.tokens import VisualTokens
from .suite import Case

_PIXELS = 8  # of a patch, where masks are read


@dataclass(frozen=True, eq=False)
class Oracle(ScorePruner, EntrancePruner):
    """Keeps the patches of objects, the middle of each first, and then others at random, entering the decoder.

    It knows where things are, marks included, and neither what they are nor what is asked.

    Attributes:
        scores: of the patches of each picture of the batch, row by row.
    """

    scores: Sequence[Float[Tensor, " patches"]] = ()

    __eq__, __hash__ = object.__eq__, object.__hash__  # its base would compare retentions alone

    def score(self, tokens: VisualTokens) -> Float[Tensor, " visual"]:
        return torch.stack(list(self.scores)).to(tokens.rows.device)[tokens.images, tokens.index]


def oracle_for(cases: Sequence[Case], side: int, retention: float) -> Oracle:
    """The oracle of a batch, for a model that sees each picture as one grid of `side` x `side` tokens."""
    return Oracle(retention, tuple(_scores(case, side) for case in cases))


def _scores(case: Case, side: int) -> Float[Tensor, " patches"]:
    owner = case.owner(side, _PIXELS).ravel()
    rows, columns = np.divmod(np.arange(side * side), side)
    scores = -np.random.default_rng(case.scene).permutation(side * side).astype(np.float32) - side * side
    for thing in range(1, owner.max() + 1):
        (patches,) = np.nonzero(owner == thing)
        away = np.hypot(rows[patches] - rows[patches].mean(), columns[patches] - columns[patches].mean())
        scores[patches[away.argsort(kind="stable")]] = -np.arange(len(patches))
    return torch.from_numpy(scores)
