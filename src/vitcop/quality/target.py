"""The cheapest method and retention that keep a share of the dense answers: half of the questions choose it, and the
other half, which took no part, checks it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..errors import VitcopError
from ..figures import percent
from ..selection.pruner import Pruner
from .agreement import CONFIDENCE, Agreement, needed
from .journal import Answered
from .own import OwnQuestion, halves, worth
from .results import DENSE, Refusal, Row, Setting

Halves = tuple[Sequence[OwnQuestion], Sequence[OwnQuestion]]
"""Questions that choose, and questions that check."""


@runtime_checkable
class Answerer(Protocol):
    """Who is asked: the dense model, which is called `DENSE`, and candidates."""

    @property
    def setting(self) -> Setting:
        """What all answers have in common."""

    @property
    def candidates(self) -> Sequence[str]:
        """Names of the methods, with the positions that they are asked under, if they are given any."""

    @property
    def retentions(self) -> Sequence[float]:
        """That may be taken, from the highest to the lowest."""

    def method(self, name: str, retention: float) -> Pruner:
        """A candidate as it is asked."""

    def flops(self, name: str, retention: float) -> int:
        """Operations until the first token; raises where the candidate cannot average this."""

    def ask(self, questions: Sequence[OwnQuestion], name: str, retention: float) -> Answered:
        """The answers; raises where the candidate cannot give any."""


@dataclass(frozen=True)
class Half:
    """Questions that choose, or that check.

    Attributes:
        questions: that were asked.
        dense: what the dense model said to each.
    """

    questions: Sequence[OwnQuestion]
    dense: Sequence[str]

    @property
    def pictures(self) -> int:
        return len({each.digest for each in self.questions})

    @property
    def known(self) -> int:
        """Questions whose right answer is known."""
        return sum(each.answer is not None for each in self.questions)

    def right(self, answers: Sequence[str]) -> int:
        """How many of these the answers get right."""
        return sum(each.answer == answer for each, answer in zip(self.questions, answers, strict=True))

    def agreement(self, row: Row) -> Agreement:
        """Of its answers with the dense model's."""
        (answers,) = row.answers
        same = sum(answer == dense for answer, dense in zip(answers, self.dense, strict=True))
        return Agreement(same, len(self.questions), worth(self.questions))

    def shows(self, target: float, look: Row | Refusal) -> bool:
        """Whether the answers are such that the target is kept, with confidence."""
        return isinstance(look, Row) and self.agreement(look).at_least >= target


