"""What others measured, and the warning below it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tiny import LLAVA

import vitcop
from docs.floors_page import page
from vitcop import floors
from vitcop.models import FAMILIES


@pytest.fixture
def told(monkeypatch, caplog):
    """Messages in the log, in a process that has not warned yet."""
    monkeypatch.setattr(floors, "_warned", set())
    caplog.set_level(logging.WARNING, logger="vitcop")
    return caplog


def test_the_page_is_up_to_date():
    committed = Path(__file__).parents[1] / "docs" / "floors.md"
    assert committed.read_text(encoding="utf-8") == page(), "make docs"


def test_measurements_are_of_known_models_and_tasks_and_on_one_scale():
    for measured in floors.MEASUREMENTS:
        assert measured.checkpoint.model_type in FAMILIES
        assert measured.task in floors.TASKS
        assert 0 < measured.share < 1.05
        assert measured.retention is None or 0 <= measured.retention < 1
    assert set(floors.NEAREST) | set(floors.NEAREST.values()) <= set(FAMILIES)


@pytest.mark.parametrize(
    ("model_type", "enough", "too_little", "named"),
    [
        ("internvl", 0.5, 0.49, "0.50 on RefCOCO/+/g (IVC-Prune, InternVL2.5-8B, arXiv 2602.03060)"),
        ("llava", 0.34, 1 / 3, "more than 0.33 on RefCOCO/+/g (0.33 left 79.3 %: Nüwa"),
        ("qwen2_vl", 0.5, 0.49, "Qwen2.5-VL-7B"),  # of which its own grounding was not measured
        ("qwen3_vl_moe", 0.51, 0.5, "more than 0.50 on InfoVQA"),  # the worst of five tasks tried that far
    ],
)
def test_a_warning_begins_below_the_floor_that_asks_for_most(model_type, enough, too_little, named):
    assert floors.warning(model_type, enough) is None
    assert named in floors.warning(model_type, too_little)


def test_of_what_nobody_measured_nothing_is_said():
    assert floors.warning("gemma3", 1 / 36) is None


def test_the_log_says_it_once_for_each_type_of_model(told, monkeypatch):
    monkeypatch.setattr(floors, "SMALLEST", 0)
    model = LLAVA.build("eager")
    for method in (vitcop.ViTCoP(retention=1 / 2), vitcop.ViTCoP(tokens=4)):
        vitcop.prune(model, method).remove()
    assert not told.messages
    for retention in (1 / 18, 1 / 36):
        vitcop.prune(model, vitcop.ViTCoP(retention=retention)).remove()
    assert [message[:15] for message in told.messages] == ["Retention 0.06 "]


def test_nothing_is_said_of_models_as_small_as_the_one_in_the_box(told):
    vitcop.prune(LLAVA.build("eager"), vitcop.ViTCoP(retention=1 / 18)).remove()
    assert not told.messages
