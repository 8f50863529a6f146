"""What every method has in common."""

import json
import re
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import tiny
import torch
from families.base import IMAGE
from hypothesis import given
from hypothesis import strategies as st
from literal import average
from tables import table
from transformers import DynamicCache

import vitcop
from docs.methods_page import page
from vitcop.ops.segments import smallest_per_segment
from vitcop.selection.pruner import LITERATURE_LAYERS, LITERATURE_TOKENS, checked_budgets, preset_retention

PRESETS = [
    (method, name, tokens)
    for method, kind in vitcop.METHODS.items()
    for name, schedules in kind.presets.items()
    for tokens in schedules
]


def test_the_page_is_up_to_date_and_the_readme_names_every_method():
    root = Path(__file__).parents[2]
    assert (root / "docs" / "methods.md").read_text(encoding="utf-8") == page(), "make docs"
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert [kind.__name__ for kind in vitcop.METHODS.values() if f"`{kind.__name__}`" not in readme] == []


@pytest.mark.parametrize(("method", "name", "tokens"), PRESETS)
def test_presets_give_the_schedules_of_the_literature(method, name, tokens):
    kind = vitcop.METHODS[method]
    pruner = kind.preset(name, tokens=tokens)
    schedule = kind.presets[name][tokens]
    assert pruner.budgets(LITERATURE_TOKENS, LITERATURE_LAYERS) == schedule
    assert abs(pruner.retention - preset_retention(schedule)) * LITERATURE_TOKENS < 0.5


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


def test_a_number_of_tokens_stands_for_the_retention():
    method = vitcop.ViTCoP(tokens=64)
    assert method.share_of(576) == 64 / 576 and method.share_of(60) == 1
    assert vitcop.Pruner.from_json(method.to_json()) == method and repr(method) == "ViTCoP(tokens=64)"
    budgets = vitcop.ViTCoP(retention=64 / 576).budgets(576, 32)
    assert checked_budgets(method, 576, 32, range(1, 32)) == budgets and set(
        checked_budgets(method, 60, 32, range(1, 32)).values()
    ) == {60}
    with pytest.raises(vitcop.BudgetError, match="give one"):
        vitcop.ViTCoP(retention=0.5, tokens=64)
    with pytest.raises(vitcop.BudgetError, match="give one"):  # also where it is the default
        vitcop.Pruner.from_dict({"method": "vitcop", "retention": 1 / 9, "tokens": 64})
    with pytest.raises(vitcop.BudgetError, match="at least 1; got 0"):
        vitcop.ViTCoP(tokens=0)
    with pytest.raises(vitcop.BudgetError, match="no setting `retention`"):
        tiny.ThreeStages(tokens=64)
    assert "retention" not in method.to_dict() and "tokens" not in vitcop.ViTCoP().to_dict()
    assert replace(method, tokens=None) == vitcop.ViTCoP()
    with pytest.raises(vitcop.BudgetError, match=r"With tokens=10, of 576 visual tokens: retention=0\.01736 is below"):
        checked_budgets(vitcop.PyramidDrop(tokens=10), 576, 32, range(1, 32))
    with pytest.raises(vitcop.VitcopError, match="`tokens` is a setting of every method"):
        type("OfOnesOwn", (vitcop.VisionZip,), {"__annotations__": {"tokens": "int"}})


def test_a_decoder_without_a_layer_for_stages_is_pruned_at_its_entrance_alone():
    assert checked_budgets(vitcop.VisionZip(), 576, 8, range(8, 8)) == {0: 64}
    with pytest.raises(vitcop.BudgetError, match="can be pruned at 0 alone"):
        checked_budgets(tiny.ThreeStages(), 576, 8, range(8, 8))


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(vitcop.VitcopError, match="Did you mean 'vitcop'"):
        vitcop.Pruner.from_dict({"method": "vitcap"})
    with pytest.raises(vitcop.VitcopError, match="is an object"):
        vitcop.Pruner.from_json("[1]")
    for text in ("{", "1" * 5000, "[" * 100_000):
        with pytest.raises(vitcop.VitcopError, match="not JSON"):
            vitcop.Pruner.from_json(text)
    with pytest.raises(vitcop.VitcopError, match="Did you mean 'retention'"):
        vitcop.Pruner.from_dict({"method": "vitcop", "retentoin": 0.1})


