"""Questions about a scene, by template, each with the answer that its items give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vitcop.scenes.item import Item
from vitcop.scenes.world import COLORS, EMOJI, HELD_OUT_PAIRS, SHAPES, SIGN

# ``small`` asks about a mark and ``background`` about what no object covers: neither is salient.
TYPES = ("existence", "count", "color", "place", "relation", "reading", "small", "background")
PER_SCENE = dict(zip(TYPES, (2, 2, 2, 1, 2, 1, 1, 1), strict=True))
MOST = 4  # the highest count that is asked for
APART = 0.12  # how far two centres must lie apart to be told left from right, in picture sides
OFF_CENTER = 0.06  # how far a centre must lie from the picture's to be told to lie on one side
AXES = (("left", "right"), ("above", "below"))
EDGES = (("on the left", "on the right"), ("at the top", "at the bottom"))

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A question of one of TYPES and its only right answer, both in lower case."""

    type: str
    text: str
    answer: str


def plural(noun: str) -> str:
    """The plural of one of the words for objects."""
    if noun == "fish":
        return noun
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def _choose(rng: np.random.Generator, options: Sequence[T]) -> T:
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


def _named_once(items: list[Item]) -> list[tuple[Item, str]]:
    """Objects with a name that fits no other, and that name."""
    counts = Counter(name for item in items for name in _names(item))
    return [(item, name) for item in items for name in _names(item) if counts[name] == 1]


def _place(rng: np.random.Generator, items: list[Item], split: str) -> Question | None:
    options = [
        (name, item.center[axis], EDGES[axis])
        for item, name in _named_once(items)
        for axis in (0, 1)
        if abs(item.center[axis] - 0.5) > OFF_CENTER and _may_ask(name, split)
    ]
    if not options:
        return None
    name, center, (first, second) = _choose(rng, options)
    side = (first if center < 0.5 else second).split()[-1]
    return Question("place", f"is the {name} {first} or {second}?", side)


def _relation(rng: np.random.Generator, items: list[Item], split: str) -> Question | None:
    named = _named_once(items)
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


def _small(rng: np.random.Generator, marks: list[Item]) -> Question:
    mark = _choose(rng, marks)
    return Question("small", f"what color is the {mark.kind}?", str(mark.color))


def _background(rng: np.random.Generator, backdrop: str) -> Question:
    return Question("background", _choose(rng, ("what is the background?", "what is behind the objects?")), backdrop)


_ABOUT_OBJECTS = {
    "existence": _existence,
    "count": _count,
    "color": _color,
    "place": _place,
    "relation": _relation,
    "reading": _reading,
}


def ask(rng: np.random.Generator, items: list[Item], backdrop: str, split: str) -> list[Question]:
    """Different questions about the scene, as many of each type as PER_SCENE has and it allows."""
    objects = [item for item in items if not item.small]
    marks = [item for item in items if item.small]
    asked: list[Question | None] = [
        _ABOUT_OBJECTS[kind](rng, objects, split) for kind in _ABOUT_OBJECTS for _ in range(PER_SCENE[kind])
    ]
    asked.append(_small(rng, marks) if marks else None)
    asked.append(_background(rng, backdrop))
    return list({question.text: question for question in asked if question}.values())
