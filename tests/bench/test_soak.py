"""A short soak: requests that fail, are given up or come at once leave nothing behind, and no answer is another's."""

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.soak import evaluation, threads
from vitcop.builtin import MODEL_PATH


@pytest.fixture(scope="module")
def box():
    model = AutoModelForImageTextToText.from_pretrained(MODEL_PATH, dtype="float32").eval()
    return model, AutoProcessor.from_pretrained(MODEL_PATH)


def test_threads(box):
    outcome = threads.soak(*box, requests=28, different=4)
    assert outcome.sound, outcome
    assert outcome.failed and outcome.cancelled == 3


@pytest.mark.slow
def test_eval(box):
    outcome = evaluation.soak(*box, requests=60)
    assert outcome.sound, outcome
    assert outcome.failed