@dataclass(frozen=True)
class QualityPlan:
    """What was looked for, seen and chosen; all that is said of it follows from the answers.

    Attributes:
        setting: what all answers have in common.
        target: share of the dense model's answers to keep.
        candidates: that were asked.
        dense_flops: until the first token, of the dense prompt.
        choosing: the half that chooses.
        looks: what candidates said to it, or could not, in the order in which they were asked.
        held_out: the half that checks; None if nothing was chosen.
        check: what the winner said to it.
        method: the winner, ready for `vitcop.prune`.
    """

    setting: Setting
    target: float
    candidates: Sequence[str]
    dense_flops: int
    choosing: Half
    looks: Sequence[Row | Refusal]
    held_out: Half | None = None
    check: Row | None = None
    method: Pruner | None = None

    def of(self, candidate: str) -> list[Row | Refusal]:
        """What it was asked for."""
        return [look for look in self.looks if look.name == candidate]

    def taken(self, candidate: str) -> Row | None:
        """The lowest retention at which it was seen to keep the target with confidence; None if there is none."""
        rows = [look for look in self.of(candidate) if isinstance(look, Row) and self.choosing.shows(self.target, look)]
        return min(rows, key=lambda row: row.retention, default=None)

    @property
    def winner(self) -> Row | None:
        """Of what was taken, what needs the fewest operations until the first token; of equals, the first by name."""
        taken = [row for name in self.candidates if (row := self.taken(name)) is not None]
        return min(taken, key=lambda row: (row.flops, row.name), default=None)

    @property
    def seen(self) -> Agreement | None:
        """How many answers of the held-out half the winner kept."""
        return self.held_out.agreement(self.check) if self.held_out and self.check else None

    @property
    def holds(self) -> bool:
        """Whether there is a winner, and the held-out half saw it keep the target."""
        return self.seen is not None and self.seen.share >= self.target

    def to_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON; what follows from the answers is there as well, for who reads it."""
        return {
            "setting": dataclasses.asdict(self.setting),
            "target": self.target,
            "confidence": CONFIDENCE,
            "holds": self.holds,
            "chosen": self.method and self.method.to_dict(),
            "dense_flops": self.dense_flops,
            "choosing": _half_dict(self.choosing),
            "looks": [_look_dict(self.choosing, look) for look in self.looks],
            "held_out": self.held_out and _half_dict(self.held_out),
            "check": self.held_out and self.check and _look_dict(self.held_out, self.check),
        }


def split(questions: Sequence[OwnQuestion], target: float, seed: int) -> Halves:
    """The halves that choose and check.

    Raises:
        VitcopError: the target is no share that can be shown, or there are too few questions to show it.
    """
    if not 0 < target < 1:
        raise VitcopError(
            f"A quality is a share of the dense model's answers, above 0 and below 1, such as 0.97; got {target:g}."
        )
    both, least = halves(questions, seed), needed(target)
    if (found := min(map(worth, both))) < least:
        raise VitcopError(
            f"To show that {percent(target)} of the answers are kept takes questions about {2 * least} pictures, half "
            "of them to choose by and half to check by, and that if every answer is kept; of the "
            f"{len(questions)} questions given, one half is worth {found}, as answers about one picture go together."
        )
    return both


def search(answerer: Answerer, choosing: Half, target: float) -> Iterator[Row | Refusal]:
    """Bisect the retentions, for each candidate, for the lowest at which it keeps the target with confidence.

    Agreement need not fall with the retention: the target may be kept at a lower one as well, and missed at a higher.

    Returns:
        All that was asked, in turn; for each candidate, of n retentions at most 1 + log2(n).
    """
    for name in answerer.candidates:
        low, high = 0, len(answerer.retentions)
        while low < high:
            middle = (low + high) // 2
            look = _look(answerer, choosing, name, answerer.retentions[middle])
            yield look
            low, high = (middle + 1, high) if choosing.shows(target, look) else (low, middle)


def meet(answerer: Answerer, both: Halves, target: float) -> QualityPlan:
    """Choose by one half, and check by the other, which is asked nothing before there is a choice.

    Raises:
        VitcopError: the dense model cannot be asked, or one answer to all questions would keep the target.
    """
    choosing = Half(both[0], answerer.ask(both[0], DENSE, 1.0).answers)
    _refuse_constant(choosing, target)
    looks = tuple(search(answerer, choosing, target))
    dense_flops = answerer.flops(DENSE, 1.0)
    plan = QualityPlan(answerer.setting, target, tuple(answerer.candidates), dense_flops, choosing, looks)
    if (winner := plan.winner) is None:
        return plan
    held_out = Half(both[1], answerer.ask(both[1], DENSE, 1.0).answers)
    answered = answerer.ask(both[1], winner.name, winner.retention)
    check = dataclasses.replace(winner, average=answered.average, answers=[answered.answers])
    method = answerer.method(winner.name, winner.retention)
    return dataclasses.replace(plan, held_out=held_out, check=check, method=method)


def _look(answerer: Answerer, choosing: Half, name: str, retention: float) -> Row | Refusal:
    try:
        flops = answerer.flops(name, retention)
        answered = answerer.ask(choosing.questions, name, retention)
    except VitcopError as error:  # of the method: the dense model has answered
        return Refusal(name, retention, str(error), None)
    return Row(name, retention, answered.average, flops, [answered.answers])


def _refuse_constant(choosing: Half, target: float) -> None:
    """Raise where a model that sees nothing could keep the target."""
    ((answer, times),) = Counter(choosing.dense).most_common(1)
    if times >= target * len(choosing.dense):
        raise VitcopError(
            f"The dense model says {answer!r:.60} to {times} of {len(choosing.dense)} questions, and to say so always "
            f"would keep {percent(target)} without a look; ask more questions that have other answers."
        )


def _half_dict(half: Half) -> dict[str, Any]:
    return {
        "questions": [each.to_dict() for each in half.questions],
        "dense": list(half.dense),
        "worth": worth(half.questions),
        "answers_known": half.known,
        "dense_right": half.right(half.dense),
    }


def _look_dict(half: Half, look: Row | Refusal) -> dict[str, Any]:
    values = dataclasses.asdict(look)
    if isinstance(look, Refusal):
        return values
    agreement = half.agreement(look)
    seen = {"share": agreement.share, "at_least": agreement.at_least, "interval": list(agreement.interval)}
    return values | {"agreement": seen, "right": half.right(*look.answers)}
