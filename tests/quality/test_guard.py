"""The model in the box goes on answering as it did when it was shipped, dense and pruned."""

import json

import torch
from transformers import AutoModelForImageTextToText

from training.guard import FILE, METHODS, QUESTIONS, accuracy_lines, ask
from vitcop import builtin


def test_answers_are_those_that_were_stored_and_the_card_says_how_many_are_right():
    model = AutoModelForImageTextToText.from_pretrained(builtin.MODEL_PATH, dtype=torch.float32).eval()
    stored, given = json.loads(FILE.read_text()), ask(model)
    for name in METHODS:
        same = sum(map(str.__eq__, given[name], stored[name]))
        assert same >= 0.98 * QUESTIONS, f"{name}: {QUESTIONS - same} of {QUESTIONS} answers have changed"
    assert "\n".join(accuracy_lines(stored)) in (builtin.MODEL_PATH / "README.md").read_text(encoding="utf-8")
