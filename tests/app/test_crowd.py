"""Many ask the page at once over HTTP: some fail, some leave, and nobody gets another's answer."""

import logging

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

pytest.importorskip("gradio", reason="needs Gradio and Playwright; `make test-app` installs them in an environment")

from benchmarks.soak import page
from vitcop.builtin import MODEL_PATH


def test_a_crowd_gets_its_own_answers_and_leaves_nothing_behind(caplog):
    caplog.set_level(logging.CRITICAL, "vitcop")  # what pytest keeps of a failure that is logged holds its tensors
    model = AutoModelForImageTextToText.from_pretrained(MODEL_PATH, dtype="float32").eval()
    outcome = page.soak(model, AutoProcessor.from_pretrained(MODEL_PATH), requests=40, different=8)
    assert outcome.sound, outcome
    assert outcome.failed and outcome.cancelled
