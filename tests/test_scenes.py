"""The scenes that the model in the box learns from: repeatable, true to their questions, and fair to the test split."""

import numpy as np
import pytest

from vitcop.scenes import SIZE, scene
from vitcop.scenes.world import HELD_OUT_PAIRS, SHAPES

SEEDS = range(60)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_seed_always_gives_the_same_scene(split):
    first, again = scene(5, split), scene(5, split)
    assert first.picture.tobytes() == again.picture.tobytes() and first.questions == again.questions
    assert first.picture.tobytes() != scene(6, split).picture.tobytes()


def test_held_out_pairs_are_for_the_test_split_alone():
    shown = {
        split: {(item.color, item.kind) for seed in SEEDS for item in scene(seed, split).items}
        for split in ("train", "test")
    }
    assert not shown["train"] & HELD_OUT_PAIRS and shown["test"] & HELD_OUT_PAIRS
    asked = " ".join(question.text for seed in SEEDS for question in scene(seed).questions)
    assert not any(f"{color} {shape}" in asked for color, shape in HELD_OUT_PAIRS)


def test_masks_and_answers_fit_the_items():
    for seed in SEEDS:
        drawn = scene(seed, "test")
        for number, item in enumerate(drawn.items, start=1):
            rows, columns = np.nonzero(drawn.owner == number)
            left, top, right, bottom = (SIZE * edge for edge in item.box)
            assert columns.min() >= left - 1 and columns.max() <= right + 1
            assert rows.min() >= top - 1 and rows.max() <= bottom + 1
        for question in drawn.questions:
            if question.type == "color":
                shape = next(shape for shape in SHAPES if shape in question.text)
                assert question.answer in {item.color for item in drawn.items if item.kind == shape}
            if question.type == "reading":
                assert question.answer in {item.text for item in drawn.items}
