"""Figures that pages tell in sentences, by hand, are those of the stored results. Tables have tests of their own."""

from __future__ import annotations

import re
from functools import cache

import pytest
from benchmarks import report
from docs.pages import DOCS, ROOT
from docs.quality_page import evaluation
from vitcop.floors import floors
from vitcop.methods import METHODS, FastV, PyramidDrop
from vitcop.quality import Evaluation
from vitcop.quality.results import Interval
from vitcop.selection.pruner import LITERATURE_TOKENS

AHEAD = (("testbed", "testbed"), ("quality", "the box"))
GAINS = [
    ("testbed", "testbed", "census, keep", "visionzip, keep", "of VisionZip by {} points of accuracy ({} to {})"),
    ("testbed", "testbed", "census, keep", "mmtok, keep", "of MMTok by {} ({} to {})"),
    ("testbed", "testbed", "census, keep", "divprune, keep", "of DivPrune by {} ({} to {}) and"),
    ("testbed", "testbed", "census, keep", "scope, keep", "of SCOPE by {} ({} to {}): the last two"),
    ("testbed", "quality", "census, keep", "scope, keep", "reach these: of SCOPE by {} ({} to {})"),
    ("testbed", "quality", "census, keep", "vitcop, keep", "of ViTCoP by {} ({} to {})"),
    ("testbed", "quality", "census, keep", "mmtok, keep", "of MMTok by {} ({} to {}) and"),
    ("testbed", "quality", "census, keep", "divprune, keep", "of DivPrune by {} ({} to {}). Single"),
    ("testbed", "census-builtin", "counted", "by saliency alone", "salient tokens ({} there, with an interval of {} to {};"),
    ("testbed", "census-testbed", "counted", "by saliency alone", "; {} here, {} to {}). Weighing"),
    ("testbed", "census-builtin", "counted", "covered alike", "is covered is worth {} there ({} to {})"),
    ("testbed", "census-testbed", "counted", "covered alike", "and {} here ({} to {}); counting"),
    ("testbed", "census-builtin", "counted", "not counted", "counting {} ({} to {}) and"),
    ("testbed", "census-testbed", "counted", "not counted", "and {} ({} to {}). Merging"),
    ("testbed", "census-builtin", "not counted", "not merged", "without counting is worth {} there ({} to {})"),
    ("testbed", "census-testbed", "not merged", "not counted", "here it costs {} ({} to {})"),
    ("testbed", "census-builtin", "by distance", "counted", "nothing more ({}, {} to {}, there;"),
    ("testbed", "census-testbed", "by distance", "counted", "there; {}, {} to {}, here)"),
    ("testbed", "census-builtin", "by question", "counted", "by the question ({}, {} to {};"),
    ("testbed", "census-testbed", "by question", "counted", "; {}, {} to {}), so that"),
    ("testbed", "ablations-testbed", "without stage III", "paper", "stage III it wins {} points ({} to {})"),
    ("testbed", "ablations-testbed", "paper", "largest norms", "win {} points over the largest ({} to {})"),
    ("testbed", "ablations-testbed", "paper", "without stage II", "stage II {} ({} to {})"),
    ("testbed", "ablations-testbed", "paper", "saliency", "{} points here by saliency ({} to {})"),
    ("testbed", "ablations-testbed", "paper", "question", "{} by rows of the question ({} to {})"),
    ("testbed", "testbed", "earlyvitcop, keep", "vitcop, keep", "ahead of ViTCoP by {} points ({} to {})"),
    ("testbed", "testbed", "earlyvitcop, keep", "random, keep", "of a random choice by {} ({} to {})"),
    ("testbed", "testbed", "visionzip, keep", "earlyvitcop, keep", "behind VisionZip by {} ({} to {})"),
]
"""Page, stored run, what wins, over what, and the words, around points of accuracy and their interval."""


@cache
def words(page: str) -> str:
    """A page in one line."""
    return " ".join((DOCS / f"{page}.md").read_text(encoding="utf-8").split())


@cache
def run(name: str) -> Evaluation:
    return evaluation(name)


def points(gain: Interval) -> list[str]:
    """With one digit, and zero without a sign."""
    return [f"{100 * each:.1f}".replace("-0.0", "0.0") for each in (gain.value, gain.lowest, gain.highest)]


@pytest.mark.parametrize(("page", "stored", "name", "base", "said"), GAINS)
def test_gains(page, stored, name, base, said):
    assert said.format(*points(run(stored).gain(name, base))) in words(page)
