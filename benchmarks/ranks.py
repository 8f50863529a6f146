"""How signals that rank tokens are compared with what they should foretell: what pages about key norms have in common.

Signals rank tokens along the last axis, the most important by the largest value; ties are in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

DRAWS = 10_000

HEAD_MEAN, MEAN_NORM, LAST_TOKEN = "norm of the head mean", "mean of the heads' norms", "last token"


def small_norms(keys: Tensor) -> dict[str, Tensor]:
    """Both ways to take the norms of keys, (..., heads, tokens, channels), over heads; the smallest is the largest."""
    return {HEAD_MEAN: -keys.mean(-3).norm(dim=-1), MEAN_NORM: -keys.norm(dim=-1).mean(-2)}


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of two signals."""
    ranks = torch.stack([a, b]).argsort(-1).argsort(-1).double()
    return torch.cosine_similarity(*(ranks - ranks.mean(-1, keepdim=True)), dim=-1)


def auc(signal: Tensor, wanted: Tensor) -> Tensor:
    """Of a token that is wanted and one that is not, how often the first is before the second; NaN without either."""
    ranks, count = signal.argsort(-1).argsort(-1), wanted.sum()
    before = ranks[..., wanted].sum(-1) - count * (count - 1) / 2
    return before.double() / (count * (~wanted).sum())


def held(signal: Tensor, received: Tensor, count: int) -> Tensor:
    """What of the attention received those many tokens hold that a signal puts first, as a share."""
    first = signal.topk(count).indices
    return received.gather(-1, first).sum(-1) / received.sum(-1)


def interval(values: Tensor) -> Tensor:
    """Mean over texts or pictures, the first axis, and the borders of its 95 % bootstrap interval, in front."""
    means = _weights(len(values)).to(values) @ values
    return torch.stack([values.mean(0), *means.quantile(torch.tensor([0.025, 0.975]).to(means), dim=0)])


@cache
def _weights(count: int) -> Tensor:
    """Of each draw, how much each of so many texts or pictures weighs."""
    drawn = np.random.default_rng(0).integers(count, size=(DRAWS, count))
    return torch.from_numpy(np.stack([np.bincount(row, minlength=count) for row in drawn]) / count)


def rows(*columns: Sequence[str]) -> str:
    """The rows of a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))


def cells(values: Tensor, form: str, borders: Callable[[Tensor], Tensor] = interval) -> list[str]:
    """Means over texts or pictures in a number format, each with its interval or other borders."""
    return [f"{mean:{form}} ({low:{form}} to {high:{form}})" for mean, low, high in borders(values).T.tolist()]


signed, percent = (partial(cells, form=form) for form in ("+.2f", ".0%"))