@pytest.mark.parametrize("name", vitcop.METHODS)
@given(st.integers(1, 3000), st.integers(8, 80), st.integers(1, 4), st.floats(0, 1))
def test_every_method_averages_every_retention_down_to_the_floor_it_names(
    name, num_tokens, num_layers, first_layer, share
):
    kind = vitcop.METHODS[name]

    def alive(retention):
        budgets = kind(retention=retention).budgets(num_tokens, num_layers, first_layer)
        counts = [num_tokens, *budgets.values()]
        assert counts == sorted(counts, reverse=True) and counts[-1] >= 1
        assert all(layer == 0 or first_layer <= layer < num_layers for layer in budgets)
        assert list(budgets) == sorted(budgets)
        least = average({0: num_tokens} | dict.fromkeys(budgets, 1), num_layers)
        return average({0: num_tokens} | budgets, num_layers), least

    assert alive(1.0)[0] == num_tokens
    retention = max(share, 1e-9)
    try:
        found, least = alive(retention)
    except vitcop.BudgetError as error:
        floor = float(re.search(r"below (\S+), the smallest|settings (\S+) to", str(error)).group(1) or 1 / num_tokens)
        assert retention <= floor * (1 + 1e-3)
        retention = min(1.0, floor * (1 + 1e-3))  # rounded in the message
        found, least = alive(retention)
    asked = retention * num_tokens
    assert least - asked <= 1
    # Every count is rounded to the nearest; ViTCoP's formula rounds twice.
    assert abs(found - max(asked, least)) <= (1 if name == "vitcop" else 0.5 + 1e-6)


@pytest.mark.parametrize("name", [name for name, kind in vitcop.METHODS.items() if name not in ("knorm", "vitcop")])
def test_methods_of_the_entrance_reach_the_least(name):
    kind = vitcop.METHODS[name]
    if kind.described.where == "entrance":
        assert all(kind(retention=1 / count).budgets(count, 28) == {0: 1} for count in range(1, 60))


def test_below_the_floor_names_it():
    with pytest.raises(vitcop.BudgetError, match=r"0\.06413, the smallest that knorm"):
        vitcop.KNorm(retention=0.05).budgets(576, 32)
    with pytest.raises(vitcop.BudgetError, match="one of the 8 decoder layers"):
        vitcop.KNorm(layer=8).budgets(576, 8)
    with pytest.raises(vitcop.BudgetError, match="at least 2"):
        vitcop.KNorm(layer=1)
    for kind in (vitcop.FastV, vitcop.DART, vitcop.VScan):
        with pytest.raises(vitcop.BudgetError, match=f"{kind.__name__} looks at decoder layer 0 or a later one"):
            kind(layer=0)


@pytest.mark.parametrize("name", vitcop.METHODS)
def test_small_images_keep_one_token_in_each_stage(name):
    method = vitcop.METHODS[name](retention=1 / 9)
    for num_tokens in range(1, 40):
        budgets = checked_budgets(method, num_tokens, 32, range(1, 32))
        least = average({0: num_tokens} | dict.fromkeys(budgets, 1), 32)
        assert abs(average({0: num_tokens} | budgets, 32) - num_tokens / 9) <= 1
        if least > num_tokens / 9 + 1e-9:
            assert set(budgets.values()) == {1}
            with pytest.raises(vitcop.BudgetError, match=f"below {least / num_tokens:.4g}, what {name}"):
                checked_budgets(method, num_tokens, 32, range(1, 32), "refuse")
        else:
            assert checked_budgets(method, num_tokens, 32, range(1, 32), "refuse") == budgets


def test_low_averages_of_pyramiddrop_move_the_cuts_forward():
    assert list(vitcop.PyramidDrop(retention=0.6).budgets(576, 32)) == [8, 16, 24]
    assert vitcop.PyramidDrop(retention=0.4).budgets(576, 32) == {4: 300, 13: 161, 22: 92}
    assert list(vitcop.PyramidDrop(retention=1 / 9).budgets(576, 32)) == [2, 12, 22]
    with pytest.raises(vitcop.BudgetError, match=r"below 0\.2513, the smallest"):
        vitcop.PyramidDrop(retention=0.2, layers=(8, 16, 24)).budgets(576, 32)


def test_pyramiddrop_of_few_tokens_cuts_where_it_can():
    """An eighth of two tokens is one: late cuts cannot average what earlier ones can."""
    assert vitcop.PyramidDrop(retention=0.6).budgets(2, 12) == {2: 1, 5: 1, 8: 1}


def test_layers_of_the_paper_are_the_nearest_in_other_decoders():
    assert list(vitcop.SparseVLM(retention=0.3).budgets(576, 28)) == [3, 6, 14]


def pipeline(**settings):
    stages = [vitcop.Stage(vitcop.VisionZip(), 0, 0.3), vitcop.Stage(vitcop.KNorm(), 16, 0.1)]
    return vitcop.Pipeline(stages, **settings)


