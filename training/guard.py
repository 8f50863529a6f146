"""The answers that guard against regressions: the model in the box, asked the same questions, has to repeat them."""

import json
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from training.model import make_processor
from vitcop import Pruner, ViTCoP
from vitcop.builtin import MODEL_PATH
from vitcop.quality import Suite
from vitcop.quality.contenders import constant
from vitcop.quality.reader import Reader

FILE = Path(__file__).parent.parent / "tests" / "golden" / "answers.json"
QUESTIONS = 200
METHODS: dict[str, Pruner | None] = {
    "dense": None,
    "ViTCoP at 1/3": ViTCoP(retention=1 / 3),
    "ViTCoP at 1/9": ViTCoP(retention=1 / 9),
}


def ask(model: LlavaForConditionalGeneration) -> dict[str, list[str]]:
    """The answers to the guard's questions, by the names of METHODS."""
    reader = Reader(model, make_processor(), Suite.of("builtin", QUESTIONS).cases, batch=25)
    return {name: list(reader.read(method and constant(method)).answers) for name, method in METHODS.items()}


def accuracy_lines(answers: dict[str, list[str]]) -> list[str]:
    """How many of them are right, a row of a table for each method."""
    truth = [case.answer for case in Suite.of("builtin", QUESTIONS).cases]
    right = {name: sum(map(str.__eq__, given, truth)) for name, given in answers.items()}
    return [f"| {name} | {count} of {QUESTIONS} |" for name, count in right.items()]


def store(answers: dict[str, list[str]]) -> None:
    FILE.write_text(json.dumps(answers, indent=1) + "\n")


def main() -> None:
    """Asks the model in the package, stores what it answers, and prints how much of it is right."""
    model = LlavaForConditionalGeneration.from_pretrained(MODEL_PATH, dtype=torch.float32).eval()
    answers = ask(model)
    store(answers)
    print("\n".join(accuracy_lines(answers)))


if __name__ == "__main__":
    main()
