"""How much work pruning is, counted and not timed: operators, what waits for the device, and memory."""

import sys
from collections import Counter

import pytest
import tiny
import torch
from families import FAMILIES
from torch.utils._python_dispatch import TorchDispatchMode

import vitcop
from vitcop.prefill import Prefill

VITCOP = tiny.METHODS["vitcop"]

aten = torch.ops.aten
READING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
}
"""The host waits for what these find in a tensor."""


class Work(TorchDispatchMode):
    """Operators that run: a launch each, or a few, on a GPU. Views are none."""

    def __init__(self):
        super().__init__()
        self.counts, self.waits = Counter(), Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if not operator.is_view:
            self.counts[operator] += 1
        if self._waits(operator, args, kwargs or {}):
            self.waits[operator] += 1
        return operator(*args, **kwargs or {})

    def _waits(self, operator, args, kwargs):
        if operator == aten.lift_fresh.default:
            return not _is_called("upload")  # by which lists go to the device unawaited
        if operator == aten.index.Tensor:
            return any(index is not None and index.dtype == torch.bool for index in args[1])
        if operator == aten.repeat_interleave.Tensor:
            return kwargs.get("output_size") is None
        return operator in READING


def _is_called(name):
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame is not None


@pytest.fixture
def stages(monkeypatch):
    """The work of each stage: observing, selecting, merging and packing."""
    found, stage = [], Prefill._stage

    def worked(self, *args):
        with Work() as work:
            result = stage(self, *args)
        found.append(work)
        return result

    monkeypatch.setattr(Prefill, "_stage", worked)
    return found


def prefill(model, inputs, method):
    with torch.no_grad(), vitcop.prune(model, method):
        model(**inputs)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_stage_of_vitcop_waits_for_the_device(name, stages):
    family = FAMILIES[name]
    prefill(family.model(), tiny.batch(tiny.ragged(family), family=family), VITCOP)
    assert len(stages) == 3
    assert not sum((work.waits for work in stages), Counter())