@given(st.integers(1, 3000), st.floats(0, 1))
def test_a_pipeline_averages_its_retention(num_tokens, share):
    retention = max(share, 1 / num_tokens)
    budgets = pipeline(retention=retention).budgets(num_tokens, 32)
    assert abs(average(budgets, 32) - retention * num_tokens) <= 1


def test_a_pipeline_of_vitcops_stages_is_vitcop():
    method = vitcop.ViTCoP(retention=0.3, positions="keep")
    model, inputs = tiny.LLAVA.model(), tiny.batch(tiny.RAGGED)
    shares = [count / 36 for count in method.budgets(36, 8).values()]
    pieces = zip(method.stages, method.budgets(36, 8), shares, strict=True)
    own = vitcop.Pipeline([vitcop.Stage(*piece) for piece in pieces], retention=preset_average(method))
    logits = []
    for each in (method, own):
        with torch.no_grad(), vitcop.prune(model, each):
            logits.append(model(**inputs).logits)
    assert torch.equal(*logits)


def preset_average(method):
    return average(method.budgets(36, 8), 8) / 36


def test_a_pipeline_survives_json_and_refuses_what_it_cannot_do():
    stages = [vitcop.Stage(vitcop.SalientClusters(), 0, 0.5), vitcop.Stage(vitcop.MergeClusters(), 2, 0.2)]
    own = vitcop.Pipeline(stages, retention=0.2, positions="compact")
    assert vitcop.Pruner.from_json(own.to_json()) == own
    with pytest.raises(vitcop.VitcopError, match="Did you mean 'fastv'"):
        vitcop.Pruner.from_dict(own.to_dict() | {"stages": [{"selector": {"method": "fasvt"}, "layer": 2, "share": 1}]})
    with pytest.raises(vitcop.VitcopError, match="several stages"):
        vitcop.Stage(vitcop.ViTCoP(), 0, 0.5)
    for selector in (vitcop.KNorm(), vitcop.DART(), vitcop.FastV()):
        with pytest.raises(vitcop.BudgetError, match="looks at decoder layer"):
            vitcop.Stage(selector, 0, 0.5)
    with pytest.raises(vitcop.BudgetError, match="cannot rise"):
        vitcop.Pipeline(stages[::-1])
    with pytest.raises(vitcop.VitcopError, match="at least one stage"):
        vitcop.Pipeline([])
    model = tiny.LLAVA.model()
    for method, error in (
        (vitcop.Pipeline([vitcop.Stage(vitcop.MergeClusters(), 2, 0.5)], 0.5), "put SalientClusters before"),
        (
            vitcop.Pipeline([vitcop.Stage(vitcop.KNorm(), 2, 0.5), vitcop.Stage(vitcop.VisionZip(), 4, 0.2)], 0.5),
            "first",
        ),
    ):
        with torch.no_grad(), vitcop.prune(model, method), pytest.raises(vitcop.VitcopError, match=error):
            model(**tiny.batch([tiny.ONE_IMAGE]))


@pytest.mark.parametrize("name", [name for name, kind in vitcop.METHODS.items() if not hasattr(kind, "stages")])
def test_behind_another_stage_a_method_chooses_or_says_why_it_cannot(name):
    """What shares a budget over tiles must see all tokens."""
    stages = [vitcop.Stage(vitcop.Random(), 0, 0.5), vitcop.Stage(vitcop.METHODS[name](), 5, 0.2)]
    model = tiny.LLAVA.model()
    with torch.no_grad(), vitcop.prune(model, vitcop.Pipeline(stages, retention=0.4)):
        try:
            model(**tiny.batch(tiny.RAGGED))
        except vitcop.VitcopError as error:
            assert "make it the first stage" in str(error) or "before the decoder" in str(error)


@pytest.mark.parametrize("name", tiny.METHODS)
def test_methods_that_read_the_question_need_one(name):
    model, inputs = tiny.LLAVA.model(), tiny.batch([tiny.ONE_IMAGE])
    end = int((inputs["input_ids"] == IMAGE).nonzero()[-1, 1]) + 1
    inputs["input_ids"] = inputs["input_ids"][:, :end]
    needs = name in ("sparsevlm", "deft", "hawk", "cdpruner", "mmtok", "vitcop_question")
    refused = pytest.raises(vitcop.VitcopError, match="put the question there") if needs else nullcontext()
    with torch.no_grad(), vitcop.prune(model, tiny.METHODS[name]) as pruning, refused:
        model(**inputs)
    assert (pruning.report is None) == needs


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=5), st.integers(0, 10**6))
def test_smallest_of_each_segment(sizes, seed):
    lengths, budgets = [n for n, _ in sizes], [min(n, k) for n, k in sizes]
    values = torch.randint(5, (sum(lengths),), generator=torch.Generator().manual_seed(seed)).float()  # with ties
    known, values[values == 4] = values.clone(), torch.nan  # which must not be taken for padding
    kept, start = [], 0
    for n, k in zip(lengths, budgets, strict=True):
        kept += sorted(sorted(range(start, start + n), key=lambda i: (known[i], i))[:k])
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
    return table((int(index.max()) + 1,)).take(index, (len(index),))


