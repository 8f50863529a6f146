"""Questions about what lies on a photograph, by template, each with the answer that its items give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from ..scenes.item import Item
from ..scenes.questions import Question
from ..scenes.world import SIGN
from .catalogue import ASKED_KINDS, KINDS, NOUNS, SEVERAL, SORTS, is_there, plural

TYPES = (
    "presence", "naming", "which", "category", "place", "relation", "count", "reading", "small", "background",
)  # fmt: skip
"""``small`` asks about a dot and ``background`` about what no object covers: neither is salient."""
MOST = 4  # the highest count that is asked for
OFF_CENTER = 0.08  # how far a centre must lie from the picture's to be told to lie on one side
APART = 0.15  # how far two centres must lie apart to be told left from right, in picture sides
CORNER = 0.42  # how far a corner reaches from its own, in picture sides
ALONE = 0.55  # no other object's centre may lie within this of a corner that is asked about

T = TypeVar("T")
Drafts = list[Question]


def _choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _presence(rng: np.random.Generator, items: list[Item], shelf: Sequence[str], backdrop: str | None) -> Drafts:
    """Of each thing one question that is right, and one about what is not there: mostly of the same kind."""
    there, drafts = {thing.kind for thing in items if thing.kind in NOUNS}, []
    for noun in sorted(there):
        absent = [other for other in shelf if other not in there and there.isdisjoint(SORTS.get(other, ()))]
        near = [other for other in absent if NOUNS[other] == NOUNS[noun]]
        for asked, answer in ((noun, "yes"), (_choose(rng, near if near and rng.random() < 0.6 else absent), "no")):
            text = is_there(asked)
            drafts.append(Question("presence", _choose(rng, (f"{text}?", f"{text} in the picture?")), answer))
    return drafts


def _in_corners(items: list[Item]) -> list[tuple[str, Item]]:
    """Corners with one thing in them and no other near."""
    found = []
    for vertical in ("top", "bottom"):
        for horizontal in ("left", "right"):
            away = []
            for thing in items:
                x, y = thing.center
                away.append((max(x if horizontal == "left" else 1 - x, y if vertical == "top" else 1 - y), thing))
            away.sort(key=lambda pair: pair[0])
            if away and away[0][0] < CORNER and (len(away) == 1 or away[1][0] > ALONE):
                found.append((f"{vertical} {horizontal}", away[0][1]))
    return found


def _naming(rng: np.random.Generator, items: list[Item], shelf: Sequence[str], backdrop: str | None) -> Drafts:
    return [
        Question("naming", _choose(rng, (f"what is at the {corner}?", f"what do you see at the {corner}?")), thing.kind)
        for corner, thing in _in_corners(items)
        if thing.kind in NOUNS
    ]


def _category(rng: np.random.Generator, items: list[Item], shelf: Sequence[str], backdrop: str | None) -> Drafts:
    return [
        Question("category", f"what kind of thing is at the {corner}?", NOUNS[thing.kind])
        for corner, thing in _in_corners(items)
        if NOUNS.get(thing.kind) in ASKED_KINDS
    ]


def _which(rng: np.random.Generator, items: list[Item], shelf: Sequence[str], backdrop: str | None) -> Drafts:
    drafts = []
    for kind in ASKED_KINDS:
        there = {thing.kind for thing in items if thing.kind in KINDS[kind]}
        if len(there) == 1:
            named = "piece of clothing" if kind == "clothing" else kind
            texts = (f"which {named} is there?", f"which {named} is in the picture?")
            drafts.append(Question("which", _choose(rng, texts), there.pop()))
    return drafts


def _named_once(items: list[Item]) -> list[Item]:
    counts = Counter(thing.kind for thing in items)
    return [thing for thing in items if counts[thing.kind] == 1 and not thing.small]


_EDGES = (("on the left", "on the right"), ("at the top", "at the bottom"))
_SIDES = (("left of", "right of"), ("above", "below"))


def _place(rng: np.random.Generator, items: list[Item], shelf: Sequence[str], backdrop: str | None) -> Drafts:
    return [
        Question(
            "place", f"is the {thing.kind} {first} or {second}?", (first, second)[thing.center[axis] > 0.5].split()[-1]
        )
        for thing in _named_once(items)
        for axis, (first, second) in enumerate(_EDGES)
        if abs(thing.center[axis] - 0.5) > OFF_CENTER
    ]


def _relation(rng: np.random.Generator, items: list[Item], shelf: Sequence[str], backdrop: str | None) -> Drafts:
    drafts = []
    for one in _named_once(items):
        for other in _named_once(items):
            for axis, (before, behind) in enumerate(_SIDES):
                step = one.center[axis] - other.center[axis]
                if one is not other and abs(step) > APART:
                    text = f"is the {one.kind} {before} or {behind} the {other.kind}?".replace("left of or", "left or")
                    drafts.append(Question("relation", text, (before, behind)[step > 0].removesuffix(" of")))
    return drafts


def _count(rng: np.random.Generator, items: list[Item], shelf: Sequence[str], backdrop: str | None) -> Drafts:
    """What is there several times, or, in half of the scenes where nothing is, something that is there once."""
    counts = Counter(thing.kind for thing in items if thing.kind in NOUNS and thing.kind not in SEVERAL)
    several = [noun for noun in sorted(counts) if 1 < counts[noun] <= MOST]
    asked = several or ([_choose(rng, sorted(counts))] if counts and rng.random() < 0.5 else [])
    return [Question("count", f"how many {plural(noun)} are there?", str(counts[noun])) for noun in asked]


def _reading(rng: np.random.Generator, items: list[Item], shelf: Sequence[str], backdrop: str | None) -> Drafts:
    signs = [thing for thing in items if thing.kind == SIGN]
    texts = ("what does the sign say?", "what is on the sign?")
    return [Question("reading", _choose(rng, texts), str(sign.text)) for sign in signs]


def _background(rng: np.random.Generator, items: list[Item], shelf: Sequence[str], backdrop: str | None) -> Drafts:
    texts = ("what is the background?", "what is behind the things?")
    return [] if backdrop is None else [Question("background", _choose(rng, texts), backdrop)]


_ABOUT: dict[str, Callable[[np.random.Generator, list[Item], Sequence[str], str | None], Drafts]] = {
    "presence": _presence,
    "naming": _naming,
    "which": _which,
    "category": _category,
    "place": _place,
    "relation": _relation,
    "count": _count,
    "reading": _reading,
    "background": _background,
}


def ask(rng: np.random.Generator, items: Sequence[Item], shelf: Sequence[str], backdrop: str | None) -> Drafts:
    """All questions that a scene allows, in an order drawn at random.

    Args:
        items: what lies there, dots included.
        shelf: nouns that a question may name, also where they are not there.
        backdrop: what the background is, if that can be said.
    """
    drafts = [draft for kind in _ABOUT for draft in _ABOUT[kind](rng, list(items), shelf, backdrop)]
    drafts += [Question("small", f"what color is the {item.kind}?", str(item.color)) for item in items if item.small]
    return [drafts[index] for index in rng.permutation(len(drafts))]
