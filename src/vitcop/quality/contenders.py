"""Who answers: the dense model, methods, and what they have to be better than."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from PIL import Image

from ..costs.closed_forms import prefill_flops
from ..costs.plan import Planner
from ..environment import device_name, versions
from ..errors import BudgetError, VitcopError
from ..inputs.downsample import downsample
from ..methods.random import Random
from ..models import Size
from ..selection.pruner import Positions, Pruner
from .journal import Answered, Journal
from .oracle import oracle_for
from .reader import Reader
from .results import BLIND, DENSE, DOWNSAMPLE, MAJORITY, ORACLE, RANDOM, Row, Setting
from .suite import Case, Suite

RANDOM_SEEDS = 5
LOWEST, STEPS = 1e-4, 24  # of the search for a floor
Pruners = Callable[[float], Pruner]
"""A method by the retention that is asked of it."""


@dataclass(frozen=True)
class Subject:
    """The model that is asked.

    Attributes:
        name: for the record.
        model, processor: of transformers.
    """

    name: str
    model: Any
    processor: Any


@dataclass(frozen=True)
class Contender:
    """Who is asked.

    Attributes:
        name: of a method, or of what it has to be better than.
        positions: that it is asked under; None leaves them to the method.
    """

    name: str
    positions: Positions | None = None

    def __str__(self) -> str:
        return self.name if self.positions is None else f"{self.name}, {self.positions}"

    def numbered(self, method: Pruner) -> Pruner:
        """The method with these positions."""
        return method if self.positions is None else replace(method, positions=self.positions)


def planner_about(picture: Image.Image, reader: Reader[Any]) -> Planner:
    """What prompts with pictures of this size, and a text of usual length, would cost under any method."""
    width, height = picture.size
    planner = Planner.of(reader.model.config, width=width, height=height, text_tokens=reader.text_tokens)
    return _of_picture(planner, picture, reader)


def depends_on_positions(planner: Planner, method: Pruners, retentions: Sequence[float]) -> bool:
    """Whether a method drops tokens at the entrance, at one of the retentions, which may then be numbered anew."""
    if planner.family.keeps_positions:
        return False
    for retention in retentions:
        with suppress(VitcopError):
            if planner.plan(method(retention)).visual_tokens[0] < planner.geometry.image.num_tokens:
                return True
    return False


def setting_of(subject: Subject, planner: Planner, suite: str, seed: int, batch: int) -> Setting:
    """What all answers of a run have in common, for the record."""
    return Setting(
        model=subject.name,
        suite=suite,
        seed=seed,
        visual_tokens=planner.geometry.image.num_tokens,
        layers=planner.family.num_layers,
        dtype=str(subject.model.dtype).removeprefix("torch."),
        device=device_name(subject.model.device),
        batch=batch,
        versions=versions(),
    )


def constant(method: Pruner) -> Callable[[Sequence[Any]], Pruner]:
    """The same method for every batch."""
    return lambda cases: method


class Contest:
    """A model before a suite, ready to be asked under any contender."""

    def __init__(self, subject: Subject, suite: Suite, batch: int) -> None:
        self.subject, self.suite = subject, suite
        self.reader = Reader(subject.model, subject.processor, suite.cases, batch)
        self.picture = suite.cases[0].picture()
        self.planner = planner_about(self.picture, self.reader)

    def row(self, contender: Contender, retention: float, methods: Mapping[str, Pruners], journal: Journal) -> Row:
        """What the contender answers, or has answered before.

        Raises:
            VitcopError: it cannot, at this retention or on this model.
        """
        special: dict[str, Callable[[float, Journal], Row]] = {
            DENSE: self._dense,
            MAJORITY: self._majority,
            BLIND: self._blind,
            ORACLE: partial(self._oracle, contender),
            DOWNSAMPLE: self._downsample,
            RANDOM: partial(self._random, contender),
        }
        if contender.name in special:
            return special[contender.name](retention, journal)
        method = contender.numbered(methods[contender.name](retention))
        answered = [self.reader.read(constant(method), journal)]
        return self._answered(str(contender), retention, answered, self._flops(method))

    def floor(self, name: str, methods: Mapping[str, Pruners]) -> float | None:
        """The lowest retention that a method can reach here, by bisection; None if it reaches none."""
        if name not in methods:
            return None
        low, high = LOWEST, 1.0
        if not self._reaches(methods[name], high):
            return None
        for _ in range(STEPS):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if self._reaches(methods[name], middle) else (middle, high)
        return high

    def _reaches(self, method: Pruners, retention: float) -> bool:
        try:
            self.planner.plan(method(retention), small_images="refuse")
        except BudgetError:
            return False
        return True

    def _dense(self, retention: float, journal: Journal) -> Row:
        row = self._answered(DENSE, 1.0, [self.reader.read(None, journal)], self._flops(Random(retention=1.0)))
        cases, (given,) = self.suite.cases, row.answers
        if not any(answer == case.answer for answer, case in zip(given, cases, strict=True)):
            raise VitcopError(
                "The dense model answers nothing right, so that no share of it can be told. It was asked, for example, "
                f"{cases[0].question!r} and said {given[0]!r}, where only {cases[0].answer!r} counts."
            )
        return row

    def _majority(self, retention: float, journal: Journal) -> Row:
        return Row(MAJORITY, 1.0, 0.0, 0, [self.suite.guesses()])

    def _blind(self, retention: float, journal: Journal) -> Row:
        decoder, layers = self.planner.family.decoder.config, self.planner.family.num_layers
        flops = prefill_flops(decoder, [self.reader.text_tokens] * layers)
        return self._answered(BLIND, 1.0, [self.reader.read_blind(journal)], flops)

    def _random(self, contender: Contender, retention: float, journal: Journal) -> Row:
        seeds = range(RANDOM_SEEDS if retention < 1 else 1)
        methods = [contender.numbered(Random(retention, seed=seed)) for seed in seeds]
        answered = [self.reader.read(constant(method), journal) for method in methods]
        return self._answered(str(contender), retention, answered, self._flops(methods[0]))

    def _oracle(self, contender: Contender, retention: float, journal: Journal) -> Row:
        shapes = self.planner.geometry.image.shapes
        if len(shapes) != 1 or shapes[0][0] != shapes[0][1]:
            raise VitcopError("The oracle is for models that see a square picture as one square grid.")
        side = shapes[0][0]

        def pruner_for(cases: Sequence[Case]) -> Pruner:
            return contender.numbered(oracle_for(cases, side, retention))

        answered = self.reader.read(pruner_for, journal)
        return self._answered(str(contender), retention, [answered], self._flops(Random(retention=retention)))

    def _downsample(self, retention: float, journal: Journal) -> Row:
        smaller, share = downsample(self.picture, self.subject.processor, retention)
        flops = _of_picture(self.planner, smaller, self.reader).plan(Random(retention=1.0)).flops.total
        return self._answered(DOWNSAMPLE, retention, [self.reader.read_resized(smaller.size, share, journal)], flops)

    def _answered(self, name: str, retention: float, answered: Sequence[Answered], flops: int) -> Row:
        return Row(name, retention, answered[0].average, flops, [each.answers for each in answered])

    def _flops(self, method: Pruner) -> int:
        return self.planner.plan(method).flops.total


def _of_picture(planner: Planner, picture: Image.Image, reader: Reader[Any]) -> Planner:
    size = Size(picture.height, picture.width)
    return replace(planner, size=planner.family.encoded_size(size, reader.processed(picture)))
