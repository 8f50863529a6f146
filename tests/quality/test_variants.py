"""Variants of a method keep as much as it does, and something else."""

import pytest
import tiny
import torch
from literal import average

import vitcop
from vitcop.quality.variants import ABLATIONS, VARIANTS

RETENTION = 0.3


def run(method):
    model = tiny.LLAVA.model()
    with torch.no_grad(), vitcop.prune(model, method) as pruning:
        pruning._family.key_cutoff = 0.2  # neither a fixed one nor the one derived from the data
        logits = model(**tiny.batch([tiny.ONE_IMAGE])).logits[:, -1]
    return logits, pruning.report.average_retention()


@pytest.fixture(scope="module")
def whole():
    return {name: run(vitcop.METHODS[name](RETENTION))[0] for name in ABLATIONS}


@pytest.mark.parametrize(("stage", "layers"), [("I", [0, 2, 22]), ("II", [0, 22]), ("III", [0, 2])])
def test_the_stage_that_is_named_is_left_out(stage, layers):
    method, whole = VARIANTS[f"without stage {stage}"](1 / 9), vitcop.ViTCoP(1 / 9)
    budgets = method.budgets(576, 32)
    assert list(budgets) == layers and (budgets[0] == 576) == (stage == "I")
    assert method.stages == tuple(whole.stages[[0, 2, 22].index(layer)] for layer in layers)


@pytest.mark.parametrize(("method", "name"), [(method, name) for method in ABLATIONS for name in ABLATIONS[method]])
def test_a_variant_keeps_as_much_and_something_else(method, name, whole):
    for retention in (1 / 9, 2 / 9, 1 / 3):
        budgets = VARIANTS[name](retention).budgets(576, 32)
        assert abs(average(budgets, 32) - retention * 576) <= 1
    logits, kept = run(VARIANTS[name](RETENTION))
    assert abs(kept - RETENTION) * tiny.TOKENS_PER_IMAGE <= 1
    assert torch.equal(logits, whole[method]) == (name == next(iter(ABLATIONS[method])))
