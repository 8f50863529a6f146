"""Every contender at every retention, each answered once and kept."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import BudgetError, VitcopError
from ..methods import METHODS
from ..methods.random import Random
from ..records import taken
from ..selection.pruner import Positions, Pruner
from ..selection.registry import check
from .contenders import Contender, Contest, Pruners, Subject, depends_on_positions, setting_of
from .fingerprint import codes, file_name, fingerprint
from .journal import Journal
from .results import DENSE, DOWNSAMPLE, ONCE, ORACLE, RANDOM, Evaluation, Refusal, Row
from .suite import Suite
from .variants import VARIANTS

RETENTIONS = (1, 1 / 3, 2 / 9, 1 / 9, 1 / 18, 1 / 36)
ALWAYS = (RANDOM, "uniformgrid", "averagepool", DOWNSAMPLE, ORACLE)
"""In every table: what a method has to beat, and, in the oracle, what knowing where things are is worth."""

Told = Callable[[str, int], None]
"""Is told what runs next, and how many there are in all."""


@dataclass(frozen=True)
class Course:
    """What a run covers.

    Attributes:
        methods: as `Pruner.named` takes them, and names of `VARIANTS`.
        retentions: shares of the visual tokens alive, averaged over the decoder layers.
        batch: prompts at a time.
        positions: under which methods are asked that drop tokens at the entrance, one after the other; None is as each
            has them by default. Variants are asked as they are.
    """

    methods: Sequence[str] = tuple(METHODS)
    retentions: Sequence[int | float] = RETENTIONS
    batch: int = 25
    positions: Sequence[Positions | None] = (None,)


def evaluate(subject: Subject, suite: Suite, course: Course, told: Told, folder: Path | None = None) -> Evaluation:
    """Put the suite to the model under every contender.

    Args:
        subject: the model.
        suite: the questions.
        course: methods and retentions.
        told: of every contender, before it is asked.
        folder: keeps what is done, batch by batch, so that a run that was stopped goes on. What depends on other
            weights, questions or another state of vitcop's code, or ran elsewhere or in other batches, is kept apart.

    Raises:
        VitcopError: a method is not known, the model cannot be pruned or answers nothing right, or the GPU runs out of
            memory.
    """
    methods = {name: pruners_of(name) for name in course.methods}
    contest = Contest(subject, suite, course.batch)
    store = _Store(
        folder and folder / fingerprint(subject, suite.cases, course.batch), codes(course.methods) if folder else {}
    )
    methods |= {name: pruners_of(name) for name in ALWAYS[:3]}
    todo = list(_todo(course, contest, methods | {ORACLE: Random}))
    rows: list[Row] = []
    refusals: list[Refusal] = []
    for contender, retention in todo:
        told(f"{contender} at {retention:.3g}", len(todo))
        result = store.read(contender, retention)
        if result is None:
            journal = store.journal(contender, retention)
            result = _ask(contest, contender, retention, methods, journal)
            store.write(contender, result)
            journal.close()
        if isinstance(result, Row):
            rows.append(result)
        else:
            refusals.append(result)
    setting = setting_of(subject, contest.planner, suite.name, suite.seed, course.batch)
    return Evaluation(setting, tuple(suite.cases), tuple(rows), tuple(refusals))


def _todo(course: Course, contest: Contest, methods: Mapping[str, Pruners]) -> Iterator[tuple[Contender, float]]:
    contenders, retentions = [], [float(retention) for retention in course.retentions]
    for name in dict.fromkeys((*course.methods, *ALWAYS)):
        own = name in methods and name not in VARIANTS
        free = own and depends_on_positions(contest.planner, methods[name], retentions)
        contenders += [Contender(name, positions) for positions in (course.positions if free else (None,))]
    for name in ONCE:
        yield Contender(name), 1.0
    for retention in retentions:
        for contender in contenders:
            yield contender, retention


def pruners_of(name: str) -> Pruners:
    """A method, or one of `VARIANTS`, by the retention that is asked of it.

    Raises:
        VitcopError: there is none of this name.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    check(name, others=VARIANTS)
    kind = Pruner.named(name)
    return lambda retention: kind.from_dict({"method": name, "retention": retention})


def _ask(
    contest: Contest, contender: Contender, retention: float, methods: Mapping[str, Pruners], journal: Journal
) -> Row | Refusal:
    try:
        return contest.row(contender, retention, methods, journal)
    except VitcopError as error:
        if contender.name == DENSE:
            raise
        floor = contest.floor(contender.name, methods) if isinstance(error, BudgetError) else None
        return Refusal(str(contender), retention, str(error), floor)
    except torch.OutOfMemoryError as error:
        raise VitcopError("The GPU runs out of memory; ask for a smaller --batch.") from error


class _Store:
    """A file for each contender, retention and state of the code of those that are not vitcop's.

    Until a contender has answered all, one that grows with its answers.
    """

    def __init__(self, folder: Path | None, codes: Mapping[str, str]) -> None:
        self.folder, self.codes = folder, codes
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def read(self, contender: Contender, retention: float) -> Row | Refusal | None:
        if self.folder is None or not (file := self._file(contender, retention)).exists():
            return None
        values = json.loads(file.read_text(encoding="utf-8"))
        return taken(Row if "answers" in values else Refusal, values)

    def write(self, contender: Contender, result: Row | Refusal) -> None:
        if self.folder is None:
            return
        file = self._file(contender, result.retention)
        part = file.with_suffix(f".{os.getpid()}.part")  # another run may be at the same contender
        part.write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")
        part.replace(file)  # a stop leaves a whole file or none

    def journal(self, contender: Contender, retention: float) -> Journal:
        return Journal(self.folder and self._file(contender, retention).with_suffix(".jsonl"))

    def _file(self, contender: Contender, retention: float) -> Path:
        assert self.folder is not None
        return self.folder / f"{file_name(contender, retention, self.codes)}.json"
