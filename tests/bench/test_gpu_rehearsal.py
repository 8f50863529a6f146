"""The run for a GPU: every part of it on this CPU, and what becomes of the others when one breaks."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from importlib import import_module

import pytest

from benchmarks import report
from benchmarks.gpu import packages, parity, runner, waits
from benchmarks.gpu.plan import MINUTES, PARTS, Part
from benchmarks.gpu.runner import run_parts
from benchmarks.gpu.subjects import METHODS
from benchmarks.gpu.task import Task
from vitcop.bench import Benchmark

BY_NAME = {part.name: part for part in PARTS}


def rehearsed(name, folder):
    """What a part finds, in this process."""
    part = BY_NAME[name]
    task = Task(folder / "found.json", folder, rehearsal=True, seconds=600, estimate=part.estimate)
    try:
        import_module(part.module).run(task, **part.options)
    finally:
        task.save()
    return json.loads(task.file.read_text())


def test_environment(tmp_path):
    found = rehearsed("environment", tmp_path)
    assert found["sdpa"]["MATH"] == "works" and found["versions"]["torch"] in found["lines"][0]


def test_parity(tmp_path):
    cases = rehearsed("parity", tmp_path)["cases"]
    assert len(cases) == 6 and all(case["ok"] for case in cases)
    assert {case["error"] < 1e-4 for case in cases if "float32" in case["backend"]} == {True}


def test_parity_notices_a_token_that_nobody_may_see(tmp_path, monkeypatch):
    """In float32: in bfloat16 one token is less than rounding."""
    compared = parity.masked_dense_logits

    def one_less(model, inputs, method, report):
        columns = {first: at.clone() for first, at in report.columns.items()}
        columns[max(columns)][0, 2] = columns[max(columns)][0, 3]  # the third slot of the first row, hidden
        hidden = replace(report, columns=columns)
        return compared(model, inputs, method, hidden)

    monkeypatch.setattr(parity, "masked_dense_logits", one_less)
    case = parity.Case(parity.FLOAT32, parity.tiny_family("llava"), "fastv")
    monkeypatch.setattr(parity, "_cases", lambda rehearsal: [case])
    with pytest.raises(AssertionError, match="1 of 1 are off by more than rounding"):
        rehearsed("parity", tmp_path)


def test_waits(tmp_path):
    assert rehearsed("waits", tmp_path)["waits"] == {"tiny llava": {}}
    assert set(METHODS) > waits.READ


def test_launches(tmp_path):
    counts = rehearsed("launches", tmp_path)["counts"]["tiny llava"]
    assert [stage["layer"] for stage in counts["vitcop"]["stages"]] == [0, 2, 5]
    assert all(stage["operators"] > 0 for count in counts.values() for stage in count["stages"])
    assert counts["dense"]["stages"] == []


def test_speed(tmp_path, monkeypatch):
    rehearsed("qwen2.5-vl-7b", tmp_path)
    benchmark = Benchmark.from_dict(json.loads((tmp_path / "qwen2.5-vl-7b-cpu.json").read_text()))
    rows = benchmark.blocks[0].rows
    assert [row.method for row in rows] == ["dense", "vitcop", "visionzip", "random"]
    # What it becomes in README and docs, where a GPU's prefill is some milliseconds.
    rows = tuple(replace(row, samples={phase: [0.0125] for phase in row.samples}) for row in rows)
    on_gpu = replace(
        benchmark, setting=replace(benchmark.setting, gpu=True), blocks=(replace(benchmark.blocks[0], rows=rows),)
    )
    monkeypatch.setattr(report, "runs", lambda: {"name": on_gpu})
    assert "12.5 ms to 12.5 ms" in report.section() and "| 1.0x (" in report.short()
    assert "not measured" not in report.section() + report.short()


FOUND = "    task.found['lines'].append('found')\n    task.save()\n"
BROKEN = {
    "breaks": "raise RuntimeError('broken')",
    "hangs": "import time; time.sleep(600)",
    "dies": "import os; print('last words'); os.abort()",
    "works": "pass",
}


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Makers of parts that end in another way each, after they have found something."""
    for name, end in BROKEN.items():
        (tmp_path / f"part_that_{name}.py").write_text(f"def run(task):\n{FOUND}    {end}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return {name: Part(name, f"part_that_{name}", 1, 2 if name == "hangs" else 60) for name in BROKEN}


def ran(parts, folder, minutes=1.0):
    """Their outcomes, and the record as it was behind each."""
    records = []
    outcomes = run_parts(
        parts, folder, minutes, True, lambda outcome: records.append(json.loads((folder / "run.json").read_text()))
    )
    return outcomes, records


def test_a_part_that_breaks_is_recorded_and_the_others_run(parts, tmp_path):
    outcomes, records = ran(parts.values(), tmp_path)
    assert [outcome["status"] for outcome in outcomes] == ["failed", "cut short", "failed", "ok"]
    assert all(outcome["found"] == {"lines": ["found"]} for outcome in outcomes)
    broken, hung, dead, fine = (outcome["error"] for outcome in outcomes)
    assert "RuntimeError: broken" in broken and "part_that_breaks.py" in broken
    assert hung == "stopped after 2 s" and "exit code -6" in dead and "last words" in dead and fine is None
    assert [record["parts"] for record in records] == [outcomes[: count + 1] for count in range(4)]


def test_a_part_that_cannot_be_stopped_is_left_behind(parts, tmp_path, monkeypatch):
    """As the kernel leaves a process that waits for a GPU."""
    groups = []
    with monkeypatch.context() as patched:
        patched.setattr(runner, "DYING", 0.1)
        patched.setattr("os.killpg", lambda group, signal: groups.append(group))
        outcomes, _ = ran([parts["hangs"], parts["works"]], tmp_path)
    os.killpg(*groups, signal.SIGKILL)
    assert [outcome["status"] for outcome in outcomes] == ["cut short", "ok"]


def test_without_time_or_what_is_needed_the_rest_is_not_reached(parts, tmp_path):
    for minutes, first in ((0, parts["works"]), (1, replace(parts["breaks"], is_needed=True))):
        outcomes, records = ran([first, parts["works"]], tmp_path, minutes)
        assert outcomes[-1]["status"] == "not reached"
        assert [part["name"] for part in records[-1]["parts"]] == [first.name, "works"]


def test_a_part_ends_by_itself_when_there_is_no_time_for_another_case(tmp_path):
    task, seen = Task(tmp_path / "found.json", tmp_path, rehearsal=True, seconds=0.1, estimate=1), []
    with pytest.raises(TimeoutError, match="of 9 not reached, from"):
        for number in task.in_time(range(9)):
            seen.append(number)
            task.found["seen"] = seen
            time.sleep(0.06)
    assert json.loads(task.file.read_text())["seen"] == seen


def test_the_plan_fits_its_time():
    assert sum(part.estimate for part in PARTS) <= 60 * MINUTES
    assert all(part.estimate < part.most for part in PARTS)


def test_what_is_missing_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name in ("jaxtyping", "rich") else name)
    monkeypatch.setattr(packages, "WHEELS", tmp_path / ".wheels")
    with pytest.raises(SystemExit, match=r"^Missing: jaxtyping, rich. Run `make gpu-wheels`.*along\.$"):
        packages.add_missing(tmp_path)
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "torch" else name)
    with pytest.raises(SystemExit, match="has no torch; name a Python that has"):
        packages.add_missing(tmp_path)
