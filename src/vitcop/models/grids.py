"""Where the visual tokens of an image or video stand in what the vision encoder saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UnsupportedModelError

Shape = tuple[int, int]
SEPARATOR = -1
MOST_CELLS = 10_000_000


@dataclass(frozen=True, eq=False)
class Grids:
    """The grids of one image or video, and the place of each of its placeholders in them.

    A grid is what the vision encoder sees by itself: a picture, a tile of one, or a frame. Placeholders
    that stand for no place in it (newlines between rows, a [CLS] token, registers) are separators: they are never
    pruned. All tensors are on the CPU.

    Attributes:
        shapes: rows and columns of each grid, in visual tokens.
        segments: number of the grid of each placeholder, `SEPARATOR` for a separator.
        places: row and column of each placeholder in its grid, as fractions of its height and width.
    """

    shapes: tuple[Shape, ...]
    segments: Int[Tensor, " placeholders"]
    places: Float[Tensor, "placeholders 2"]

    @property
    def placeholders(self) -> int:
        return len(self.segments)

    @cached_property
    def visual(self) -> Bool[Tensor, " placeholders"]:
        """Which placeholders are visual tokens and no separators."""
        return self.segments != SEPARATOR

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Visual tokens of each grid: less than its cells where padding was cut away."""
        return tuple(torch.bincount(self.segments + 1, minlength=len(self.shapes) + 1)[1:].tolist())

    @cached_property
    def num_tokens(self) -> int:
        """Visual tokens, separators left out."""
        return sum(self.sizes)

    @cached_property
    def cells(self) -> tuple[tuple[int, int, int], ...]:
        """Grid, row and column of each visual token."""
        segments = self.segments[self.visual]
        cells = (self.places[self.visual] * torch.tensor(self.shapes)[segments] + 1e-3).long()
        return tuple(zip(segments.tolist(), *cells.T.tolist(), strict=True))

    @staticmethod
    @lru_cache(maxsize=64)
    def full(*shapes: Shape) -> Grids:
        """Grids one after another, row by row, without separators.

        Raises:
            UnsupportedModelError: they have more cells than memory is taken for.
        """
        check_cells(sum(rows * columns for rows, columns in shapes))
        with torch.device("cpu"):  # whatever the default device and type
            places = [torch.cartesian_prod(*map(_shares, shape)) for shape in shapes]
            sizes = torch.tensor([len(place) for place in places])
            return Grids(shapes, torch.arange(len(shapes)).repeat_interleave(sizes), torch.cat(places))

    @staticmethod
    def separator() -> Grids:
        """A single placeholder that stands for no place."""
        with torch.device("cpu"):
            return Grids((), torch.tensor([SEPARATOR]), torch.zeros(1, 2, dtype=torch.float32))

    @staticmethod
    def join(parts: Sequence[Grids]) -> Grids:
        """One image made of several, each of which keeps its grids."""
        if len(parts) == 1:
            return parts[0]
        segments, count = [], 0
        for part in parts:
            segments.append(torch.where(part.segments == SEPARATOR, SEPARATOR, part.segments + count))
            count += len(part.shapes)
        shapes = tuple(shape for part in parts for shape in part.shapes)
        return Grids(shapes, torch.cat(segments), torch.cat([part.places for part in parts]))


def _shares(count: int) -> Float[Tensor, " count"]:
    """Where each of so many rows or columns begins."""
    return torch.arange(count, dtype=torch.float32) / count


def merged_grids(images: Sequence[Sequence[Shape]], side: int = 1) -> tuple[Grids, ...]:
    """The grids of images of whose patches each `side` x `side` become one visual token.

    Args:
        images: of each image the rows and columns of its grids, in patches; what does not fill a block is left out.
        side: rows and columns of patches that become one visual token.
    """
    return tuple(Grids.full(*((rows // side, columns // side) for rows, columns in image)) for image in images)


def check_cells(count: int) -> None:
    """Raise before memory is taken for grids that no model could have."""
    if count > MOST_CELLS:
        raise UnsupportedModelError(
            f"A picture or video of {count:,} patches or tokens is more than the {MOST_CELLS:,} that are worked out: "
            "give a smaller picture or fewer frames, or mend the config if it is that which says so."
        )


def patch_numbers(
    shapes: Sequence[Shape], side: int, padded: int | None = None
) -> Int[Tensor, "tokens patches_per_token"]:
    """Numbers of the patches that each visual token is made of, over grids that stand one after another.

    Args:
        shapes: rows and columns of each grid, in patches.
        side: rows and columns of patches that become one token; what does not fill a block is left out.
        padded: patches of each grid with the padding behind it; None where there is none.
    """
    numbers, start = [], 0
    for rows, columns in shapes:
        numbers.append(start + _blocks((rows, columns), side))
        start += rows * columns if padded is None else padded
    return torch.cat(numbers)


@lru_cache(maxsize=64)
def _blocks(shape: Shape, side: int) -> Int[Tensor, "tokens patches_per_token"]:
    rows, columns = shape[0] // side, shape[1] // side
    numbers = torch.arange(shape[0] * shape[1], device="cpu").view(shape)[: rows * side, : columns * side]
    numbers = numbers.view(rows, side, columns, side).transpose(1, 2)
    return numbers.reshape(rows * columns, side * side)
