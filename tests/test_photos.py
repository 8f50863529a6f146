"""The scenes that the testbed is asked about: repeatable, of one layout at any size, and true to their questions."""

import re
from collections import Counter

import numpy as np
import pytest

from vitcop.photos import TYPES, scene
from vitcop.photos.catalogue import KINDS, NOUNS, plural
from vitcop.photos.compose import compose
from vitcop.photos.shelf import TEXTURES, Background, Shelf, photo, shipped, textures

SCENES = [scene(seed) for seed in range(60)]
SINGULAR = {plural(noun): noun for noun in NOUNS}


def answer(text: str, items: tuple) -> str:
    """What the items say, read off the words of the question."""
    things = [item for item in items if item.kind in NOUNS]
    noun = next((noun for noun in re.findall(r"[a-z]+", text) if noun in NOUNS), None)

    def only(kind: str):
        (item,) = [item for item in items if item.kind == kind]
        return item

    if text.startswith(("is there", "are there")):
        return "yes" if noun in {item.kind for item in things} else "no"
    if text.startswith("how many"):
        asked = SINGULAR[re.search(r"how many (\w+)", text)[1]]
        return str(sum(item.kind == asked for item in things))
    if found := re.search(r"what (is|do you see|kind of thing is) at the (top|bottom) (left|right)\?", text):
        way, vertical, horizontal = found.groups()
        aim = np.array([horizontal == "right", vertical == "bottom"], float)
        nearest = min(items, key=lambda item: np.abs(aim - item.center).max())
        return NOUNS[nearest.kind] if "kind" in way else nearest.kind
    if found := re.search(r"which (piece of )?(\w+) is", text):
        (kind,) = {item.kind for item in things if item.kind in KINDS[found[2]]}
        return kind
    if found := re.search(r"is the (\w+) (left or right of|above or below) the (\w+)\?", text):
        axis = int("above" in found[2])
        before = only(found[1]).center[axis] < only(found[3]).center[axis]
        return (("left", "right"), ("above", "below"))[axis][not before]
    if found := re.search(r"is the (\w+) (on the left|at the top) or", text):
        axis = int("top" in found[2])
        return (("left", "right"), ("top", "bottom"))[axis][only(found[1]).center[axis] > 0.5]
    if "sign" in text:
        return only("sign").text
    return only("dot").color


def test_answers_are_what_the_items_say():
    asked = Counter()
    for drawn in SCENES:
        for question in drawn.questions:
            asked[question.type] += 1
            if question.type == "background":
                assert question.answer == drawn.backdrop and question.answer in TEXTURES.values()
            else:
                assert question.answer == answer(question.text, drawn.items), question
    assert set(asked) == set(TYPES)


def test_what_a_background_shows_is_never_laid_on_it_or_asked_about():
    shelf = Shelf(shipped().cutouts, [Background(photo("coffee"), shows=("mug", "dog"))])
    for seed in range(40):
        drawn = compose(np.random.default_rng(seed), shelf)
        said = " ".join(f"{question.text} {question.answer}" for question in drawn.questions)
        assert not {"mug", "mugs", "dog", "dogs"} & set(re.findall(r"\w+", said))


@pytest.mark.parametrize("size", [112, 128])
def test_a_scene_is_the_same_at_any_size(size):
    for seed, drawn in enumerate(SCENES[:5]):
        other = scene(seed, size)
        assert other.picture.size == (size, size)
        assert (other.items, other.questions) == (drawn.items, drawn.questions)
        assert np.array_equal(np.unique(other.owner), np.unique(drawn.owner))


def test_training_and_test_share_no_part_of_a_texture():
    for name, left, right in zip(TEXTURES, textures(0), textures(1), strict=True):
        halves = [np.asarray(half.picture) for half in (left, right)]
        assert np.array_equal(np.concatenate(halves, 1)[:, : photo(name).width], np.asarray(photo(name)))
