"""Questions about a scene, by template, each with the answer that its items give."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.world import COLORS, EMOJI, HELD_OUT_PAIRS, SHAPES, SIGN

if TYPE_CHECKING:
    from training.scenes import Item

TYPES = ("existence", "count", "color", "relation", "reading")
PER_SCENE = {"existence": 3, "count": 2, "color": 2, "relation": 2, "reading": 1}
MOST = 5  # the highest count that is asked for
APART = 0.12  # how far two centres must lie apart to be told left from right, in picture sides
AXES = (("left", "right"), ("above", "below"))


@dataclass(frozen=True)
class Question:
    type: str
    text: str
    answer: str


def plural(noun: str) -> str:
    if noun == "fish":
        return noun
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def _choose(rng: np.random.Generator, options: list | tuple):
    return options[int(rng.integers(len(options)))]


def _names(item: Item) -> list[str]:
    """What one may call an object: a circle, a red circle, a cat."""
    return [item.kind, f"{item.color} {item.kind}"] if item.color else [item.kind]


def _may_ask(name: str, split: str) -> bool:
    color, _, kind = name.partition(" ")
    return split == "test" or (color, kind) not in HELD_OUT_PAIRS


def _absent(rng: np.random.Generator, items: list[Item], split: str) -> str:
    """Something that is not there. Mostly a near miss: a shape that is there in another colour."""
    there = {name for item in items for name in _names(item)}
    shapes = [item for item in items if item.color]
    while True:
        way = rng.random()
        if way < 0.5 and shapes:
            near = _choose(rng, shapes)
            if rng.random() < 0.5:
                name = f"{_choose(rng, tuple(COLORS))} {near.kind}"
            else:
                name = f"{near.color} {_choose(rng, SHAPES)}"
        elif way < 0.6:
            name = _choose(rng, SHAPES)
        elif way < 0.65:
            name = SIGN
        else:
            name = _choose(rng, EMOJI)
        if name not in there and _may_ask(name, split):
            return name


def _existence(rng: np.random.Generator, items: list[Item], split: str) -> Question:
    if rng.random() < 0.5:
        answer = "yes"
        item = _choose(rng, items)
        name = _names(item)[-1] if rng.random() < 0.8 else item.kind
    else:
        answer, name = "no", _absent(rng, items, split)
    thing = f"an {name}" if name[0] in "aeiou" else f"a {name}"
    text = _choose(
        rng,
        (
            f"is there {thing}?",
            f"is there {thing} in the picture?",
            f"do you see {thing}?",
            f"can you see {thing} in the image?",
        ),
    )
    return Question("existence", text, answer)


def _count(rng: np.random.Generator, items: list[Item], split: str) -> Question | None:
    counts = Counter(name for item in items for name in _names(item) if item.kind != SIGN)
    counts.update(f"{item.color} shape" for item in items if item.color)
    counts = Counter({name: count for name, count in counts.items() if count <= MOST})
    if not counts:
        return None
    if rng.random() < 0.1:
        name = _absent(rng, items, split)
    else:
        numbers = sorted(set(counts.values()))
        if len(numbers) > 1 and numbers[0] == 1 and rng.random() < 0.6:
            numbers = numbers[1:]  # nearly every scene has something that is there just once
        number = _choose(rng, numbers)
        name = _choose(rng, sorted(name for name, count in counts.items() if count == number))
    things = plural(name)
    text = _choose(
        rng,
        (
            f"how many {things} are there?",
            f"how many {things} do you see?",
            f"how many {things} are in the picture?",
        ),
    )
    return Question("count", text, str(counts[name]))


def _color(rng: np.random.Generator, items: list[Item], split: str) -> Question | None:
    counts = Counter(item.kind for item in items if item.color)
    alone = [item for item in items if counts[item.kind] == 1]
    if not alone:
        return None
    item = _choose(rng, alone)
    text = _choose(
        rng,
        (f"what color is the {item.kind}?", f"what is the color of the {item.kind}?"),
    )
    return Question("color", text, str(item.color))


def _relation(rng: np.random.Generator, items: list[Item], split: str) -> Question | None:
    counts = Counter(name for item in items for name in _names(item))
    named = [(item, name) for item in items for name in _names(item) if counts[name] == 1]
    pairs = [
        (one, other, axis)
        for one in named
        for other in named
        for axis in (0, 1)
        if abs(one[0].center[axis] - other[0].center[axis]) > APART
    ]
    if not pairs:
        return None
    (item, name), (other, other_name), axis = _choose(rng, pairs)
    before = item.center[axis] < other.center[axis]
    sides = AXES[axis]
    of = " of" if axis == 0 else ""
    if rng.random() < 0.5:
        text = f"is the {name} {sides[0]} or {sides[1]}{of} the {other_name}?"
        return Question("relation", text, sides[0] if before else sides[1])
    asked = int(rng.integers(2))
    text = f"is the {name} {sides[asked]}{of} the {other_name}?"
    return Question("relation", text, "yes" if before == (asked == 0) else "no")


def _reading(rng: np.random.Generator, items: list[Item], split: str) -> Question | None:
    sign = next((item for item in items if item.kind == SIGN), None)
    if sign is None:
        return None
    thing = "number" if str(sign.text).isdigit() else "word"
    text = _choose(rng, (f"what {thing} is on the sign?", "what does the sign say?", "read the sign."))
    return Question("reading", text, str(sign.text))


_ASKERS = {
    "existence": _existence,
    "count": _count,
    "color": _color,
    "relation": _relation,
    "reading": _reading,
}


def ask(rng: np.random.Generator, items: list[Item], split: str) -> list[Question]:
    """Different questions about the scene, as many of each type as PER_SCENE has and it allows."""
    questions: dict[str, Question] = {}
    for type_, many in PER_SCENE.items():
        for _ in range(many):
            question = _ASKERS[type_](rng, items, split)
            if question is not None:
                questions.setdefault(question.text, question)
    return list(questions.values())
