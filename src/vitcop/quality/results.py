"""What was answered, as plain data: JSON holds all of it, and tables and plots are made of nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import VitcopError
from ..records import taken
from .suite import WORLDS, Case

DENSE, MAJORITY, BLIND, ORACLE, DOWNSAMPLE, RANDOM = "dense", "majority", "blind", "oracle", "downsample", "random"
ONCE = (DENSE, MAJORITY, BLIND)
"""Contenders that no retention is asked of."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure, and where it lies with a chance of 95 %; None where all questions are about one scene."""

    value: float
    lowest: float | None
    highest: float | None


@dataclass(frozen=True)
class Setting:
    """What all answers of a run have in common.

    Attributes:
        model: folder or Hugging Face name.
        suite, seed: of the questions.
        visual_tokens: of each picture, unpruned.
        layers: of the decoder.
        dtype: of the weights.
        device: name of the CPU or GPU.
        batch: prompts at a time.
        versions: of vitcop and what it stands on.
    """

    model: str
    suite: str
    seed: int
    visual_tokens: int
    layers: int
    dtype: str
    device: str
    batch: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Row:
    """One contender at one retention.

    Attributes:
        name: of the method, or "dense", "majority", "blind", "oracle" or "downsample"; and its positions, if it was
            asked under these, as in "visionzip, keep".
        retention: that was asked for; 1 where none was.
        average: share of the visual tokens alive, averaged over decoder layers and questions.
        flops: until the first token, for one question, the encoder and the selection among them; 0 without a model.
        answers: to every question, once for each seed of a method that has seeds.
    """

    name: str
    retention: float
    average: float
    flops: int
    answers: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Refusal:
    """A contender that gives no answers at this retention, why, and the lowest at which it does (None: at none)."""

    name: str
    retention: float
    reason: str
    floor: float | None


@dataclass(frozen=True)
class Evaluation:
    """A run: all contenders at all retentions, the dense model among them."""

    setting: Setting
    cases: Sequence[Case]
    rows: Sequence[Row]
    refusals: Sequence[Refusal]

    @property
    def dense(self) -> Row:
        return next(row for row in self.rows if row.name == DENSE)

    @property
    def scenes(self) -> int:
        """That are asked about."""
        return len({case.scene for case in self.cases})

    @property
    def types(self) -> list[str]:
        """Of the questions."""
        return list(dict.fromkeys(case.type for case in self.cases))

    @property
    def groups(self) -> dict[str, list[str]]:
        """Types that ask where things are, and types that ask what they are; none unless there are both."""
        world = WORLDS.get(self.setting.suite)  # none of questions of one's own
        of_place = [kind for kind in self.types if world is not None and kind in world.of_place]
        of_content = [kind for kind in self.types if kind not in of_place]
        return {"of place": of_place, "of content": of_content} if of_place and of_content else {}

    @property
    def retentions(self) -> list[float]:
        """That were asked for, from the highest down."""
        each: list[Row | Refusal] = [*self.rows, *self.refusals]
        return sorted({one.retention for one in each if one.name not in ONCE}, reverse=True)

    def accuracy(self, row: Row, *kinds: str) -> float:
        """Share of right answers, of all questions or of those of some types; the mean over seeds."""
        return float(self._right(row)[self._asked(*kinds)].mean())

    def spread(self, row: Row) -> tuple[float, float]:
        """The lowest and the highest accuracy of the row's seeds."""
        truth = [case.answer for case in self.cases]
        found = [sum(map(str.__eq__, answers, truth)) / len(truth) for answers in row.answers]
        return min(found), max(found)

    def agreement(self, row: Row) -> float:
        """Share of the answers, right or wrong, that are the dense model's."""
        (dense,) = self.dense.answers
        same = [answer == other for answers in row.answers for answer, other in zip(answers, dense, strict=True)]
        return sum(same) / len(same)

    def share_of_dense(self, row: Row) -> Interval:
        """Accuracy as a share of the dense model's.

        The interval is a paired bootstrap over scenes: questions about one scene are drawn together, for both models.

        Raises:
            VitcopError: the dense model answers nothing right.
        """
        own, dense = self._drawn(self._right(row)), self._drawn(self._right(self.dense))
        if not dense[0]:
            raise VitcopError("The dense model answers nothing right, so that no share of it can be told.")
        return self._interval(own[dense > 0] / dense[dense > 0])

    def gain(self, name: str, base: str, *kinds: str) -> Interval:
        """Accuracy of one contender minus another's, the mean over the retentions at which both answer.

        It is of all questions or of those of some types. The interval is a paired bootstrap over scenes.
        """
        found = {(row.name, row.retention): self._right(row) for row in self.rows}
        both = [share for share in self.retentions if (name, share) in found and (base, share) in found]
        better = np.mean([found[name, share] - found[base, share] for share in both], axis=0)
        of_kinds = self._asked(*kinds)
        gained, asked = self._drawn(better * of_kinds), self._drawn(of_kinds.astype(float))
        return self._interval(gained[asked > 0] / asked[asked > 0])

    def _asked(self, *kinds: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which questions are of these types; of none, all are."""
        return np.array([not kinds or case.type in kinds for case in self.cases])

    def _drawn(self, of_question: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Sums over the questions of scenes drawn at random, with repeats; the first is the sum over all scenes."""
        scenes = {number: index for index, number in enumerate(dict.fromkeys(case.scene for case in self.cases))}
        of_scene = np.bincount([scenes[case.scene] for case in self.cases], of_question, len(scenes))
        draws = np.random.default_rng(0).multinomial(len(scenes), np.full(len(scenes), 1 / len(scenes)), RESAMPLES)
        return np.concatenate([np.ones((1, len(scenes)), int), draws]) @ of_scene

    def _interval(self, drawn: np.ndarray[Any, np.dtype[np.float64]]) -> Interval:
        """What was asked, which is the first, and where 95 % of what was drawn lie."""
        if self.scenes == 1:  # of which every draw is the same
            return Interval(float(drawn[0]), None, None)
        lowest, highest = np.quantile(drawn[1:], (0.025, 0.975))
        return Interval(float(drawn[0]), float(lowest), float(highest))

    def _right(self, row: Row) -> np.ndarray[Any, np.dtype[np.float64]]:
        """1 or 0 for each question, the mean over the row's seeds."""
        truth = [case.answer for case in self.cases]
        return np.mean([[a == b for a, b in zip(answers, truth, strict=True)] for answers in row.answers], axis=0)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON; what follows from the answers is there as well, for who reads it."""
        values = dataclasses.asdict(self)
        for case in values["cases"]:
            del case["suite"]  # which is the setting's
        for row, value in zip(self.rows, values["rows"], strict=True):
            parts = {**self.groups, **{kind: [kind] for kind in self.types}}
            of_parts = {part: self.accuracy(row, *kinds) for part, kinds in parts.items()}
            value["accuracy"] = {"all": self.accuracy(row)} | of_parts
            value["share_of_dense"] = dataclasses.asdict(self.share_of_dense(row))
            value["agreement"] = self.agreement(row)
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Evaluation:
        """What `to_dict` gave, also after a way through JSON."""
        return Evaluation(
            setting=taken(Setting, values["setting"]),
            cases=tuple(taken(Case, {**case, "suite": values["setting"]["suite"]}) for case in values["cases"]),
            rows=tuple(taken(Row, row) for row in values["rows"]),
            refusals=tuple(taken(Refusal, refusal) for refusal in values["refusals"]),
        )
