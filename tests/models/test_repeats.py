"""Tokens that equal a neighbour are found, and chains of them end where a walk over all tokens ends."""

import torch

from vitcop.models.repeats import Repeats

IMAGES = [(1, 3, 5), (2, 4, 2), (1, 1, 1), (1, 1, 6), (3, 5, 1)]


def walked(colours, images):
    """The first token of the chain of each, token by token."""
    first, start = [], 0
    for grids, rows, columns in images:
        for number in range(grids * rows * columns):
            here, row, column = start + number, number // columns % rows, number % columns
            left, above = here - 1, here - columns
            if column and colours[here] == colours[left]:
                first.append(first[left])
            elif row and colours[here] == colours[above]:
                first.append(first[above])
            else:
                first.append(here)
        start += grids * rows * columns
    return first


def test_chains_end_where_a_walk_ends():
    count, generator = sum(grids * rows * columns for grids, rows, columns in IMAGES), torch.Generator().manual_seed(0)
    for colours in (1, 2, 3):
        colour = torch.randint(colours, (count,), generator=generator)
        repeats = Repeats.of(torch.randn(colours, 7, generator=generator)[colour], IMAGES)
        first = walked(colour.tolist(), IMAGES)
        assert repeats.kept[repeats.source].tolist() == first
        assert repeats.kept.tolist() == sorted(set(first))
        grid = torch.arange(8).repeat_interleave(torch.tensor([15, 8, 8, 1, 6, 5, 5, 5]))
        assert repeats.lengths == tuple(grid[repeats.kept].bincount().tolist())


def test_one_value_that_differs_is_a_difference():
    pixels = torch.zeros(6, 9)
    pixels[torch.arange(6), torch.arange(6)] = 1e-7
    assert Repeats.of(pixels, [(1, 2, 3)]) is None


def test_tokens_keep_their_order_among_those_that_go_in():
    # b a     c     b stands for itself and for what is below; c comes first in the encoder.
    # b c
    repeats = Repeats.of(torch.tensor([[1.0], [2.0], [1.0], [3.0]]), [(1, 2, 2)])
    place = torch.tensor([3, 1, 2, 0])
    assert repeats.kept.tolist() == [0, 1, 3]
    assert repeats.order(place).tolist() == [2, 1, 0]
    assert repeats.places(place).tolist() == [2, 1, 2, 0]
