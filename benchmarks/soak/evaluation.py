"""`vitcop eval`, stopped again and again in the middle of a prefill, beside a run that nobody stopped."""

from __future__ import annotations

import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

from vitcop.quality import Course, Evaluation, Subject, Suite, evaluate

from .faults import Faults, InjectedError
from .traces import Memory, Outcome, Traces

METHODS = "vitcop", "census", "fastv"
CONTENDERS = len(METHODS) + 6  # dense, blind, and those that stand in every table
BATCH = 10
STOPPED = 0.05  # of all prefills


def soak(model: Any, processor: Any, requests: int) -> Outcome:
    """Ask each contender a share of the requests, with and without stops."""
    subject, outcome, memory = Subject("box", model, processor), Outcome("eval"), Memory()
    suite = Suite.of("builtin", max(BATCH, requests // CONTENDERS // 2), seed=0)
    course = Course(METHODS, (1 / 9,), BATCH)

    def run(folder: Path) -> Evaluation:
        return evaluate(subject, suite, course, lambda name, total: memory.look(), folder)

    with tempfile.TemporaryDirectory() as folder:
        evaluate(subject, Suite.of("builtin", BATCH, seed=1), course, lambda name, total: None)
        outcome.before, begin = Traces.of(model), time.perf_counter()
        whole, stopped = run(Path(folder, "whole")), None
        with Faults(model, STOPPED).on():
            while stopped is None:
                try:
                    stopped = run(Path(folder, "stopped"))
                except InjectedError:
                    outcome.failed += 1
    for row, same in zip(whole.rows, stopped.rows, strict=True):
        pairs = list(zip(chain(*row.answers), chain(*same.answers), strict=True))
        outcome.mixed += sum(answer != other for answer, other in pairs)
        outcome.right += sum(answer == other for answer, other in pairs)
    outcome.seconds = time.perf_counter() - begin
    outcome.after, outcome.megabytes = Traces.of(model), memory.quarters
    return outcome
