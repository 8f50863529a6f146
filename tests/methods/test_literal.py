"""Every method chooses what a literal transcription of its steps chooses (literal.py)."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import literal
import pytest
import tiny
import torch
from families.base import ENCODER, IMAGE
from hypothesis import given
from hypothesis import strategies as st
from tables import Columns, table
from torch import Tensor
from transformers import CLIPVisionConfig

import vitcop
from vitcop.ops.greedy import keep_greedily, most_probable
from vitcop.report import StageReport
from vitcop.selection.tokens import SALIENCY, EncoderSignal, TextTokens, merge_hidden_states

HEADS, HEAD_DIM, HIDDEN = 3, 4, 40
NOT_OF_TOKENS = ("entered", "words", "word_states", "normed_word_states", "word_keys", "asked", "asking")
HEAD_WEIGHTS = (0.5, 0.0, 2.0, 1.0, 0.1, 0.4)


def normed(states):
    """Stands for the norm behind the decoder's last layer."""
    return states * torch.linspace(0.1, 2, HIDDEN)


@dataclass(frozen=True)
class Asked(Columns):
    """A source whose attention is that of each row of text, given as (text, visual)."""

    rows: Tensor | None = None

    def attention(self, tokens, weights, ahead):
        if weights is None:
            return super().attention(tokens, weights, ahead)
        own = (self.words.images[:, None] == tokens.images).float() * self.rows
        return weights @ own

    def final_norm(self, states):
        return normed(states)


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

        values = {
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
            "asking": draw(words, 2 * HEADS, HEAD_DIM) + 0.5 * draw(2 * HEADS, HEAD_DIM),
            "offered": draw(n, HEADS, HEAD_DIM) + 0.5 * draw(HEADS, HEAD_DIM),
        }
        for name in ("states", "word_states"):
            values[f"normed_{name}"] = normed(values[name])
        return Picture(shapes, values | {"entered": values["embedded"]})

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
            own = {name: value[rows] for name, value in self.values.items() if name not in NOT_OF_TOKENS}
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
        SALIENCY: values["saliency"],
        EncoderSignal(6 / 24): values["shallow"],
        EncoderSignal(received=True): values["received"],
        EncoderSignal(9 / 24, received=True): values["middle"],
    }
    tokens = table(
        lengths,
        segments=segments,
        shapes=tuple(picture.shapes for picture in pictures),
        sizes=tuple(tuple(r * c for r, c in picture.shapes) for picture in pictures),
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
        values["asking"],
        values["offered"],
        rows=torch.block_diag(*(picture.values["asked"] for picture in pictures)),
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
    raters = literal.sparsevlm_raters(picture.entered, picture.words)
    return literal.sparsevlm(picture.asked, raters, picture.states, budget)


# Method, the layer it looks from, and which tokens of an image stay and what is merged into them.
TABLES = {
    "fastv": (vitcop.FastV(), 2, lambda p, k: (literal.fastv(p.last, k), {})),
    "pyramiddrop": (vitcop.PyramidDrop(), 4, lambda p, k: (literal.fastv(p.last, k), {})),
    "sparsevlm": (vitcop.SparseVLM(), 3, sparsevlm),
    "deft": (vitcop.DeFT(), 0, in_grids(lambda p, k: (literal.deft_entrance(p.saliency, k), {}))),
    "deft, decoder": (vitcop.DeFT(), 4, lambda p, k: (literal.deft_middle(p.asked, k), {})),
    "hawk": (vitcop.HAWK(), 0, lambda p, k: (literal.hawk(p.asking, p.offered, k), {})),
    "hawk, weighted": (
        vitcop.HAWK(head_weights=HEAD_WEIGHTS),
        0,
        lambda p, k: (literal.hawk(p.asking, p.offered, k, HEAD_WEIGHTS), {}),
    ),
    "visionzip": (vitcop.VisionZip(), 0, in_grids(lambda p, k: literal.visionzip(p.saliency, p.keys, k))),
    "divprune": (vitcop.DivPrune(), 0, lambda p, k: (literal.divprune(p.embedded, k), {})),
    "dart": (
        vitcop.DART(),
        2,
        lambda p, k: (literal.dart(flat(p.keys), flat(p.word_keys), p.normed_states, p.normed_word_states, k), {}),
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
    "scope": (vitcop.SCOPE(), 0, in_grids(lambda p, k: (literal.scope(p.saliency, p.embedded, k), {}))),
    "census": (vitcop.Census(), 0, in_grids(lambda p, k: literal.census(p.saliency, p.embedded, k))),
    "score": (vitcop.SCoRe(), 0, in_grids(lambda p, k: (literal.score(p.saliency, p.embedded, k), {}))),
    "knorm": (vitcop.KNorm(), 2, lambda p, k: (literal.knorm(p.keys, k), {})),
}

# Grids of each image of a batch, whether they lie across each other, and budgets of the images.
BATCHES = {
    "one": ([((6, 6),)], False, (9,)),
    "ragged": ([((6, 6),), ((4, 5),), ((3, 3),), ((2, 2),)], False, (13, 20, 1, 3)),
    "odd": ([((7, 9),), ((1, 8),)], False, (31, 5)),
    "padded": ([((5, 5),), ((4, 4),), ((4, 6),)], False, (7, 3, 11)),  # to each other, being of about a size
    "grids": ([((4, 4), (3, 5), (2, 4)), ((5, 5),), ((3, 2), (2, 3))], False, (17, 24, 6)),
    "across": ([((4, 4), (3, 5), (2, 4)), ((4, 2), (3, 3)), ((1, 1), (4, 4))], True, (10, 2, 7)),
}
# Too slow for methods whose transcription tries every set.
LARGE = {
    "large": ([((14, 13),)], False, (80,)),
    "nearly all": ([((12, 10),), ((9, 7),)], False, (115, 60)),
}
SLOW = ("cdpruner", "mmtok", "divprune")
CASES = [(name, size) for name in TABLES for size in (BATCHES if name in SLOW else BATCHES | LARGE)]


def chosen(method, tokens, budget):
    """Tokens that stay and groups, of each image."""
    selection = method.select(tokens, budget)
    assert selection.allows(tokens.lengths, budget)
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
@pytest.mark.parametrize(("name", "size"), CASES)
def test_tables(name, size, seed):
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


@pytest.mark.parametrize("dropped", [0.7, 0.8, 0.9])
def test_deft_leaves_the_papers_reserve(dropped):
    entering, left = literal.deft_counts(576, round(576 * (1 - dropped)))
    assert vitcop.DeFT.preset("paper", tokens=left).budgets(576, 32) == {0: entering, 16: left}


@given(st.integers(10, 3000), st.integers(2, 40), st.floats(0.2, 1))
def test_deft_leaves_the_reserve_at_every_retention_from_the_papers_on(num_tokens, pairs_of_layers, retention):
    entering, left = vitcop.DeFT(retention=retention).budgets(num_tokens, 2 * pairs_of_layers).values()
    assert abs(entering - literal.deft_counts(num_tokens, left)[0]) <= 1


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


@pytest.mark.parametrize("sign", [1, -1])
def test_relevance_is_stretched_however_much_the_tokens_are_alike(sign):
    """From 0 to 1 in each image by itself, although all of its tokens are close to the question, or all far."""
    pictures = [Picture.random((shape,), seed, across=False) for seed, shape in enumerate(((5, 5), (4, 4)))]
    for picture in pictures:
        picture.values["embedded"] = 20 + picture.values["embedded"]
        picture.values["words"] = sign * (20 + picture.values["words"])
    found, _ = chosen(vitcop.CDPruner(), tabulate(pictures, 0), (9, 5))
    assert [kept for kept, _ in found] == [
        literal.cdpruner(p.embedded, p.words, k) for p, k in zip(pictures, (9, 5), strict=True)
    ]


def test_tokens_that_are_all_as_relevant_are_chosen_by_diversity_alone():
    picture = Picture.random(((5, 5),), 0, across=False)
    apart = torch.nn.functional.normalize(picture.values["embedded"][:, 1:], dim=-1)
    picture.values["embedded"] = torch.cat([torch.ones(25, 1), apart], 1)
    picture.values["words"] = torch.eye(1, HIDDEN).expand(3, -1)
    ((kept, _),), _ = chosen(vitcop.CDPruner(), tabulate([picture], 0), (9,))
    diverse = keep_greedily(
        picture.values["embedded"], (25,), (9,), lambda values, real, n, _: most_probable(values @ values.mT, real, n)
    )
    assert kept == diverse.tolist() != list(range(9))


def test_heads_that_are_weighed_are_as_many_as_there_are():
    with pytest.raises(vitcop.VitcopError, match="got 2 head_weights, and decoder layer 0 has 6 heads"):
        chosen(vitcop.HAWK(head_weights=[1.0, 2.0]), tabulate([Picture.random(((3, 3),), 0, across=False)], 0), (4,))


@pytest.mark.parametrize(
    ("method", "rule", "alpha"), [(vitcop.SCOPE, literal.scope, 0.1), (vitcop.SCoRe, literal.score, 0.0)]
)
def test_saliency_counts_as_much_as_alpha_says(method, rule, alpha):
    """With no weight at all two tokens that cover each other are worth the same to SCOPE."""
    picture = Picture.random(((6, 6),), 0, across=False)
    ((kept, _),), _ = chosen(method(alpha=alpha), tabulate([picture], 0), (9,))
    assert kept == rule(picture.saliency, picture.embedded, 9, alpha) != rule(picture.saliency, picture.embedded, 9)
    with pytest.raises(vitcop.BudgetError, match="from 0 on"):
        method(alpha=-0.1)


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
    ("shape", "cell", "middles"),
    [
        ((6, 6), (3, 3), [(1, 1), (1, 4), (4, 1), (4, 4)]),
        ((6, 9), (3, 3), [(1, 1), (1, 4), (1, 7), (4, 1), (4, 4), (4, 7)]),
        ((9, 6), (3, 3), [(1, 1), (1, 4), (4, 1), (4, 4), (7, 1), (7, 4)]),
        ((3, 9), (3, 3), [(1, 1), (1, 4), (1, 7)]),
        ((9, 3), (3, 3), [(1, 1), (4, 1), (7, 1)]),
        # About square still; of two tokens in the middle the first.
        ((4, 6), (2, 3), [(0, 1), (0, 4), (2, 1), (2, 4)]),
        ((1, 26), (1, 2), [(0, column) for column in range(0, 26, 2)]),
    ],
)
def test_average_pooling_where_cells_divide_the_grid(shape, cell, middles):
    """What `avg_pool2d` does; the middle of each cell stands for it."""
    picture = Picture.random((shape,), 0, across=False)
    tokens = tabulate([picture], 0)
    for method in (vitcop.UniformGrid(), vitcop.AveragePool()):
        ((kept, _),), selection = chosen(method, tokens, (len(middles),))
        assert [picture.places[token] for token in kept] == middles
    states = picture.values["embedded"]
    pooled = torch.nn.functional.avg_pool2d(states.T.unflatten(1, shape), cell).flatten(1).T
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


# In a model: the transcriptions get what the model computes while it runs.


class DeepLlava(type(tiny.LLAVA)):
    """With as many encoder layers as CLIP has, so that the 6th, the 9th and the last but one are what is meant."""

    vision = CLIPVisionConfig(**ENCODER | {"num_hidden_layers": 24}, image_size=84, patch_size=14)


FAMILIES = {name: tiny.FAMILIES[name] for name in ("llava_next", "qwen2_vl", "gemma3")} | {"llava": DeepLlava()}


def encoder_layers(family):
    """The encoder layers at 6/24 and 9/24 of the depth, and that of the features, counted from 0."""
    return {"llava": (5, 8, 22), "llava_next": (0, 0, 1)}.get(family.name, (0, 0, 2))


METHODS = {name: method(retention=0.5) for name, method in vitcop.METHODS.items() if name in TABLES}
METHODS["hiprune"] = vitcop.HiPrune(retention=0.8)  # of less there is no anchor


@dataclass(frozen=True)
class Until(vitcop.Pruner):
    """A method that does without the stages from one layer on."""

    method: vitcop.Pruner
    layer: int

    @property
    def encoder_signals(self):
        return self.method.encoder_signals

    def budgets(self, num_tokens, num_layers, first_layer=1):
        budgets = self.method.budgets(num_tokens, num_layers, first_layer)
        return {layer: count for layer, count in budgets.items() if layer < self.layer}

    def select(self, tokens, budget):
        return self.method.select(tokens, budget)


class Recording:
    """What each layer of a model got and made, in a run of a batch; of the decoder, by layer.

    Attributes:
        embedded: what came to the decoder, before any stage.
        asking: queries of layer 0, without rotary embedding: (batch, tokens, heads, head_dim).
        before, after: what came to each layer, and what it got when the stages before it had run.
        keys: of each layer, without rotary embedding: (batch, tokens, heads, head_dim).
        attention: weights of each layer: (batch, heads, queries, keys).
        encoder_keys, encoder_attention: of each layer of the encoder, one or several pictures at a time.
        report: what vitcop says of the run.
    """

    def __init__(self, family, inputs, recorded, method=None):
        recorded.clear()
        model = family.model("recorded")
        decoder, self.norm = model.get_decoder(), model.get_decoder().norm
        self.before, self.after, self.keys, self.encoder_keys = [], [], {}, {}
        encoder_keys = [m for name, m in model.named_modules() if name.endswith(("k_proj", "qkv"))]
        with torch.no_grad(), vitcop.prune(model, method) if method else nullcontext() as pruning:
            decoder.register_forward_pre_hook(self._embedded, prepend=True, with_kwargs=True)
            for layer in decoder.layers:
                layer.register_forward_pre_hook(lambda _, args: self.before.append(args[0]), prepend=True)
                layer.register_forward_pre_hook(lambda _, args: self.after.append(args[0]))
                keys = getattr(layer.self_attn, "k_norm", layer.self_attn.k_proj)
                keys.register_forward_hook(partial(self._keys, layer.self_attn.layer_idx))
                encoder_keys.remove(layer.self_attn.k_proj)
            first = decoder.layers[0].self_attn
            getattr(first, "q_norm", first.q_proj).register_forward_hook(self._queries)
            for number, module in enumerate(encoder_keys):
                module.register_forward_hook(partial(self._encoder_keys, number))
            model(**inputs)
            self.report = pruning.report if method else None
        self.attention = [recorded.pop(layer.self_attn)[0] for layer in decoder.layers]
        self.encoder_attention = list(recorded.values())

    def _embedded(self, module, args, kwargs):
        self.embedded = kwargs["inputs_embeds"]

    def _keys(self, layer, module, args, output):
        batched = output.transpose(1, 2) if output.dim() == 4 else output.unflatten(-1, (2, 8))  # KV heads
        self.keys.setdefault(layer, batched)  # some are made again

    def _queries(self, module, args, output):
        self.asking = output.transpose(1, 2) if output.dim() == 4 else output.unflatten(-1, (4, 8))

    def _encoder_keys(self, layer, module, args, output):
        heads = output.unflatten(-1, (-1, 4, 8))  # of Qwen queries, keys and values
        self.encoder_keys[layer] = heads.select(-3, heads.shape[-3] // 2)


def from_cls(weights):
    return torch.cat([picture[:, :, 0, 1:].sum(1).flatten() for picture in weights])


def received(weights, has_cls):
    return torch.cat([picture.mean((1, 2))[:, has_cls:].flatten() for picture in weights])


def patches(family, grids):
    """Numbers of the patches of which each token of an image is made, and how many the image has."""
    side = 1 if family.has_cls else 2
    first = [0, *accumulate(rows * columns * side**2 for rows, columns in grids.shapes)]
    numbers = []
    for grid, row, column in grids.cells:
        columns = grids.shapes[grid][1]
        if family.name == "qwen2_vl":
            inside = [(row * columns + column) * 4 + n for n in range(4)]
        else:
            corners = itertools.product(range(side), range(side))
            inside = [(row * side + i) * columns * side + column * side + j for i, j in corners]
        numbers.append([first[grid] + number for number in inside])
    return torch.tensor(numbers), first[-1]


def pictures_in(family, inputs, report, run, layer, ahead=False):
    """What a method may look at before a layer, of each image of a batch: rows are the tokens alive until then."""
    ids = inputs["input_ids"]
    real = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    columns = run.report.positions_at(max(layer - 1, 0)) if layer and run.report else None
    first_column, first_patch = [0] * len(ids), 0
    for image, (grids, row) in enumerate(zip(report.images, report.rows, strict=True)):
        placeholders = (ids[row] == IMAGE).nonzero()[first_column[row] :][: grids.placeholders, 0]
        first_column[row] += grids.placeholders
        text = (real[row] & (ids[row] != IMAGE) & (torch.arange(ids.shape[1]) > placeholders[-1])).nonzero()[:, 0]
        stages = [stage for stage in report.stages if stage.layer < layer]
        alive = torch.tensor(stages[-1].kept(image)) if stages else torch.arange(grids.num_tokens)
        prompt = placeholders[grids.visual][alive]

        def at(places, row=row):
            """Where the layers before have these columns of the prompt."""
            return places if columns is None else torch.tensor([columns[row].tolist().index(p) for p in places])

        tokens, words = at(prompt), at(text)
        values = {
            "cells": torch.tensor(grids.cells)[alive],
            "embedded": run.embedded[row, prompt],
            "entered": run.embedded[row, placeholders[grids.visual]],
            "words": run.embedded[row, text],
        }
        if layer:
            keys = run.keys[layer - 1][row]
            states = run.before[layer][row]
            weights = run.attention[layer - (not ahead)][row].mean(0)
            values |= {
                "keys": keys[tokens],
                "word_keys": keys[words],
                "states": states[tokens],
                "word_states": states[words],
                "normed_states": run.norm(states[tokens]),
                "normed_word_states": run.norm(states[words]),
                "last": weights[-1, tokens],
                "asked": weights[words][:, tokens],
            }
        else:
            attention, (shallow, middle, used) = run.encoder_attention, encoder_layers(family)
            numbers, count = patches(family, grids)
            numbers += first_patch
            first_patch += count
            salient = from_cls if family.has_cls else partial(received, has_cls=False)
            signals = {
                "keys": run.encoder_keys[used][..., family.has_cls :, :, :].reshape(-1, 4, 8),
                "saliency": salient(attention[used]),
                "shallow": salient(attention[shallow]),
                "received": received(attention[used], family.has_cls),
                "middle": received(attention[middle], family.has_cls),
            }
            values |= {name: value[numbers].mean(1) for name, value in signals.items()}
            values |= {"asking": run.asking[row, text], "offered": run.keys[0][row, prompt]}
        yield Picture(grids.shapes, values), prompt.tolist(), alive.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_models(name, family, recorded):
    family, method = FAMILIES[family], METHODS[name]
    inputs = tiny.batch(tiny.RAGGED, family=family)
    pruned, dense = Recording(family, inputs, recorded, method), Recording(family, inputs, recorded)
    for number, stage in enumerate(pruned.report.stages):
        ahead = name == "pyramiddrop"
        run = pruned if number else dense
        if ahead and number:
            run = Recording(family, inputs, recorded, Until(method, stage.layer, positions=method.positions))
        rule = TABLES.get(f"{name}, decoder" if number else name, TABLES[name])[2]
        images = pictures_in(family, inputs, pruned.report, run, stage.layer, ahead)
        for image, (picture, prompt, alive) in enumerate(images):
            kept, groups = rule(picture, stage.after[image])
            assert stage.kept(image) == [alive[token] for token in kept]
            assert stage.merged(image) == {alive[t]: [alive[m] for m in group] for t, group in groups.items()}

            row, columns = pruned.report.rows[image], pruned.report.positions_at(stage.layer)
            states = torch.tensor(picture.states if stage.layer else picture.embedded, dtype=torch.float32)
            slots = [columns[row].tolist().index(prompt[token]) for token in kept]
            left = pruned.after[stage.layer][row, slots]
            torch.testing.assert_close(left, merged(name, states, kept, groups), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("signal", ["last_query", "question"])
@pytest.mark.parametrize("family", FAMILIES)
def test_vitcop_by_rows_of_attention(family, signal, recorded):
    """Stage II in each cluster, and stage III, before which two others have dropped and merged."""
    family, method = FAMILIES[family], vitcop.ViTCoP(retention=0.4, shallow_signal=signal, deep_signal=signal)
    inputs = tiny.batch(tiny.RAGGED, family=family)
    run = Recording(family, inputs, recorded, method)
    _, shallow, deep = run.report.stages

    def received(picture):
        return picture.last if signal == "last_query" else literal.mean_vector(picture.asked)

    for image, (picture, _, alive) in enumerate(pictures_in(family, inputs, run.report, run, deep.layer)):
        kept = [alive[token] for token in literal.fastv(received(picture), deep.after[image])]
        assert deep.kept(image) == kept and len(kept) < len(alive)
    chosen = 0
    for image, (picture, _, alive) in enumerate(pictures_in(family, inputs, run.report, run, shallow.layer)):
        attention = dict(zip(alive, received(picture), strict=True))
        clusters, merged = shallow.clusters(image), shallow.merged(image)
        own = set(shallow.kept(image)) - set(merged)
        for cluster in set(clusters.values()):
            members = {token for token in alive if clusters[token] == cluster}
            chosen += bool(members & own)
            most = max((attention[token] for token in members - own), default=-1)
            assert all(attention[token] >= most for token in members & own)
    assert chosen
