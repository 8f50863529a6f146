"""A short soak: requests that fail, are given up or come at once leave nothing behind, and no answer is another's."""

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.soak import evaluation, prefix, threads
from benchmarks.soak.traces import Outcome, Traces
from vitcop.builtin import MODEL_PATH


@pytest.fixture(scope="module")
def box():
    model = AutoModelForImageTextToText.from_pretrained(MODEL_PATH, dtype="float32").eval()
    return model, AutoProcessor.from_pretrained(MODEL_PATH)


def test_threads(box):
    check_ended(threads.soak(*box, requests=28, different=4))


def test_prefix(box):
    check_ended(prefix.soak(*box, requests=28, pictures=2, questions=2))


def check_ended(outcome):
    """Two failures are injected, and three leave, of whom some may have failed before: whoever comes first."""
    assert outcome.clean, outcome
    assert outcome.failed == 2 and outcome.cancelled in (1, 2, 3), outcome
    assert outcome.right == 28 - outcome.failed - outcome.cancelled, outcome


CLEAN = {"hooks": 1, "attributes": 2, "tensors": 3, "threads": 4}
PAGE = {"noise": 20.0, "leaves": 20.0}


def outcome_of(after=(), **changed):
    """Of two thousand requests, but for what is said."""
    found = {"right": 1990, "failed": 10, "megabytes": [475, 477, 479, 479]} | changed
    return Outcome("made up", **found, before=Traces(**CLEAN), after=Traces(**CLEAN | dict(after)))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"after": {"tensors": 2, "threads": 3}},
        {"megabytes": [300, 500, 500, 504]},  # what is kept for all that come is filled once
        {"right": 20, "megabytes": [500, 500, 500, 502]},
        PAGE | {"megabytes": [602, 612, 622, 636]},
        PAGE | {"right": 250, "megabytes": [610, 612, 618, 629]},
    ],
    ids=str,
)
def test_what_was_found_is_sound(changed):
    assert outcome_of(**changed).sound


@pytest.mark.parametrize(
    "changed",
    [
        *({"after": {name: CLEAN[name] + 1}} for name in CLEAN),
        {"megabytes": [500, 505, 510, 515]},  # 10 kB a request
        {"right": 20, "megabytes": [500, 502, 504, 507]},  # a picture each
        PAGE | {"megabytes": [600, 650, 700, 750]},  # what Gradio remembered of each visitor
        {"mixed": 1},
        {"right": 0},
    ],
    ids=str,
)
def test_a_leak_is_not_sound(changed):
    outcome = outcome_of(**changed)
    assert not outcome.sound
    assert outcome.clean == ("megabytes" in changed)


@pytest.mark.slow
def test_eval(box):
    outcome = evaluation.soak(*box, requests=60)
    assert outcome.clean, outcome
    assert outcome.failed
