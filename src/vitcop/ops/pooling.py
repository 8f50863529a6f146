"""Cells of about equal size that cover grids of visual tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .segments import rank_in_segment, segment_sum, upload


def grid_cells(
    cells: Int[Tensor, "rows 2"],
    segments: Int[Tensor, " rows"],
    shapes: Sequence[tuple[int, int]],
    quotas: Sequence[int],
) -> Int[Tensor, " rows"]:
    """The cell of each row, counted over all segments: exactly `quotas[i]` cells in segment `i`, none of them empty.

    Bands of rows are cut across into cells, in the proportions of the grid; all cells have as many rows of the
    table as can be, give or take one or two. Where the quota is 0 all rows get -1.

    Args:
        cells: row and column of each in its grid.
        shapes: rows and columns of each grid.
        quotas: cells of each; at most as many as rows.
    """
    device, count = segments.device, len(quotas)
    quota = upload(quotas, device)
    bands = upload([_bands(*pair) for pair in zip(shapes, quotas, strict=True)], device)
    first = (quota.cumsum(0) - quota)[segments]
    quota, bands = quota.clamp(min=1)[segments], bands[segments]
    size = segment_sum(torch.ones_like(segments), segments, count)[segments]
    width = max(columns for _, columns in shapes)
    height = max(rows for rows, _ in shapes)

    in_order = rank_in_segment(cells[:, 0] * width + cells[:, 1], segments, count)
    band = ((in_order * quota // size + 1) * bands - 1) // quota
    before, behind = band * quota // bands, (band + 1) * quota // bands
    most_bands = max(_bands(*pair) for pair in zip(shapes, quotas, strict=True))
    of_band = segments * most_bands + band
    across = rank_in_segment(cells[:, 1] * height + cells[:, 0], of_band, count * most_bands)
    in_band = segment_sum(torch.ones_like(of_band), of_band, count * most_bands)[of_band]
    cell = first + before + across * (behind - before) // in_band
    return torch.where(upload(quotas, device)[segments] > 0, cell, -1)


def central(grid: Float[Tensor, "rows 2"], cell: Int[Tensor, " rows"], count: int) -> Bool[Tensor, " rows"]:
    """The row of each cell that is nearest to its middle; the first of several. None of those in cell -1.

    Args:
        grid: place of each row.
        count: cells.
    """
    slot = torch.where(cell < 0, count, cell)
    size = segment_sum(torch.ones_like(slot), slot, count + 1)
    middle = torch.stack([segment_sum(axis, slot, count + 1) / size.clamp(min=1) for axis in grid.float().unbind(1)], 1)
    # Places are fractions: what is as near must count as equal.
    distance = (grid - middle[slot]).pow(2).sum(1).mul(1e6).round()
    return (rank_in_segment(distance, slot, count + 1) == 0) & (cell >= 0)


def _bands(shape: tuple[int, int], quota: int) -> int:
    """Rows of cells that have about the proportions of the grid."""
    rows, columns = shape
    return max(1, min(quota, round((quota * rows / columns) ** 0.5)))
