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
    outcome = threads.soak(*box, requests=28, different=4)
    assert outcome.sound, outcome
    assert outcome.failed and outcome.cancelled == 3


def test_prefix(box):
    outcome = prefix.soak(*box, requests=28, pictures=2, questions=2)
    assert outcome.sound, outcome
    assert outcome.failed and outcome.cancelled == 3


CLEAN = {"hooks": 1, "attributes": 2, "tensors": 3, "threads": 4}


def outcome_of(after=(), **changed):
    """Of two thousand requests that left nothing behind, but for what is said."""
    found = {"right": 1990, "failed": 10, "megabytes": [480, 500, 506, 504]} | changed
    return Outcome("made up", **found, before=Traces(**CLEAN), after=Traces(**CLEAN | dict(after)))


def test_what_is_kept_once_is_no_leak():
    assert outcome_of().sound
    assert outcome_of({"tensors": 2, "threads": 3}).sound
    assert outcome_of(right=20, megabytes=[300, 500, 500, 505]).sound


@pytest.mark.parametrize(
    "changed",
    [
        *({"after": {name: CLEAN[name] + 1}} for name in CLEAN),
        {"megabytes": [600, 612, 622, 636]},  # what each visitor of the page once left, a hundredth of a picture
        {"right": 20, "megabytes": [500, 500, 515, 530]},  # pictures
        {"mixed": 1},
        {"right": 0},
    ],
    ids=str,
)
def test_a_leak_is_not_sound(changed):
    assert not outcome_of(**changed).sound


@pytest.mark.slow
def test_eval(box):
    outcome = evaluation.soak(*box, requests=60)
    assert outcome.sound, outcome
    assert outcome.failed