@dataclass(frozen=True)
class Wrong(tiny.ThreeStages):
    """A method of somebody's own, with a mistake in one of its stages."""

    mistake: str = ""
    stage: int = 2

    def select(self, tokens, budget):
        selection = super().select(tokens, budget)
        keep, rows = selection.keep, len(tokens.index)
        if tokens.stage != self.stage:
            return selection
        wrong = {
            "unsorted": {"keep": keep.flip(0)},
            "repeated": {"keep": keep[[0, *range(len(keep) - 1)]]},
            "twice": {"keep": keep[[0, 0, *range(2, len(keep))]]},  # and of each image as many as it may keep
            "negative": {"keep": keep - rows},
            "too few": {"keep": keep[1:]},
            "mask": {"keep": torch.zeros(rows, dtype=torch.bool).index_fill(0, keep, True)},
            "counts": {"keep": torch.arange(len(keep))},
            "range": {"keep": keep + rows},
            "merge range": {"merge": torch.full((rows,), len(keep))},
            "merge image": {"merge": torch.zeros(rows, dtype=torch.long)},
            "merge shape": {"merge": torch.zeros(1, dtype=torch.long)},
            "reduction": {"reduction": "add"},
            "labels": {"labels": {"cluster": keep}},
            "list": {"keep": keep.tolist()},
            "merge type": {"merge": torch.full((rows,), -1.0)},
            "narrow": {"keep": keep.int()},
        }[self.mistake]
        # Past the type check of the test run, which a user does not have.
        for name, value in wrong.items():
            object.__setattr__(selection, name, value)
        return selection


MISTAKES = (
    "unsorted",
    "repeated",
    "twice",
    "negative",
    "too few",
    "mask",
    "counts",
    "range",
    "narrow",
    "reduction",
    "labels",
    "list",
)


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("mistake", [*MISTAKES, "merge range", "merge image", "merge shape", "merge type"])
def test_a_wrong_selection_is_never_taken(mistake, stage):
    model = tiny.LLAVA.model()
    cache = DynamicCache()
    with torch.no_grad(), vitcop.prune(model, Wrong(mistake=mistake, stage=stage)):
        with pytest.raises(vitcop.VitcopError, match="election"):
            model(**tiny.batch(tiny.RAGGED), past_key_values=cache)
        if cache.layers:  # what is seen at the entrance leaves it empty
            with pytest.raises(vitcop.UnsupportedModelError, match="no longer holds"):
                model(input_ids=torch.tensor([[5]] * 3), past_key_values=cache)


@dataclass(frozen=True)
class Misled(tiny.ThreeStages):
    """A method of somebody's own that chooses a token twice where numbers are none."""

    def select(self, tokens, budget):
        selection = super().select(tokens, budget)
        return vitcop.Selection(selection.keep.masked_fill(tokens.saliency.isnan().any(), 0))


def test_a_wrong_selection_of_a_picture_that_is_not_finite_says_so():
    model, inputs = tiny.LLAVA.model(), tiny.batch([tiny.ONE_IMAGE, tiny.Prompt(images=1, seed=7)])
    inputs["pixel_values"][1] = torch.nan
    refused = pytest.raises(vitcop.VitcopError, match="features of image 1 of the batch are not finite")
    with torch.no_grad(), vitcop.prune(model, Misled()), refused:
        model(**inputs)


@pytest.mark.parametrize("keep", [[1, 4], [-1, 1]])
def test_rows_beyond_a_single_image_are_never_taken(keep):
    """Clamped, as a GPU needs them, they are rows of the same image."""
    assert not vitcop.Selection(torch.tensor(keep)).allows((4,), (2,))


def test_merging_where_nothing_is_dropped_is_never_taken():
    for lengths, budget, valid in (((4,), (4,), False), ((4,), (3,), True), ((2, 2), (2, 1), False)):
        selection = vitcop.Selection(torch.arange(sum(budget)), torch.tensor([0, -1, -1, -1]))
        assert selection.allows(lengths, budget) == valid


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
