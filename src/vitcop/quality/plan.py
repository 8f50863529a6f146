"""A quality target, put to a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..errors import VitcopError
from ..methods.random import Random
from ..selection.pruner import Pruner
from .contenders import Contender, Subject, constant, depends_on_positions, planner_about, setting_of
from .fingerprint import codes, file_name, fingerprint
from .journal import Answered, Journal
from .own import OwnQuestion
from .reader import Reader
from .results import DENSE
from .runner import Course, Told, pruners_of
from .target import QualityPlan, meet, split

CANDIDATES = ("vitcop", "census", "visionzip", "cdpruner", "pyramiddrop")
"""One of each kind: in stages by saliency, clusters and key norms; at the entrance by coverage and counting, by
saliency, or by diversity and relevance to the question; in stages by the attention of the last token."""
RETENTIONS = tuple(2 ** (-step / 4) for step in range(1, 25))
"""That are looked through, from 0.84 to 1/64, four to each halving."""
COURSE = Course(CANDIDATES, RETENTIONS)
MAX_NEW_TOKENS = 64
CHECKS = 3  # of the dense model before both halves, and of the one that was chosen


def plan_quality(
    subject: Subject,
    questions: Sequence[OwnQuestion],
    target: float,
    course: Course = COURSE,
    told: Told = lambda text, total: None,
    folder: Path | None = None,
    *,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> QualityPlan:
    """The cheapest method and retention that keep a share of a model's own answers, and what other questions see of it.

    Args:
        subject: the model.
        questions: as `read_questions` gives them.
        target: share of the dense model's answers to keep, above 0 and below 1.
        course: candidates, and the retentions that one of them may be given.
        told: of all that is asked, before it is, and of how much that can be.
        folder: keeps answers, batch by batch, so that a run that was stopped goes on, as for `evaluate`.
        seed: draws the half of the questions that chooses.
        max_new_tokens: after which an answer is cut off; what would come behind is not compared.

    Raises:
        VitcopError: there are too few questions, or one answer to all of them would do; a method is not known; the
            model cannot be pruned; or the GPU runs out of memory.
    """
    both = split(questions, target, seed)
    answerer = _Candidates(subject, both[0], course, told, folder, seed, max_new_tokens)
    try:
        return meet(answerer, both, target)
    except torch.OutOfMemoryError as error:
        raise VitcopError("The GPU runs out of memory; ask for a smaller --batch.") from error


class _Candidates:
    """A model, under any method of a course, before one half of the questions at a time: pictures take memory."""

    def __init__(
        self,
        subject: Subject,
        choosing: Sequence[OwnQuestion],
        course: Course,
        told: Told,
        folder: Path | None,
        seed: int,
        max_new_tokens: int,
    ) -> None:
        self.subject, self.batch, self.max_new_tokens = subject, course.batch, max_new_tokens
        self.told, self.folder = told, folder
        self._methods = {name: pruners_of(name) for name in course.methods}
        self._codes = codes(course.methods) if folder else {}
        self._sit(choosing)
        middling = sorted(choosing, key=lambda each: each.size[0] * each.size[1])[len(choosing) // 2]
        self.planner = planner_about(middling.picture(), self._reader)
        self.setting = setting_of(subject, self.planner, "own questions", seed, course.batch)
        self.retentions = sorted(course.retentions, reverse=True)
        self._contenders = {str(each): each for name in course.methods for each in self._numbered(name, course)}

    @property
    def candidates(self) -> Sequence[str]:
        return tuple(self._contenders)

    def method(self, name: str, retention: float) -> Pruner:
        if name == DENSE:
            return Random(retention=1.0)
        contender = self._contenders[name]
        return contender.numbered(self._methods[contender.name](retention))

    def flops(self, name: str, retention: float) -> int:
        return self.planner.plan(self.method(name, retention), small_images="refuse").flops.total

    def ask(self, questions: Sequence[OwnQuestion], name: str, retention: float) -> Answered:
        self.told(f"{name} at {retention:.3g}", len(self._contenders) * len(self.retentions).bit_length() + CHECKS)
        if questions is not self._questions:
            self._sit(questions)
        file = file_name(self._contenders.get(name, Contender(name)), retention, self._codes)
        pruner_for = None if name == DENSE else constant(self.method(name, retention))
        return self._reader.read(pruner_for, Journal(self._kept and self._kept / f"{file}.jsonl"))

    def _sit(self, questions: Sequence[OwnQuestion]) -> None:
        subject, batch, longest = self.subject, self.batch, self.max_new_tokens
        self._questions = questions
        self._reader = Reader(subject.model, subject.processor, questions, batch, longest)
        self._kept = self.folder and self.folder / fingerprint(subject, questions, batch, longest)
        if self._kept is not None:
            self._kept.mkdir(parents=True, exist_ok=True)

    def _numbered(self, name: str, course: Course) -> Iterator[Contender]:
        free = depends_on_positions(self.planner, self._methods[name], self.retentions)
        yield from (Contender(name, positions) for positions in (course.positions if free else (None,)))
