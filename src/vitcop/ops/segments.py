"""Operations on a flat table whose rows belong to segments (images, clusters), without reading anything back.

A segment's rows are consecutive wherever `lengths` is taken; `segments` may be in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


def segment_ids(lengths: Sequence[int], device: torch.device) -> Int[Tensor, " rows"]:
    """The segment of each row: `(2, 3)` gives `[0, 0, 1, 1, 1]`."""
    repeats = torch.tensor(lengths, device=device)
    ids = torch.arange(len(lengths), device=device)
    return ids.repeat_interleave(repeats, output_size=sum(lengths))


def indices_of(mask: Bool[Tensor, " rows"], count: int) -> Int[Tensor, " kept"]:
    """The ascending indices at which `mask` holds, when `count` is already known to be their number."""
    return mask.logical_not().byte().argsort(stable=True)[:count]


def segment_sum(
    values: Shaped[Tensor, " rows"], segments: Int[Tensor, " rows"], num_segments: int
) -> Shaped[Tensor, " segments"]:
    """Sum of `values` per segment; zero where a segment is empty."""
    return values.new_zeros(num_segments).scatter_add(0, segments, values)


def rank_in_segment(
    values: Shaped[Tensor, " rows"], segments: Int[Tensor, " rows"], num_segments: int
) -> Int[Tensor, " rows"]:
    """Rank of each row among the rows of its segment by ascending value; equal values rank by index."""
    order = values.argsort(stable=True)
    order = order[segments[order].argsort(stable=True)]
    sizes = segment_sum(torch.ones_like(segments), segments, num_segments)
    starts = sizes.cumsum(0) - sizes
    position = torch.arange(len(values), device=values.device)
    return torch.empty_like(position).scatter(0, order, position - starts[segments[order]])


def smallest_per_segment(
    values: Float[Tensor, " rows"], lengths: Sequence[int], budget: Sequence[int]
) -> Int[Tensor, " kept"]:
    """Ascending row indices of the `budget[i]` smallest values of every segment `i`."""
    return smallest_in_segments(values, segment_ids(lengths, values.device), budget)


def smallest_in_segments(
    values: Shaped[Tensor, " rows"], segments: Int[Tensor, " rows"], budget: Sequence[int]
) -> Int[Tensor, " kept"]:
    """As `smallest_per_segment`, for segments whose rows may lie across each other."""
    ranks = rank_in_segment(values, segments, len(budget))
    allowed = torch.tensor(budget, device=values.device)[segments]
    return indices_of(ranks < allowed, sum(budget))


def pad_segments(
    values: Shaped[Tensor, rows * rest], lengths: Sequence[int]
) -> tuple[Shaped[Tensor, "segments longest *rest"], Bool[Tensor, "segments longest"]]:
    """One padded row of the batch per segment, and where it holds a value; the padding is zero."""
    longest = max(lengths)
    column = torch.arange(longest, device=values.device)
    valid = column < torch.tensor(lengths, device=values.device)[:, None]
    starts = torch.tensor(lengths, device=values.device).cumsum(0)[:, None] - valid.sum(1, keepdim=True)
    padded = values[(starts + column).clamp(max=len(values) - 1)]
    return padded.masked_fill(~valid.view(*valid.shape, *[1] * (values.ndim - 1)), 0), valid


def by_size(lengths: Sequence[int], device: torch.device) -> Iterator[tuple[Tensor | slice, list[int]]]:
    """Rows and numbers of groups of segments, of which none is more than twice as long as another of its group.

    What pads the segments of a group to the longest costs little more than they do, whatever else there is.
    """
    groups: dict[int, list[int]] = {}
    for segment, length in enumerate(lengths):
        groups.setdefault(length.bit_length(), []).append(segment)
    starts = [0, *accumulate(lengths)]
    for segments in groups.values():
        if len(groups) == 1:
            yield slice(None), segments
        else:
            yield torch.cat([torch.arange(starts[i], starts[i + 1], device=device) for i in segments]), segments


def padded_lengths(lengths: Sequence[int]) -> list[int]:
    """Rows that each segment takes once the segments of a group of `by_size` are padded to the longest of it."""
    longest: dict[int, int] = {}
    for length in sorted(lengths):
        longest[length.bit_length()] = length
    return [longest[length.bit_length()] for length in lengths]


def share_out(budget: int, sizes: Sequence[int]) -> list[int]:
    """Shares of `budget` in proportion to `sizes`: whole numbers by the largest remainder, earlier ones first."""
    total = sum(sizes)
    shares = [budget * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: -(budget * sizes[i] % total))
    for i in by_remainder[: budget - sum(shares)]:
        shares[i] += 1
    return shares
