"""Which row of its segment is most like another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from .segments import by_size, indices_of, is_real, pad_segments, padded_lengths, unpad_segments, upload

# Most similar rows that `thin_out` remembers of each.
_REMEMBERED = 32


def most_similar(
    features: Float[Tensor, "rows dim"],
    lengths: Sequence[int],
    targets: Bool[Tensor, " rows"],
    counts: Sequence[int],
) -> Int[Tensor, " rows"]:
    """For every row the target of its segment with the largest cosine to it; -1 where the segment has none.

    Args:
        lengths: rows per segment.
        targets: which rows may be chosen.
        counts: how many those are in each segment.
    """
    found = torch.full_like(targets, -1, dtype=torch.long)
    everything = torch.arange(len(features), device=features.device)
    for rows, segments in by_size(lengths, features.device):
        sizes, wanted = [lengths[i] for i in segments], max(counts[i] for i in segments)
        if not wanted:
            continue
        padded = pad_segments(normalize(features[rows].float(), dim=-1), sizes)
        is_target = pad_segments(targets[rows], sizes)
        number = pad_segments(everything[rows], sizes)
        # Targets first, each kind in its order.
        column = is_target.byte().argsort(dim=1, descending=True, stable=True)[:, :wanted]
        asked = padded.gather(1, column[..., None].expand(-1, -1, padded.shape[2]))
        is_asked = is_target.gather(1, column)
        best = (padded @ asked.mT).masked_fill(~is_asked[:, None], -torch.inf).argmax(-1)
        match = torch.where(is_asked.any(1, keepdim=True), number.gather(1, column).gather(1, best), -1)
        found[rows] = unpad_segments(match, sizes)
    return found


def cosines_worked_out(lengths: Sequence[int], counts: Sequence[int]) -> int:
    """How many `most_similar` works out: segments of about the same length are padded to the largest of them."""
    padded, targets = padded_lengths(lengths), dict[int, int]()
    for length, count in zip(padded, counts, strict=True):
        targets[length] = max(count, targets.get(length, 0))
    return sum(length * targets[length] for length in padded)


def thin_out(
    features: Float[Tensor, "rows dim"], lengths: Sequence[int], budget: Sequence[int], step: int
) -> Int[Tensor, " kept"]:
    """Ascending row indices of what is left when duplicates go, a few at a time, until `budget[i]` rows are left.

    At each step the rows that are left are dealt alternately into two sets; those of the first that are most like
    one of the second go, by cosine.

    Args:
        lengths: rows per segment.
        step: rows that go at a time.
    """
    kept = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    for rows, segments in by_size(lengths, features.device):
        sizes = [lengths[i] for i in segments]
        padded, alive = pad_segments(normalize(features[rows].float(), dim=-1), sizes), is_real(sizes, features.device)
        nearest, left = _Nearest(padded @ padded.mT), list(sizes)
        place = torch.arange(step, device=features.device)
        while True:
            go = [min(step, n - budget[i], -(-n // 2)) for n, i in zip(left, segments, strict=True)]
            if not any(go):
                break
            even = (alive.cumsum(1) - 1) % 2 == 0
            first, second = alive & even, alive & ~even
            # One that is left alone is like no other, and goes before what is not there.
            likeness = torch.where(first, nearest.likeness(first, second).clamp(min=-2), -torch.inf)
            most = likeness.argsort(dim=1, descending=True, stable=True)[:, :step]
            gone = place[: most.shape[1]] < upload(go, alive.device)[:, None]
            alive = alive & ~torch.zeros_like(alive).scatter(1, most, gone)
            left = [n - count for n, count in zip(left, go, strict=True)]
        kept[rows] = unpad_segments(alive, sizes)
    return indices_of(kept, sum(budget))


class _Nearest:
    """What each row of a segment is most like, while rows go.

    A few are remembered of each row. All are looked at, and a few remembered anew, only where none of these will do, so
    that a step takes no pass over all pairs. Whether there are such rows is read from the device.
    """

    def __init__(self, similarity: Float[Tensor, "segments rows rows"]) -> None:
        self._similarity = similarity
        self._likeness, self._numbers = similarity.topk(min(_REMEMBERED, similarity.shape[-1]))

    def likeness(
        self, asking: Bool[Tensor, "segments rows"], asked: Bool[Tensor, "segments rows"]
    ) -> Float[Tensor, "segments rows"]:
        """Of each row that asks the similarity to the most similar one of those asked; -inf if there is none.

        Args:
            asking, asked: together all that are left.
        """
        known = asked.gather(1, self._numbers.flatten(1)).view_as(self._numbers)
        found = self._likeness.masked_fill(~known, -torch.inf).amax(-1)
        segment, row = (asking & ~known.any(-1)).nonzero(as_tuple=True)
        if len(row):
            similarity = self._similarity[segment, row]
            found[segment, row] = similarity.masked_fill(~asked[segment], -torch.inf).amax(-1)
            left = similarity.masked_fill(~(asking | asked)[segment], -torch.inf)
            self._likeness[segment, row], self._numbers[segment, row] = left.topk(self._numbers.shape[-1])
        return found
