"""Density-peak clustering of visual tokens under a spatial limit (VIC, ViTCoP section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .segments import by_size, indices_of, pad_segments

# The rule of thumb of Rodriguez and Laio (Science 2014): the cutoff is the distance within which
# 1 to 2 % of all points lie. It makes the clusters independent of the scale of the keys.
CUTOFF_QUANTILE = 0.02


def num_centres(centre_fraction: float, num_tokens: int) -> int:
    """Number of clusters that `num_tokens` tokens fall into."""
    return max(1, math.floor(centre_fraction * num_tokens + 1e-9))


def density_peaks(
    features: Float[Tensor, "rows dim"],
    grid: Float[Tensor, "rows 2"],
    lengths: Sequence[int],
    centres: Sequence[int],
    *,
    cutoff: float | None,
    radius: float,
) -> Int[Tensor, " rows"]:
    """Cluster every segment of a table by itself.

    Args:
        features: what distances are measured on, any float type; computed in float32.
        grid: position of each row in its picture, as fractions of the height and of the width.
        lengths: rows per segment.
        centres: rows per segment that become cluster centres, at least one.
        cutoff: Gaussian width of the density, in units of `features`; None derives it from the data.
        radius: a row may only follow a denser row that is at most this far away on the grid.

    Returns:
        The cluster of each row, counted from 0 in every segment by falling `density * separation`.
    """
    labels = torch.empty(len(features), dtype=torch.long, device=features.device)
    for rows, segments in by_size(lengths, features.device):
        sizes, counts = ([values[i] for i in segments] for values in (lengths, centres))
        labels[rows] = _density_peaks(features[rows], grid[rows], sizes, counts, cutoff, radius)
    return labels


def _density_peaks(
    features: Tensor,
    grid: Tensor,
    lengths: Sequence[int],
    centres: Sequence[int],
    cutoff: float | None,
    radius: float,
) -> Tensor:
    """`density_peaks` of segments of about the same length."""
    padded, valid = pad_segments(features.float(), lengths)
    places, _ = pad_segments(grid.float(), lengths)
    distance = _distances(padded, valid)
    if cutoff is None:
        width: Tensor | float = _cutoff_of(distance, lengths)
    else:
        width = cutoff
    density = (-((distance / width) ** 2)).exp().masked_fill(~valid[:, None], 0).sum(-1)

    index = torch.arange(padded.shape[1], device=padded.device)
    mine, others = density[:, :, None], density[:, None, :]
    # Equal densities would make mutual parents: the lower index counts as the denser one.
    denser = (others > mine) | ((others == mine) & (index < index[:, None]))
    # Places are exact fractions: keep the comparison exact where a distance equals the radius.
    near = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist") <= radius + 1e-6
    separation, parent = distance.masked_fill(~(denser & near & valid[:, None]), math.inf).min(-1)

    peak = (density * separation).masked_fill(~valid, -math.inf)
    ranks = peak.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    is_centre = ranks < torch.tensor(centres, device=padded.device)[:, None]

    nearest_centre = distance.masked_fill(~is_centre[:, None], math.inf).argmin(-1)
    parent = torch.where(separation.isinf(), nearest_centre, parent)
    parent = torch.where(is_centre, index, parent)
    # Pointer jumping: each round doubles the distance travelled up the forest.
    for _ in range(max(1, (padded.shape[1] - 1).bit_length())):
        parent = parent.gather(1, parent)
    labels = ranks.gather(1, parent)
    return labels.flatten()[indices_of(valid.flatten(), sum(lengths))]


def _distances(
    points: Float[Tensor, "segments rows dim"], valid: Bool[Tensor, "segments rows"]
) -> Float[Tensor, "segments rows rows"]:
    # |a|^2 + |b|^2 - 2ab cancels badly when all points share a large offset: take it away first.
    mean = points.sum(1, keepdim=True) / valid.sum(1)[:, None, None]
    centred = points - mean
    square = centred.square().sum(-1)
    distance = square[:, :, None] + square[:, None] - 2 * centred @ centred.mT
    distance = distance.clamp(min=0).sqrt()
    return distance.diagonal_scatter(distance.new_zeros(distance.shape[:2]), dim1=1, dim2=2)


def _cutoff_of(distance: Float[Tensor, "segments rows rows"], lengths: Sequence[int]) -> Float[Tensor, "segments 1 1"]:
    """The CUTOFF_QUANTILE of the distances between different rows, for each segment."""
    segments, rows, _ = distance.shape
    real = torch.arange(rows, device=distance.device) < torch.tensor(lengths, device=distance.device)[:, None]
    pairs = real[:, :, None] & real[:, None, :] & ~torch.eye(rows, dtype=torch.bool, device=distance.device)
    ordered = distance.masked_fill(~pairs, math.inf).flatten(1).sort(-1).values
    nth = [math.floor(CUTOFF_QUANTILE * n * (n - 1)) for n in lengths]
    cutoff = ordered.gather(1, torch.tensor(nth, device=distance.device)[:, None])
    # A single row, or rows that are all equal, have no scale: any positive width gives the same clusters.
    smallest = torch.finfo(cutoff.dtype).tiny
    return torch.where(cutoff.isinf(), 1.0, cutoff).clamp(min=smallest).view(segments, 1, 1)
