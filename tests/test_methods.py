"""What every method has in common."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vitcop import average
from transformers import DynamicCache

import vitcop
from docs.methods_page import page
from vitcop.ops.segments import smallest_per_segment
from vitcop.pruner import LITERATURE_LAYERS, LITERATURE_TOKENS, preset_retention

PRESETS = [
    (method, name, tokens)
    for method, kind in vitcop.METHODS.items()
    for name, schedules in kind.presets.items()
    for tokens in schedules
]


def test_the_page_is_up_to_date_and_the_readme_names_every_method():
    assert Path("docs/methods.md").read_text() == page(), "make docs"
    readme = Path("README.md").read_text()
    assert [kind.__name__ for kind in vitcop.METHODS.values() if f"`{kind.__name__}`" not in readme] == []


@pytest.mark.parametrize(("method", "name", "tokens"), PRESETS)
def test_presets_average_what_their_schedules_do(method, name, tokens):
    kind = vitcop.METHODS[method]
    pruner = kind.preset(name, tokens=tokens)
    counts = {0: LITERATURE_TOKENS}
    alive = average(counts | pruner.budgets(LITERATURE_TOKENS, LITERATURE_LAYERS), LITERATURE_LAYERS)
    assert abs(alive - average(counts | kind.presets[name][tokens], LITERATURE_LAYERS)) <= 1


def test_presets_are_true_averages_and_unknown_ones_are_answered():
    assert preset_retention({2: 64}) == 96 / 576
    assert preset_retention({0: 172, 2: 77, 22: 15}) == (2 * 172 + 20 * 77 + 10 * 15) / (32 * 576)
    assert vitcop.ViTCoP.preset("paper", tokens=64, radius=0.5).radius == 0.5
    with pytest.raises(vitcop.VitcopError, match="Did you mean 'paper'"):
        vitcop.ViTCoP.preset("papers", tokens=64)
    with pytest.raises(vitcop.VitcopError, match="is for 64, 128, 192 tokens; got 65"):
        vitcop.ViTCoP.preset("paper", tokens=65)


@pytest.mark.parametrize("name", vitcop.METHODS)
def test_settings_survive_json(name):
    method = vitcop.METHODS[name](retention=0.25)
    assert vitcop.Pruner.from_json(method.to_json()) == method
    assert json.loads(method.to_json())["method"] == name


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(vitcop.VitcopError, match="Did you mean 'vitcop'"):
        vitcop.Pruner.from_dict({"method": "vitcap"})
    with pytest.raises(vitcop.VitcopError, match="is an object"):
        vitcop.Pruner.from_json("[1]")
    with pytest.raises(vitcop.VitcopError, match="not JSON"):
        vitcop.Pruner.from_json("{")
    with pytest.raises(vitcop.VitcopError, match="Did you mean 'retention'"):
        vitcop.Pruner.from_dict({"method": "vitcop", "retentoin": 0.1})


@settings(max_examples=200)
@given(st.integers(1, 3000), st.integers(4, 80), st.floats(0, 1), st.sampled_from([vitcop.KNorm, vitcop.Random]))
def test_one_stage_methods_average_the_retention(num_tokens, num_layers, share, kind):
    layer = 2 if kind is vitcop.KNorm else 0
    floor = (layer * num_tokens + num_layers - layer) / (num_layers * num_tokens)
    retention = floor + share * (1 - floor)
    budgets = kind(retention=retention).budgets(num_tokens, num_layers)
    counts = {0: num_tokens} | budgets
    assert abs(average(counts, num_layers) - retention * num_tokens) <= 1


def test_below_the_floor_names_it():
    with pytest.raises(vitcop.BudgetError, match=r"0\.06413, the smallest"):
        vitcop.KNorm(retention=0.05).budgets(576, 32)
    with pytest.raises(vitcop.BudgetError, match="one of the 8 decoder layers"):
        vitcop.KNorm(layer=8).budgets(576, 8)
    with pytest.raises(vitcop.BudgetError, match="at least 2"):
        vitcop.KNorm(layer=1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=5), st.integers(0, 10**6))
def test_smallest_of_each_segment(sizes, seed):
    lengths, budgets = [n for n, _ in sizes], [min(n, k) for n, k in sizes]
    values = torch.randint(5, (sum(lengths),), generator=torch.Generator().manual_seed(seed)).float()  # with ties
    kept, start = [], 0
    for n, k in zip(lengths, budgets, strict=True):
        kept += sorted(sorted(range(start, start + n), key=lambda i: (values[i], i))[:k])
        start += n
    assert smallest_per_segment(values, lengths, budgets).tolist() == kept


def test_random_is_uniform_and_follows_its_seed():
    """Each of 64 tokens is kept about as often as any other over 2,000 seeds."""
    index = torch.arange(64)
    counts = torch.zeros(64)
    for seed in range(2000):
        score = vitcop.Random(seed=seed).score(_tokens(index))
        counts[score.topk(16).indices] += 1
    # Binomial(2000, 1/4): standard deviation 19; 64 draws stay within 4 of it.
    assert (counts - 500).abs().max() < 78
    assert torch.equal(vitcop.Random(seed=3).score(_tokens(index)), vitcop.Random(seed=3).score(_tokens(index)))


def _tokens(index):
    n = len(index)
    empty = torch.zeros(n, 1)
    return vitcop.VisualTokens(
        0, 0, (n,), empty, empty[..., None], index, torch.zeros(n, 2), empty[:, 0], torch.zeros_like(index), ((n,),)
    )


@dataclass(frozen=True)
class Wrong(tiny.ThreeStages):
    """A method of somebody's own, with a mistake in its last stage."""

    mistake: str = ""

    def select(self, tokens, budget):
        selection = super().select(tokens, budget)
        keep, rows = selection.keep, len(tokens.index)
        if tokens.layer < 5:
            return selection
        wrong = {
            "unsorted": {"keep": keep.flip(0)},
            "repeated": {"keep": keep[[0, *range(len(keep) - 1)]]},
            "negative": {"keep": keep - rows},
            "too few": {"keep": keep[1:]},
            "mask": {"keep": torch.zeros(rows, dtype=torch.bool).index_fill(0, keep, True)},
            "counts": {"keep": torch.arange(len(keep))},
            "merge range": {"merge": torch.full((rows,), len(keep))},
            "merge image": {"merge": torch.zeros(rows, dtype=torch.long)},
            "merge shape": {"merge": torch.zeros(1, dtype=torch.long)},
            "reduction": {"reduction": "add"},
            "labels": {"labels": {"cluster": keep}},
            "list": {"keep": keep.tolist()},
            "merge type": {"merge": torch.full((rows,), -1.0)},
        }[self.mistake]
        # Past the type check of the test run, which a user does not have.
        for name, value in wrong.items():
            object.__setattr__(selection, name, value)
        return selection


