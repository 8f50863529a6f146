"""The questions: about generated scenes that no training has shown, as many of each type, one per prompt."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ..errors import VitcopError
from ..scenes import TYPES, scene
from ..scenes.questions import AXES

SEEDS_APART = 1_000_000
NOT_LEARNED = ("count", "place", "relation")
"""Types that the model in the box answers hardly better than a guess, so that pruning could not make it worse."""
ASKED = tuple(kind for kind in TYPES if kind not in NOT_LEARNED)


@dataclass(frozen=True)
class Case:
    """A question about a scene.

    Attributes:
        scene: seed of the scene, of the test split.
        type: one of `vitcop.scenes.TYPES`.
        answer: the only right one, in lower case.
    """

    scene: int
    type: str
    question: str
    answer: str

    def picture(self) -> Image.Image:
        """The scene, `vitcop.scenes.SIZE` pixels on a side."""
        return scene(self.scene, "test").picture


@dataclass(frozen=True)
class Suite:
    """Questions and where they come from."""

    name: str
    seed: int
    cases: Sequence[Case]

    @property
    def types(self) -> list[str]:
        return list(dict.fromkeys(case.type for case in self.cases))

    def guesses(self) -> list[str]:
        """The answer to each question that is right most often among those that fit its wording.

        Counted on the very questions it is measured on, so that no rule of one guess for a wording does better. Of few
        questions that is more than such a rule can hope for on others.
        """
        counts: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for case in self.cases:
            counts[_wording(case)][case.answer] += 1
        return [counts[_wording(case)].most_common(1)[0][0] for case in self.cases]


def builtin_suite(questions: int, seed: int = 0, types: Sequence[str] = ASKED) -> Suite:
    """Questions about generated scenes, as many of each type as of any other, up to one.

    Args:
        questions: how many.
        seed: another seed asks about other scenes. 0 is for reporting, all others for choosing.
        types: of questions, of `vitcop.scenes.TYPES`.

    Raises:
        VitcopError: there are fewer questions than types.
    """
    if questions < len(types):
        raise VitcopError(f"A suite has at least one question of each of {len(types)} types; got {questions}.")
    if seed < 0:
        raise VitcopError(f"A seed is 0 or more; got {seed}.")
    wanted = {kind: questions // len(types) + (number < questions % len(types)) for number, kind in enumerate(types)}
    cases: list[Case] = []
    number = seed * SEEDS_APART
    while any(wanted.values()):
        of_type = {question.type: question for question in scene(number, "test").questions}
        for kind, question in of_type.items():
            if wanted.get(kind):
                wanted[kind] -= 1
                cases.append(Case(number, kind, question.text, question.answer))
        number += 1
    return Suite("builtin", seed, tuple(cases))


def _wording(case: Case) -> tuple[str, ...]:
    """What the question's words leave to guess among."""
    for pair in (("yes", "no"), *AXES, ("top", "bottom")):
        if case.answer in pair:
            return case.type, *pair
    return case.type, "number" if case.answer.isdigit() else "word"
