"""Operations on a flat table whose rows belong to segments (images, clusters), without reading anything back.

A segment's rows are consecutive wherever `lengths` is taken; `segments` may be in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


def upload(values: Sequence[Any] | Tensor, device: torch.device) -> Tensor:
    """Numbers that the host knows, on the device. Unlike with `torch.tensor`, the host does not wait for the device."""
    if device.type != "cuda":
        return torch.as_tensor(values, device=device)
    return torch.as_tensor(values, device="cpu").pin_memory().to(device, non_blocking=True)


def per_segment(values: Sequence[int], device: torch.device) -> int | Int[Tensor, "segments 1"]:
    """A number of each segment, to go with padded rows: a plain one where all are equal."""
    return values[0] if len(set(values)) == 1 else upload(values, device)[:, None]


def segment_ids(lengths: Sequence[int], device: torch.device) -> Int[Tensor, " rows"]:
    """The segment of each row: `(2, 3)` gives `[0, 0, 1, 1, 1]`."""
    if len(set(lengths)) == 1:
        return torch.arange(len(lengths), device=device).repeat_interleave(lengths[0])
    ids = torch.arange(len(lengths), device=device)
    return ids.repeat_interleave(upload(lengths, device), output_size=sum(lengths))


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
    by_value = values.argsort(stable=True)
    segment, order = segments[by_value].sort(stable=True)
    start = torch.searchsorted(segment, torch.arange(num_segments, device=segment.device))
    position = torch.arange(len(values), device=segment.device)
    return torch.empty_like(position).scatter(0, by_value[order], position - start[segment])


def smallest_per_segment(
    values: Shaped[Tensor, " rows"], lengths: Sequence[int], budget: Sequence[int]
) -> Int[Tensor, " kept"]:
    """Ascending row indices of the `budget[i]` smallest values of every segment `i`."""
    padded = pad_segments(values, lengths, last=True)
    segments, longest = padded.shape
    order = padded.argsort(dim=1, stable=True)[:, : max(budget)]
    if len(set(budget)) > 1:
        beyond = torch.arange(max(budget), device=values.device) >= per_segment(budget, values.device)
        order = order.masked_fill(beyond, longest)
    rows = order.sort(dim=1).values
    if segments > 1:
        rows = rows + starts_of(lengths, values.device)[:, None]
    return unpad_segments(rows, budget)


def starts_of(lengths: Sequence[int], device: torch.device) -> Int[Tensor, " segments"]:
    """The first row of each segment."""
    return upload([0, *accumulate(lengths)][:-1], device)


def pad_segments(
    values: Shaped[Tensor, "rows *rest"], lengths: Sequence[int], *, last: bool = False
) -> Shaped[Tensor, "segments longest *rest"]:
    """One padded row of the batch per segment.

    Args:
        last: pad with what a stable sort puts behind all values; else with zeros.
    """
    longest, device = max(lengths), values.device
    if min(lengths) == longest:
        return values.unflatten(0, (len(lengths), longest))
    row = starts_of(lengths, device)[:, None] + torch.arange(longest, device=device)
    padding = is_real(lengths, device).logical_not().view(*row.shape, *[1] * (values.ndim - 1))
    fill = 0 if not last else torch.nan if values.is_floating_point() else torch.iinfo(values.dtype).max
    return values[row.clamp(max=len(values) - 1)].masked_fill(padding, fill)


def is_real(lengths: Sequence[int], device: torch.device) -> Bool[Tensor, "segments longest"]:
    """Where `pad_segments` has put a value, and no padding."""
    real = torch.arange(max(lengths), device=device) < per_segment(lengths, device)
    return real.expand(len(lengths), -1)


def unpad_segments(
    padded: Shaped[Tensor, "segments longest *rest"], lengths: Sequence[int]
) -> Shaped[Tensor, "rows *rest"]:
    """What `pad_segments` made padded rows of; columns behind the longest segment may be left out or not."""
    longest = max(lengths)
    if min(lengths) == longest:
        return padded[:, :longest].flatten(0, 1)
    device = padded.device
    rows = torch.arange(sum(lengths), device=device)
    # The padding before a segment is what pads those before it.
    skipped = upload([i * padded.shape[1] - start for i, start in enumerate([0, *accumulate(lengths)][:-1])], device)
    return padded.flatten(0, 1)[rows + skipped[segment_ids(lengths, device)]]


def rows_of(segments: Sequence[int], lengths: Sequence[int], device: torch.device) -> Int[Tensor, " rows"]:
    """The rows of some segments, one after another."""
    starts, sizes = [0, *accumulate(lengths)], [lengths[i] for i in segments]
    before = [0, *accumulate(sizes)]
    shift = upload([starts[i] - before[number] for number, i in enumerate(segments)], device)
    return torch.arange(sum(sizes), device=device) + shift[segment_ids(sizes, device)]


def by_size(lengths: Sequence[int], device: torch.device) -> Iterator[tuple[Tensor | slice, list[int]]]:
    """Rows and numbers of groups of segments, of which none is more than twice as long as another of its group.

    What pads the segments of a group to the longest costs little more than they do, whatever else there is.
    """
    groups: dict[int, list[int]] = {}
    for segment, length in enumerate(lengths):
        groups.setdefault(length.bit_length(), []).append(segment)
    for segments in groups.values():
        yield slice(None) if len(groups) == 1 else rows_of(segments, lengths, device), segments


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