MISTAKES = ("unsorted", "repeated", "negative", "too few", "mask", "counts", "reduction", "labels", "list")


@pytest.mark.parametrize("mistake", [*MISTAKES, "merge range", "merge image", "merge shape", "merge type"])
def test_a_wrong_selection_is_never_taken(mistake):
    model = tiny.LLAVA.model()
    cache = DynamicCache()
    with torch.no_grad(), vitcop.prune(model, Wrong(mistake=mistake)):
        with pytest.raises(vitcop.VitcopError, match="election"):
            model(**tiny.batch(tiny.RAGGED), past_key_values=cache)
        with pytest.raises(vitcop.UnsupportedModelError, match="no longer holds"):
            model(input_ids=torch.tensor([[5]] * 3), past_key_values=cache)


def test_merging_where_nothing_is_dropped_is_never_taken():
    tokens = _tokens(torch.arange(4))
    for lengths, budget, valid in (((4,), (4,), False), ((4,), (3,), True), ((2, 2), (2, 1), False)):
        part = replace(tokens, lengths=lengths)
        selection = vitcop.Selection(torch.arange(sum(budget)), torch.tensor([0, -1, -1, -1]))
        assert part.allows(selection, budget).item() == valid


@dataclass(frozen=True)
class Impossible(tiny.ThreeStages):
    """A method whose schedule cannot be carried out."""

    schedule: dict = field(default_factory=dict)

    def budgets(self, num_tokens, num_layers, first_layer=1):
        return self.schedule


@pytest.mark.parametrize("schedule", [{}, {0: 0}, {0: 5, 2: 9}, {9: 5}, {0: 5.0}, {2.5: 5}], ids=str)
def test_an_impossible_schedule_is_never_taken(schedule):
    model, method = tiny.LLAVA.model(), Impossible(schedule=schedule)
    with torch.no_grad(), vitcop.prune(model, method), pytest.raises(vitcop.BudgetError):
        model(**tiny.batch([tiny.ONE_IMAGE]))
