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
    determinant of the chosen rows' kernel most.
    """
    gain, free = kernel.diagonal(dim1=1, dim2=2), real
    factor = kernel.new_zeros(len(kernel), 0, kernel.shape[1])
    order: list[Tensor] = []
    for _ in range(steps):
        order.append(gain.masked_fill(~free, -torch.inf).argmax(-1))
        last = order[-1][:, None]
        pivot = gain.gather(1, last)
        explained = (factor.gather(2, last[:, None].expand(-1, factor.shape[1], 1)).mT @ factor)[:, 0]
        row = (_row(kernel, order[-1]) - explained) / pivot.clamp(min=_NOTHING).sqrt()
        row = row.masked_fill(pivot < _NOTHING, 0)
        factor = torch.cat([factor, row[:, None]], 1)
        gain = gain - row**2
        gain = gain.masked_fill(gain < _NOTHING, 0)
        free = free.scatter(1, last, False)
    return torch.stack(order, 1)


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


def _row(
    values: Float[Tensor, "segments rows others"], row: Int[Tensor, " segments"]
) -> Float[Tensor, "segments others"]:
    return values[torch.arange(len(row), device=row.device), row]
