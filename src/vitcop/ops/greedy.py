"""Greedy choices among the rows of segments, all segments at once, one row of each at a step.

What a greedy choice keeps of a larger budget begins with what it keeps of a smaller one, so that segments of
different budgets go together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from .segments import by_size, indices_of, is_real, pad_segments, unpad_segments, upload

Pick = Callable[[Tensor, Tensor, int, list[int]], Tensor]

# A gain below this share of a whole token is rounding, which must not decide.
_NOTHING = 1e-6

AT_ONCE, CANDIDATES = 32, 256
"""`most_probable` takes so many steps at a time, among so many rows of largest gain."""

# Values that a pass over a matrix takes at a time: what stays in the cache takes half the time (benchmarks/NOTES.md).
_BLOCK_VALUES = 2**20


def keep_greedily(
    features: Float[Tensor, "rows dim"], lengths: Sequence[int], budget: Sequence[int], pick: Pick
) -> Int[Tensor, " kept"]:
    """Ascending row indices of what `pick` chooses first of every segment.

    Args:
        features: normalised to length 1 before they are given on.
        lengths: rows per segment.
        budget: rows to keep of each.
        pick: given padded features (segments, longest, dim), where they are real, a number of steps and the numbers of
            the segments, the columns chosen at each step (segments, steps).
    """
    kept = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    for rows, segments in by_size(lengths, features.device):
        sizes, counts = ([values[i] for i in segments] for values in (lengths, budget))
        padded, real = pad_segments(normalize(features[rows].float(), dim=-1), sizes), is_real(sizes, features.device)
        steps = max(1, *counts)  # none for grids whose share is nothing
        order = pick(padded, real, steps, segments)
        wanted = torch.arange(steps, device=features.device) < upload(counts, features.device)[:, None]
        longest = padded.shape[1]
        chosen = torch.zeros(len(sizes), longest + 1, dtype=torch.bool, device=features.device)
        chosen = chosen.scatter(1, torch.where(wanted, order, longest), True)[:, :longest]
        kept[rows] = unpad_segments(chosen, sizes)
    return indices_of(kept, sum(budget))


def farthest_first(
    features: Float[Tensor, "segments rows dim"], real: Bool[Tensor, "segments rows"], steps: int, segments: list[int]
) -> Int[Tensor, "segments steps"]:
    """The row whose nearest neighbour is farthest, then again and again the row farthest from all chosen ones.

    Distance is 1 - cosine.
    """
    distance = 1 - features @ features.mT
    apart = distance.masked_fill(~real[:, None], torch.inf)
    itself = torch.eye(features.shape[1], dtype=torch.bool, device=features.device)
    nearest = apart.masked_fill(itself, torch.inf).amin(-1)
    return farthest_from_chosen(distance, real, steps, nearest, torch.ones_like(nearest))


def farthest_from_chosen(
    distance: Float[Tensor, "segments rows rows"],
    real: Bool[Tensor, "segments rows"],
    steps: int,
    first: Float[Tensor, "segments rows"],
    weight: Float[Tensor, "segments rows"],
) -> Int[Tensor, "segments steps"]:
    """Where `first` is largest, then again and again where `weight` times distance to the nearest chosen row is."""
    order = [first.masked_fill(~real, -torch.inf).argmax(-1)]
    free, gap = real, torch.full_like(weight, torch.inf)
    for _ in range(steps - 1):
        free = free.scatter(1, order[-1][:, None], False)
        gap = torch.minimum(gap, _row(distance, order[-1]))
        order.append((gap * weight).masked_fill(~free, -torch.inf).argmax(-1))
    return torch.stack(order, 1)


def most_probable(
    kernel: Float[Tensor, "segments rows rows"], real: Bool[Tensor, "segments rows"], steps: int
) -> Int[Tensor, "segments steps"]:
    """Greedy maximum a posteriori choice of a determinantal point process.

    By the incremental Cholesky factor of Chen et al. (NeurIPS 2018): each step adds the row that raises the
    determinant of the chosen rows' kernel most. Steps are taken some at a time, among the few rows of largest gain;
    since gains only fall, they hold for as long as none of the others had more at the start. The others catch up by
    products of matrices, in place of one of a vector and the whole factor for each step.
    """
    gain, free = kernel.diagonal(dim1=1, dim2=2), real
    factor, order = kernel.new_zeros(len(kernel), 0, kernel.shape[1]), real.new_zeros(len(kernel), 0, dtype=torch.long)
    while order.shape[1] < steps:
        falling = gain.masked_fill(~free, -torch.inf).sort(descending=True, stable=True)
        some = falling.indices[:, :CANDIDATES].sort().values  # of equal ones the first is chosen
        inner = factor.gather(2, some[:, None].expand(-1, factor.shape[1], -1))
        among = _block(kernel, some, some) - inner.mT @ inner
        count = min(AT_ONCE, steps - order.shape[1], some.shape[1])
        chosen, own, gains = _few_most_probable(among, gain.gather(1, some), free.gather(1, some), count)
        if some.shape[1] < gain.shape[1]:
            most, others = falling.values[:, :1], falling.values[:, CANDIDATES, None]
            holds = ((gains > others) | (most == 0)).all(0)
            count = max(1, int(holds.long().cumprod(0).sum()))  # gains were exact at the start
        chosen, own, gains = chosen[:, :count], own[:, :count], gains[:, :count]
        last = some.gather(1, chosen)
        known = factor.gather(2, last[:, None].expand(-1, factor.shape[1], -1))
        rest = _block(kernel, last) - known.mT @ factor
        nothing = (gains < _NOTHING)[..., None]
        lower = own.gather(2, chosen[:, None].expand(-1, count, -1)).mT
        lower = torch.where(nothing, torch.eye(count, device=lower.device), lower)
        rows = torch.linalg.solve_triangular(lower, rest.masked_fill(nothing, 0), upper=False)
        factor, order = torch.cat([factor, rows], 1), torch.cat([order, last], 1)
        gain = gain - rows.square().sum(1)
        gain = gain.masked_fill(gain < _NOTHING, 0)
        free = free.scatter(1, last, False)
    return order


def _few_most_probable(
    kernel: Float[Tensor, "segments rows rows"],
    gain: Float[Tensor, "segments rows"],
    free: Bool[Tensor, "segments rows"],
    steps: int,
) -> tuple[Int[Tensor, "segments steps"], Float[Tensor, "segments steps rows"], Float[Tensor, "segments steps"]]:
    """`most_probable` one step after another, with the factor, and the gain of each step."""
    factor = kernel.new_zeros(len(kernel), 0, kernel.shape[1])
    order, pivots = [], []
    for _ in range(steps):
        order.append(gain.masked_fill(~free, -torch.inf).argmax(-1))
        last = order[-1][:, None]
        pivots.append(gain.gather(1, last))
        explained = (factor.gather(2, last[:, None].expand(-1, factor.shape[1], 1)).mT @ factor)[:, 0]
        row = (_row(kernel, order[-1]) - explained) / pivots[-1].clamp(min=_NOTHING).sqrt()
        row = row.masked_fill(pivots[-1] < _NOTHING, 0)
        factor = torch.cat([factor, row[:, None]], 1)
        gain = gain - row**2
        gain = gain.masked_fill(gain < _NOTHING, 0)
        free = free.scatter(1, last, False)
    return torch.stack(order, 1), factor, torch.cat(pivots, 1)


def best_cover(
    cover: Float[Tensor, "segments targets rows"],
    real: Bool[Tensor, "segments rows"],
    steps: int,
    weight: Float[Tensor, "segments rows"] | None = None,
) -> Int[Tensor, "segments steps"]:
    """Facility location: each step adds the row that raises most the sum over targets of their best cover so far.

    What is below zero covers nothing. A gain is reduced by what the last choice took from it, for which only the
    targets matter that it covers better than all before it: fewer and fewer, so that all steps together take little
    more than a few passes over `cover`.

    Args:
        weight: what the gain of each row is multiplied by; 1 if None.
    """
    _, targets, rows = cover.shape
    covered, free, order = torch.zeros_like(cover[..., 0]), real, []
    gain = cover.clamp(min=0).sum(1, dtype=torch.float64)  # float32 would add up the rounding of all steps
    by_target, at_once = cover.flatten(0, 1), max(1, _BLOCK_VALUES // rows)
    for _ in range(steps):
        worth = gain if weight is None else gain * weight
        order.append(worth.masked_fill(~free, -torch.inf).argmax(-1))
        free = free.scatter(1, order[-1][:, None], False)
        before, after = covered.flatten(), torch.maximum(covered, _row(cover.mT, order[-1])).flatten()
        for better in (after > before).nonzero()[:, 0].split(at_once):
            low, high = before[better, None], after[better, None]
            taken = by_target[better].clamp(low, high) - low
            gain = gain.index_add(0, better // targets, taken.double(), alpha=-1)
        covered = after.view_as(covered)
    return torch.stack(order, 1)


def _block(
    values: Float[Tensor, "segments rows others"],
    rows: Int[Tensor, "segments some"],
    columns: Int[Tensor, "segments few"] | None = None,
) -> Float[Tensor, "segments some few"]:
    """Some rows of each matrix, and of these some columns, or all."""
    each = torch.arange(len(rows), device=rows.device)[:, None]
    return values[each, rows] if columns is None else values[each[..., None], rows[..., None], columns[:, None]]


def _row(
    values: Float[Tensor, "segments rows others"], row: Int[Tensor, " segments"]
) -> Float[Tensor, "segments others"]:
    return values[torch.arange(len(row), device=row.device), row]
