"""Figures that pages tell in sentences, by hand, are those of the stored results. Tables have tests of their own."""

from __future__ import annotations

import re
from functools import cache

import pytest

from benchmarks import report
from docs.pages import DOCS, ROOT
from docs.quality_page import evaluation
from vitcop.floors import floors
from vitcop.methods import METHODS, FastV, PyramidDrop, ViTCoP
from vitcop.quality import Evaluation
from vitcop.quality.results import Interval
from vitcop.selection.pruner import LITERATURE_LAYERS, LITERATURE_TOKENS, preset_retention

GAINS = [
    ("testbed", "testbed", "census, keep", "visionzip, keep", "of VisionZip by {} points of accuracy ({} to {})"),
    ("testbed", "testbed", "census, keep", "mmtok, keep", "of MMTok by {} ({} to {})"),
    ("testbed", "testbed", "census, keep", "divprune, keep", "of DivPrune by {} ({} to {}) and"),
    ("testbed", "testbed", "census, keep", "scope, keep", "of SCOPE by {} ({} to {}): the last two"),
    ("testbed", "quality", "census, keep", "scope, keep", "reach these: of SCOPE by {} ({} to {})"),
    ("testbed", "quality", "census, keep", "vitcop, keep", "of ViTCoP by {} ({} to {})"),
    ("testbed", "quality", "census, keep", "mmtok, keep", "of MMTok by {} ({} to {}) and"),
    ("testbed", "quality", "census, keep", "divprune, keep", "of DivPrune by {} ({} to {}). Single"),
    (
        "testbed",
        "census-builtin",
        "counted",
        "by saliency alone",
        "salient tokens ({} there, with an interval of {} to {};",
    ),
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


def test_who_keeps_most():
    found, best = run("testbed"), {}
    for row in found.rows:
        name = row.name.partition(",")[0]
        if name in METHODS and found.accuracy(row) > best.get(row.retention, ("", 0))[1]:
            best[row.retention] = name, found.accuracy(row)
    first = {
        f"1/{round(1 / share)}" if share != 2 / 9 else "2/9": name for share, (name, _) in best.items() if share < 1
    }
    assert first == {"1/3": "hawk", "2/9": "census", "1/9": "census", "1/18": "census", "1/36": "divprune"}
    assert "Census keeps most at 2/9, 1/9 and 1/18**, HAWK at 1/3 and DivPrune at 1/36" in words("testbed")
    fallen = [100 * found.accuracy(row, "background") for row in found.rows if row.name == "paper"]
    assert "fall from 100 to {:.0f} and {:.0f} %".format(*fallen[2:4]) in words("testbed")


def test_what_positions_are_worth():
    lost = [100 * run(f"census-{model}").gain("counted", "numbered anew").value for model in ("builtin", "testbed")]
    assert "by compact positions ([{:.0f} and {:.0f} points]".format(*lost) in words("choosing")
    assert "({1:.0f} points here, {0:.0f} on the model in the box)".format(*lost) in words("testbed")


def test_speed():
    rows = [
        [block.speedup(row, phase).median for phase in ("decode", "prefill", "first_token")]
        for benchmark in report.runs().values()
        for block in benchmark.blocks
        for row in block.rows
        if row.method == "vitcop"
    ]
    decode, prefill, first = zip(*rows, strict=True)
    faster = f"{min(prefill):.0f} to {max(prefill):.0f} times as fast"
    assert f"{min(decode):.2f} to {max(decode):.2f} times as fast, where the prefill is {faster}" in words("faq")
    assert f"a prefill {faster}, the first token came {min(first):.1f} to {max(first):.1f} times as soon" in words(
        "faq"
    )


def test_what_the_first_page_says_of_costs():
    for row, said in (("decoder prefill", "of the operations"), ("KV cache, 2 bytes a value", "of the KV cache")):
        share = re.search(rf"{row} .*? ([\d.]+)% ", words("quickstart"))[1]
        assert re.search(rf"\b{share} %[^.]* {said}|{share} % {said}", words("index"))


def test_floors():
    for model, task, said in (
        ("llava", "RefCOCO/+/g", "for LLaVA-1.5 nobody we found kept 90 % of RefCOCO at a third"),
        ("qwen2_5_vl", "OCRBench", "nor for Qwen2.5-VL of OCRBench or ChartQA at 0.4"),
        ("qwen2_5_vl", "ChartQA", "nor for Qwen2.5-VL of OCRBench or ChartQA at 0.4"),
    ):
        (floor,) = (
            each for kind in ("reading", "grounding") for each in floors(model, kind) if each.measured.task == task
        )
        assert not floor.measured.holds and said in words("faq")
        assert floor.retention == pytest.approx(1 / 3 if model == "llava" else 0.4, abs=0.006)


def test_what_the_literature_averages():
    assert f"averages {FastV.preset('paper', tokens=64).retention * LITERATURE_TOKENS:.0f} of 576" in words("faq")
    (schedule,) = PyramidDrop.presets["paper"].values()
    assert f"cannot average less than {LITERATURE_TOKENS * min(schedule) / LITERATURE_LAYERS:.0f}" in words("faq")
    for page in ("evaluation", "paper"):
        for schedule in ViTCoP.presets["paper"].values():
            average = preset_retention(schedule) * LITERATURE_TOKENS
            assert f"| {', '.join(map(str, schedule.values()))} | {average:.1f}" in words(page)


def test_key_norms():
    held = {
        layers: re.findall(r"\| (\d+)% ", words("results/key_norm").partition(f"| {layers} |")[2])[:2]
        for layers in ("1 to 9", "10 to 19")
    }
    (before, _), (after, last) = held.values()
    said = f"holds {after} % of the attention in place of {before} %. The last token's row holds {last} %"
    assert said in words("design")


def test_what_a_prefix_gains():
    notes = (ROOT / "benchmarks" / "NOTES.md").read_text(encoding="utf-8")
    shares = [
        100 * float(each)
        for each in re.search(r"four questions, prefix and all \| ([\d.]+) .*? \| ([\d.]+) ", notes).groups()
    ]
    assert "took {:.0f} % of what whole pruned prompts took in the model in the box, and {:.0f} %".format(
        *shares
    ) in words("examples")
