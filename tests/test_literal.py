"""Every method chooses what a literal transcription of its steps chooses (literal.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import literal
import pytest
import torch
from tables import Columns, table
from torch import Tensor

import vitcop
from vitcop.report import StageReport
from vitcop.tokens import TextTokens, merge_hidden_states

HEADS, HEAD_DIM, HIDDEN = 3, 4, 40
OF_TEXT = ("words", "word_states", "word_keys", "asked")


@dataclass(frozen=True)
class Asked(Columns):
    """A source whose attention is that of each row of text, given as (text, visual)."""

    rows: Tensor | None = None

    def attention(self, tokens, weights, ahead):
        if weights is None:
            return super().attention(tokens, weights, ahead)
        own = (self.words.images[:, None] == tokens.images).float() * self.rows
        return weights @ own


@dataclass(frozen=True)
class Picture:
    """One image with random values, as transcriptions take it: what a method may look at, as lists."""

    shapes: tuple[tuple[int, int], ...]
    values: dict[str, Tensor]

    @staticmethod
    def random(shapes, seed, across):
        """Grids one after another, or with their tokens dealt across each other."""
        generator = torch.Generator().manual_seed(seed)
        n, words = sum(rows * columns for rows, columns in shapes), 3 + seed % 6
        cells = torch.tensor([(g, r, c) for g, (rows, cs) in enumerate(shapes) for r in range(rows) for c in range(cs)])
        order = torch.randperm(n, generator=generator) if across else torch.arange(n)

        def draw(*size):
            return torch.randn(*size, generator=generator)

        return Picture(
            shapes,
            {
                "cells": cells[order],
                "states": draw(n, HIDDEN) + 0.5 * draw(HIDDEN),
                "embedded": draw(n, HIDDEN) + 0.5 * draw(HIDDEN),
                "keys": draw(n, HEADS, HEAD_DIM) + 0.5 * draw(HEADS, HEAD_DIM),
                "saliency": draw(n).softmax(0),
                "shallow": draw(n).softmax(0),
                "received": draw(n).softmax(0),
                "middle": draw(n).softmax(0),
                "last": draw(n).softmax(0),
                "words": draw(words, HIDDEN),
                "word_states": draw(words, HIDDEN),
                "word_keys": draw(words, HEADS, HEAD_DIM),
                "asked": draw(words, n).softmax(1),
            },
        )

    def __len__(self):
        return len(self.values["cells"])

    def __getattr__(self, name):
        return self.values[name].double().tolist()

    @property
    def places(self):
        return [(row, column) for _, row, column in self.values["cells"].tolist()]

    def grids(self, budget):
        """The tokens of each grid, as an image of their own, and its share of the budget."""
        numbers = [(self.values["cells"][:, 0] == grid).nonzero()[:, 0] for grid in range(len(self.shapes))]
        for rows, share in zip(numbers, literal.shared(budget, list(map(len, numbers))), strict=True):
            own = {name: value[rows] for name, value in self.values.items() if name not in OF_TEXT}
            yield rows.tolist(), Picture(self.shapes, own), share


def tabulate(pictures, layer):
    lengths = [len(picture) for picture in pictures]
    values = {
        name: torch.cat([picture.values[name] for picture in pictures])
        for name in pictures[0].values
        if name != "asked"
    }
    words = [len(picture.words) for picture in pictures]
    text = TextTokens(
        tuple(words), values["words"], values["word_states"], values["word_keys"], torch.arange(sum(words))
    )
    shapes = [shape for picture in pictures for shape in picture.shapes]
    first = torch.tensor([sum(len(p.shapes) for p in pictures[:i]) for i in range(len(pictures))])
    segments = values["cells"][:, 0] + first.repeat_interleave(torch.tensor(lengths))
    signals = {
        "saliency": values["saliency"],
        "shallow": values["shallow"],
        "received": values["received"],
        "received in the middle": values["middle"],
    }
    tokens = table(
        lengths,
        segments=segments,
        segment_shapes=tuple(picture.shapes for picture in pictures),
        segment_sizes=tuple(tuple(r * c for r, c in picture.shapes) for picture in pictures),
        grid=values["cells"][:, 1:] / torch.tensor(shapes)[segments],
        layer=layer,
        stage=int(layer > 0),
    )
    source = Asked(
        values["states"] if layer else values["embedded"],
        values["keys"],
        signals,
        text,
        values["last"],
        values["embedded"],
        torch.block_diag(*(picture.values["asked"] for picture in pictures)),
    )
    return replace(tokens, source=source)


def flat(keys):
    return [[value for head in heads for value in head] for heads in keys]


def in_grids(rule):
    """Each grid by itself, with its share of the budget."""

    def choose(picture, budget):
        kept, groups = [], {}
        for tokens, grid, share in picture.grids(budget):
            own, merged = rule(grid, share)
            kept += [tokens[token] for token in own]
            groups |= {tokens[token]: [tokens[member] for member in group] for token, group in merged.items()}
        return sorted(kept), groups

    return choose


def vscan(picture, budget):
    kept, _ = in_grids(lambda p, k: (literal.vscan(p.shallow, p.saliency, p.places, k), {}))(picture, budget)
    return kept, literal.averaged_into(kept, picture.embedded)


def sparsevlm(picture, budget):
    raters = literal.sparsevlm_raters(picture.embedded, picture.words)
    return literal.sparsevlm(picture.asked, raters, picture.states, budget)


# Method, the layer it looks from, and which tokens of an image stay and what is merged into them.
TABLES = {
    "fastv": (vitcop.FastV(), 2, lambda p, k: (literal.fastv(p.last, k), {})),
    "pyramiddrop": (vitcop.PyramidDrop(), 4, lambda p, k: (literal.fastv(p.last, k), {})),
    "sparsevlm": (vitcop.SparseVLM(), 3, sparsevlm),
    "visionzip": (vitcop.VisionZip(), 0, in_grids(lambda p, k: literal.visionzip(p.saliency, p.keys, k))),
    "divprune": (vitcop.DivPrune(), 0, lambda p, k: (literal.divprune(p.embedded, k), {})),
    "dart": (
        vitcop.DART(),
        2,
        lambda p, k: (literal.dart(flat(p.keys), flat(p.word_keys), p.states, p.word_states, k), {}),
    ),
    "cdpruner": (vitcop.CDPruner(), 0, lambda p, k: (literal.cdpruner(p.embedded, p.words, k), {})),
    "hiprune": (
        vitcop.HiPrune(),
        0,
        in_grids(lambda p, k: (literal.hiprune(p.middle, p.received, p.places, k), {})),
    ),
    "vispruner": (vitcop.VisPruner(), 0, in_grids(lambda p, k: (literal.vispruner(p.saliency, p.embedded, k), {}))),
    "vscan": (vitcop.VScan(), 0, vscan),
    "vscan, decoder": (vitcop.VScan(), 4, lambda p, k: (literal.fastv(p.last, k), {})),
    "mmtok": (vitcop.MMTok(), 0, lambda p, k: (literal.mmtok(p.embedded, p.words, k), {})),
    "knorm": (vitcop.KNorm(), 2, lambda p, k: (literal.knorm(p.keys, k), {})),
}

# Grids of each image of a batch, whether they lie across each other, and budgets of the images.
BATCHES = {
    "one": ([((6, 6),)], False, (9,)),
    "ragged": ([((6, 6),), ((4, 5),), ((3, 3),), ((2, 2),)], False, (13, 20, 1, 3)),
    "odd": ([((7, 9),), ((1, 8),)], False, (31, 5)),
    "grids": ([((4, 4), (3, 5), (2, 4)), ((5, 5),), ((3, 2), (2, 3))], False, (17, 24, 6)),
    "across": ([((4, 4), (3, 5), (2, 4)), ((4, 2), (3, 3)), ((1, 1), (4, 4))], True, (10, 2, 7)),
}
LARGE = {
    "large": ([((14, 13),)], False, (80,)),
    "nearly all": ([((12, 10),), ((9, 7),)], False, (115, 60)),
}
CUBIC = ("cdpruner", "mmtok", "divprune")  # too slow for the large ones


def chosen(method, tokens, budget):
    """Tokens that stay and groups, of each image."""
    selection = method.select(tokens, budget)
    assert tokens.allows(selection, budget)
    stage = StageReport.of(tokens, selection, budget, None)
    return [(stage.kept(image), stage.merged(image)) for image in range(len(budget))], selection


def merged(name, states, kept, groups):
    """Hidden states of tokens that stay: the mean of their group, which VisionZip adds to its anchor."""
    states = states.clone()
    means = {token: states[group].mean(0) for token, group in groups.items()}
    for token, mean in means.items():
        states[token] = states[token] + mean if name == "visionzip" else mean
    return states[kept]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [*BATCHES, *LARGE])
@pytest.mark.parametrize("name", TABLES)
def test_tables(name, size, seed):
    if size in LARGE and name in CUBIC:
        pytest.skip("slow")
    method, layer, rule = TABLES[name]
    batch, across, budget = (BATCHES | LARGE)[size]
    pictures = [Picture.random(shapes, 100 * seed + number, across) for number, shapes in enumerate(batch)]
    tokens = tabulate(pictures, layer)
    found, selection = chosen(method, tokens, budget)
    states = merge_hidden_states(tokens.hidden_states, selection).split(budget)
    for image, picture in enumerate(pictures):
        kept, groups = rule(picture, budget[image])
        assert len(kept) == budget[image]
        assert found[image] == (kept, groups)
        entered = tokens.hidden_states[tokens.images == image]
        torch.testing.assert_close(states[image], merged(name, entered, kept, groups), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("tokens", "lists"), [(192, (300, 200, 110)), (128, (303, 110, 36)), (64, (66, 30, 17))])
def test_sparsevlm_averages_the_papers_lists_and_what_they_recycle(tokens, lists):
    alive, schedule = 576, {}
    for layer, kept in zip((3, 7, 16), lists, strict=True):
        alive = kept + literal.sparsevlm_clusters(alive - kept)[1]
        schedule[layer] = alive
    assert vitcop.SparseVLM.preset("paper", tokens=tokens).budgets(576, 32) == schedule


@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        (vitcop.FastV(192 / 576), {2: 166}),
        (vitcop.FastV(128 / 576), {2: 98}),
        (vitcop.FastV(64 / 576), {2: 30}),
        (vitcop.VScan(192 / 576), {0: 288, 16: 96}),
        (vitcop.VScan(128 / 576), {0: 192, 16: 64}),
        (vitcop.VScan(64 / 576), {0: 96, 16: 32}),
        (vitcop.PyramidDrop.preset("paper", tokens=270), {8: 288, 16: 144, 24: 72}),
        (vitcop.DART.preset("paper", tokens=64), {2: 68}),
        (vitcop.VisionZip(64 / 576), {0: 64}),
    ],
    ids=str,
)
def test_published_schedules(method, schedule):
    assert method.budgets(576, 32) == schedule


@pytest.mark.parametrize("words", [1, 2, 11, 14])
def test_text_that_is_all_alike_rates_as_one(words):
    """The mean of equal values may be rounded above them, and then there would be no rater."""
    picture = Picture.random(((6, 6),), 0, across=False)
    picture.values.update(words=torch.ones(words, HIDDEN) / 7, word_states=torch.ones(words, HIDDEN))
    picture.values["word_keys"] = torch.ones(words, HEADS, HEAD_DIM)
    picture.values["asked"] = picture.values["asked"][:1].expand(words, -1)
    ((kept, _),), _ = chosen(vitcop.SparseVLM(), tabulate([picture], 3), (9,))
    assert kept == sparsevlm(picture, 9)[0]


@pytest.mark.parametrize(
    ("shape", "budget", "middles"),
    [
        ((6, 6), 4, [(1, 1), (1, 4), (4, 1), (4, 4)]),
        ((6, 9), 6, [(1, 1), (1, 4), (1, 7), (4, 1), (4, 4), (4, 7)]),
        ((3, 9), 3, [(1, 1), (1, 4), (1, 7)]),
        ((9, 3), 3, [(1, 1), (4, 1), (7, 1)]),
    ],
)
def test_average_pooling_where_cells_divide_the_grid(shape, budget, middles):
    """What `avg_pool2d` does; the middle of each cell of 3 x 3 stands for it."""
    picture = Picture.random((shape,), 0, across=False)
    tokens = tabulate([picture], 0)
    for method in (vitcop.UniformGrid(), vitcop.AveragePool()):
        ((kept, _),), selection = chosen(method, tokens, (budget,))
        assert [picture.places[token] for token in kept] == middles
    states = picture.values["embedded"]
    pooled = torch.nn.functional.avg_pool2d(states.T.unflatten(1, shape), 3).flatten(1).T
    torch.testing.assert_close(merge_hidden_states(states, selection), pooled)


@pytest.mark.parametrize("size", BATCHES)
def test_cells_are_about_equal_and_meet_in_their_middle_token(size):
    batch, across, budget = BATCHES[size]
    pictures = [Picture.random(shapes, number, across) for number, shapes in enumerate(batch)]
    tokens = tabulate(pictures, 0)
    found, selection = chosen(vitcop.AveragePool(), tokens, budget)
    assert torch.equal(selection.keep, vitcop.UniformGrid().select(tokens, budget).keep)
    for picture, (kept, merged) in zip(pictures, found, strict=True):
        groups = {token: merged.get(token, [token]) for token in kept}
        for grid, own, share in picture.grids(len(kept)):
            cells = {token: group for token, group in groups.items() if token in grid}
            members = sorted(member for group in cells.values() for member in group)
            assert len(cells) == share and members == (grid if share else [])
            sizes = [len(group) for group in cells.values()]
            assert max(sizes, default=0) <= min(sizes, default=0) + 1
            place = dict(zip(grid, own.places, strict=True))
            for token, group in cells.items():
                centre = literal.mean_vector(place[member] for member in group)
                nearest = min(math.dist(place[member], centre) for member in group)
                assert math.isclose(math.dist(place[token], centre), nearest)
