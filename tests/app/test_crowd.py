"""Many ask the page at once over HTTP: some fail, some leave, and nobody gets another's answer."""

import logging

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

pytest.importorskip("gradio", reason="needs Gradio and Playwright; `make test-app` installs them in an environment")

from benchmarks.soak import page
from vitcop.app.page import SESSIONS_KEPT, make_page, serve_page
from vitcop.builtin import EXAMPLE_PICTURE, MODEL_PATH


def test_a_crowd_gets_its_own_answers_and_leaves_nothing_behind(caplog):
    caplog.set_level(logging.CRITICAL, "vitcop")  # what pytest keeps of a failure that is logged holds its tensors
    model = AutoModelForImageTextToText.from_pretrained(MODEL_PATH, dtype="float32").eval()
    outcome = page.soak(model, AutoProcessor.from_pretrained(MODEL_PATH), requests=40, different=8)
    assert outcome.sound, outcome
    assert outcome.failed and outcome.cancelled


def test_no_more_than_some_sessions_are_remembered():
    """Gradio keeps what stands on the page for ten thousand, which is a gigabyte."""
    shown = make_page({"none": None}, ["vitcop"])
    address = serve_page(shown, "127.0.0.1", None, wait=False)
    function = next(number for number, each in shown.fns.items() if each.name == "answer")
    browser = page.Browser(address, function, "none")
    nothing = page.Asked(EXAMPLE_PICTURE.read_bytes(), " ", "vitcop", 0.5)
    said = {browser.ask(nothing) for _ in range(SESSIONS_KEPT + 8)}
    assert said == {"<p role='alert'><b>There is no question; type one.</b></p>"}
    assert len(shown.app.state_holder.session_data) <= SESSIONS_KEPT
    shown.close()
