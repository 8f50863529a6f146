"""The questions: about scenes that no training has shown, as many of each type, one per prompt."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from .. import photos, scenes
from ..errors import VitcopError, unknown_name
from ..scenes import Scene
from ..scenes.questions import AXES

SEEDS_APART = 1_000_000


@dataclass(frozen=True)
class World:
    """Where a suite has its scenes from.

    Attributes:
        draw: the scene of a seed, some pixels on a side.
        size: pixels on a side of the pictures that are shown.
        types: of questions.
        not_learned: those among them that the model that the suite is for answers hardly better than a guess, so that
            pruning could not make it worse.
        of_place: those among them whose answers follow from where things are.
    """

    draw: Callable[[int, int], Scene]
    size: int
    types: tuple[str, ...]
    not_learned: tuple[str, ...]
    of_place: tuple[str, ...]

    @property
    def asked(self) -> tuple[str, ...]:
        return tuple(kind for kind in self.types if kind not in self.not_learned)


WORLDS = {
    "builtin": World(
        lambda seed, size: scenes.scene(seed, "test", size),
        scenes.SIZE,
        scenes.TYPES,
        not_learned=("count", "place", "relation"),
        of_place=("place", "relation"),
    ),
    "photos": World(
        photos.scene,
        photos.SIZE,
        photos.TYPES,
        not_learned=("reading",),  # by the loss in training, before the testbed was asked anything else
        of_place=("naming", "category", "place", "relation"),
    ),
}
"""By the name of their suites."""


@dataclass(frozen=True)
class Case:
    """A question about a scene.

    Attributes:
        scene: its seed.
        type: one of its world's.
        answer: the only right one, in lower case.
        suite: one of `WORLDS`.
    """

    scene: int
    type: str
    question: str
    answer: str
    suite: str = "builtin"

    def picture(self) -> Image.Image:
        """The scene as it is shown, a square."""
        return WORLDS[self.suite].draw(self.scene, WORLDS[self.suite].size).picture

    def owner(self, side: int, pixels: int) -> Any:
        """Which of its items covers most of each patch, from 1 on, and 0 for none.

        Args:
            side: patches on a side.
            pixels: on a side of a patch, where masks are read.
        """
        return WORLDS[self.suite].draw(self.scene, side * pixels).patch_owner(side)


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

    @staticmethod
    def of(name: str, questions: int, seed: int = 0, types: Sequence[str] | None = None) -> Suite:
        """Questions about scenes of a world, as many of each type as of any other, up to one.

        Args:
            name: one of `WORLDS`.
            questions: how many.
            seed: another seed asks about other scenes. 0 is for reporting, all others for choosing.
            types: of questions; those that the world asks unless given.

        Raises:
            VitcopError: there is no such suite, or there are fewer questions than types.
        """
        if name not in WORLDS:
            raise VitcopError(unknown_name("suite", name, WORLDS))
        world = WORLDS[name]
        types = world.asked if types is None else types
        if questions < len(types):
            raise VitcopError(f"A suite has at least one question of each of {len(types)} types; got {questions}.")
        if seed < 0:
            raise VitcopError(f"A seed is 0 or more; got {seed}.")
        wanted = {
            kind: questions // len(types) + (number < questions % len(types)) for number, kind in enumerate(types)
        }
        cases: list[Case] = []
        number = seed * SEEDS_APART
        while any(wanted.values()):
            of_type = {question.type: question for question in world.draw(number, world.size).questions}
            for kind, question in of_type.items():
                if wanted.get(kind):
                    wanted[kind] -= 1
                    cases.append(Case(number, kind, question.text, question.answer, name))
            number += 1
        return Suite(name, seed, tuple(cases))


def _wording(case: Case) -> tuple[str, ...]:
    """What the question's words leave to guess among."""
    for pair in (("yes", "no"), *AXES, ("top", "bottom")):
        if case.answer in pair:
            return case.type, *pair
    return case.type, "number" if case.answer.isdigit() else "word"
