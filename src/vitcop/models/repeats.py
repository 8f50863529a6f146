"""Which visual tokens of a picture have the very pixels of a neighbour, before the encoder has seen any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Repeats:
    """Visual tokens that an encoder runs on, and which of them stands for each of all. All tensors are on the CPU.

    Attributes:
        kept: numbers of the tokens that it runs on, ascending.
        source: for each token, the place in `kept` of the one whose pixels it has.
        lengths: tokens that it runs on, of each grid.
    """

    kept: Int[Tensor, " kept"]
    source: Int[Tensor, " tokens"]
    lengths: tuple[int, ...]

    @staticmethod
    def of(pixels: Shaped[Tensor, "tokens values"], images: Sequence[tuple[int, int, int]]) -> Repeats | None:
        """What is left when a token that equals its left neighbour, or else the one above it, is represented by that.

        Such neighbours stand for each other in chains, which are followed to their first token: that has its pixels
        from nobody.

        Args:
            pixels: all that the encoder gets of each token, row by row, grid after grid, image after image.
            images: of each image or video its grids, and their rows and columns, in tokens.

        Returns:
            None if no token repeats another.
        """
        roots, start = [], 0
        for grids, rows, columns in images:
            end = start + grids * rows * columns
            roots.append(start + _roots(pixels[start:end].view(grids, rows, columns, -1)))
            start = end
        root = torch.cat(roots).cpu()
        goes_in = root == torch.arange(len(root), device="cpu")
        if goes_in.all():
            return None
        sizes = [rows * columns for grids, rows, columns in images for _ in range(grids)]
        return Repeats(
            kept=goes_in.nonzero().flatten(),
            source=(goes_in.cumsum(0) - 1)[root],
            lengths=tuple(int(grid.sum()) for grid in goes_in.split(sizes)),
        )

    def order(self, place: Int[Tensor, " tokens"]) -> Int[Tensor, " kept"]:
        """The places in `kept` of what the encoder runs on, in its order.

        Args:
            place: where the encoder would have each token if it ran on all.
        """
        return place[self.kept].argsort()

    def places(self, place: Int[Tensor, " tokens"]) -> Int[Tensor, " tokens"]:
        """Where the encoder has the token that stands for each; `place` as of `order`."""
        return self.order(place).argsort()[self.source]


def _roots(pixels: Shaped[Tensor, "grids rows columns values"]) -> Int[Tensor, " tokens"]:
    """For each token of grids of one size the number of the one where its chain begins."""
    shape = pixels.shape[:3]
    number = torch.arange(shape.numel(), device=pixels.device).view(shape)
    before = number.clone()
    above = (pixels[:, 1:] == pixels[:, :-1]).all(-1)
    before[:, 1:] = torch.where(above, number[:, :-1], before[:, 1:])
    left = (pixels[:, :, 1:] == pixels[:, :, :-1]).all(-1)
    before[:, :, 1:] = torch.where(left, number[:, :, :-1], before[:, :, 1:])
    root = before.flatten()
    # Every step doubles the length of the way that is followed.
    for _ in range(len(root).bit_length()):
        root = root[root]
    return root
