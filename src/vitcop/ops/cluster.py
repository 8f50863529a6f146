"""Density-peak clustering of visual tokens under a spatial limit (VIC, ViTCoP section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .precision import full_precision
from .segments import by_size, is_real, pad_segments, per_segment, unpad_segments, upload

# The rule of thumb of Rodriguez and Laio (Science 2014): within the cutoff, a point has 1 to 2 % of all others. It
# makes the clusters independent of the scale of the keys.
NEIGHBOURS = 0.02

# Of a squared distance, as a share of both squared norms: rounding of as many channels as encoders have is below.
ROUNDING = 1e-5


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
        cutoff: Gaussian width of the density, in units of `features`; None derives it from the data: half of the rows
            have 2 % of the others within it.
        radius: a row may only follow a denser row that is at most this far away on the grid.

    Returns:
        The cluster of each row, counted from 0 in every segment by falling `density * separation`.
    """
    groups = list(by_size(lengths, features.device))
    if len(groups) == 1:
        return _density_peaks(features, grid, lengths, centres, cutoff, radius)
    labels = torch.empty(len(features), dtype=torch.long, device=features.device)
    for rows, segments in groups:
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
    device, longest = features.device, max(lengths)
    square = _squared_distances(features, lengths)
    scale = _derived_scale(square, lengths) if cutoff is None else cutoff**2
    density = (square / -scale).exp_().sum(-1)

    index = torch.arange(longest, device=device)
    # Equal densities would make mutual parents: the lower index counts as the denser one.
    place = _places_in(density.argsort(dim=-1, descending=True, stable=True), index)
    # Positions are exact fractions: keep the comparison exact where a distance equals the radius.
    positions = pad_segments(grid.float(), lengths)
    out_of_reach = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist") > radius + 1e-6
    out_of_reach |= place[:, None] >= place[:, :, None]
    separation, parent = square.masked_fill(out_of_reach, math.inf).min(-1)

    peak = density * separation.sqrt()
    if min(lengths) < longest:
        peak = peak.masked_fill(~is_real(lengths, device), -math.inf)
    rank = _places_in(peak.argsort(dim=-1, descending=True, stable=True), index)
    follows = rank >= per_segment(centres, device)

    nearest_centre = square.masked_fill(follows[:, None], math.inf).argmin(-1)
    parent = torch.where(separation.isinf(), nearest_centre, parent)
    parent = torch.where(follows, parent, index)
    # Pointer jumping: each round doubles the distance travelled up the forest.
    for _ in range(max(1, (longest - 1).bit_length())):
        parent = parent.gather(1, parent)
    return unpad_segments(rank.gather(1, parent), lengths)


def _places_in(order: Int[Tensor, "segments rows"], index: Int[Tensor, " rows"]) -> Int[Tensor, "segments rows"]:
    """Where each row stands in an order of the rows, which `index` numbers."""
    return torch.empty_like(order).scatter(1, order, index.expand_as(order))


def _squared_distances(
    features: Float[Tensor, "rows dim"], lengths: Sequence[int]
) -> Float[Tensor, "segments longest longest"]:
    """Between the rows of each segment; infinite to padding. The only temporary of its size."""
    points, device = pad_segments(features.float(), lengths), features.device
    # |a|^2 + |b|^2 - 2ab cancels badly when all points share a large offset: take it away first.
    points = points - (points.sum(1) / per_segment(lengths, device))[:, None]
    length = points.square().sum(-1)
    with full_precision(device):
        products = torch.bmm(points, points.mT)
    # Less than rounding can add, so that equal points are at 0 of each other, and of themselves, wherever they stand.
    square = products.mul_(-2).add_(length[:, :, None], alpha=1 - ROUNDING).add_(length[:, None], alpha=1 - ROUNDING)
    square.clamp_(min=0)
    return square if min(lengths) == max(lengths) else square.masked_fill_(~is_real(lengths, device)[:, None], math.inf)


def _derived_scale(
    square: Float[Tensor, "segments longest longest"], lengths: Sequence[int]
) -> Float[Tensor, "segments 1 1"]:
    """The squared cutoff of each segment: the median, over its rows, of the square within which 2 % of the others lie.

    A quantile of all distances, which is much the same, would have to sort n^2 of them.
    """
    device, longest = square.device, max(lengths)
    neighbours = [min(n - 1, max(1, round(NEIGHBOURS * (n - 1)))) for n in lengths]
    nearest = square.topk(max(neighbours) + 1, largest=False).values  # the row itself is one of them
    reach = nearest.take_along_dim(_last_axis(neighbours, device), -1)[..., 0]
    if min(lengths) < longest:
        reach = reach.masked_fill(~is_real(lengths, device), math.inf)
    median = reach.sort(-1).values[..., None].take_along_dim(_last_axis([(n - 1) // 2 for n in lengths], device), 1)
    # A single row, or rows that are all equal, have no scale: any positive width gives the same clusters.
    return median.clamp(min=torch.finfo(median.dtype).tiny)


def _last_axis(values: Sequence[int], device: torch.device) -> Int[Tensor, "segments 1 1"]:
    return upload(values, device)[:, None, None]
