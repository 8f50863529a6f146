"""Writes the trained model and an example picture into the package."""

import json
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from transformers import LlavaForConditionalGeneration

from training.model import SIDE, make_processor
from vitcop import ViTCoP, prune
from vitcop.builtin import MODEL_PATH
from vitcop.cli.common import Chat
from vitcop.pictures.drawing import groups_of_stages
from vitcop.scenes import Question, scene

EXAMPLE_SEED = 117
EXAMPLE_SIZE = 432  # three times what the model sees, for people


def export(model: LlavaForConditionalGeneration, card: str, target: Path) -> None:
    """Replaces ``target``/model, so that a reader finds the old files or the new, never half."""
    processor = make_processor()
    part = target / "model.part"
    shutil.rmtree(part, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(part)
    processor.save_pretrained(part)
    (part / "README.md").write_text(card)
    (target / "model").mkdir(parents=True, exist_ok=True)
    for file in sorted(part.iterdir()):
        file.chmod(0o644)
        file.replace(target / "model" / file.name)
    part.rmdir()


def export_example(model: LlavaForConditionalGeneration, target: Path) -> None:
    """The first scene from EXAMPLE_SEED on that shows well what pruning is for.

    That is one with a question about the colour of an object that the model answers right, dense and pruned, where
    all of the object is still there in the last stage, as tokens of its own or merged into others. In many it is not.
    """
    found = ((seed, question) for seed in count(EXAMPLE_SEED) for question in _told_by_what_is_left(model, seed))
    seed, question = next(found)
    scene(seed, "test", EXAMPLE_SIZE).picture.save(target / "example.png", optimize=True)
    example = {"question": question.text, "answer": question.answer}
    (target / "example.json").write_text(json.dumps(example, indent=2) + "\n")


def _told_by_what_is_left(model: LlavaForConditionalGeneration, seed: int) -> Iterator[Question]:
    """Questions about colours that are answered right, by what is left of the object in the last stage."""
    drawn, processor = scene(seed, "test", EXAMPLE_SIZE), make_processor()
    owner = drawn.patch_owner(SIDE).ravel()
    for question in drawn.questions:
        if question.type != "color":
            continue
        thing = next(i for i, item in enumerate(drawn.items, 1) if question.text.endswith(f" {item.kind}?"))
        chat = Chat.about((drawn.picture,), question.text, model, processor)
        with Progress(disable=True) as progress:
            dense = chat.answer(progress, "")
            with prune(model, ViTCoP(retention=1 / 9)) as pruning:
                answer = chat.answer(progress, "")
        left = set(pruning.report.stages[-1].kept()).union(*groups_of_stages(pruning.report, 0)[-1].values())
        if dense == answer == question.answer and left.issuperset(np.flatnonzero(owner == thing).tolist()):
            yield question


def main() -> None:
    """Chooses the example anew, for the model in the package."""
    model = LlavaForConditionalGeneration.from_pretrained(MODEL_PATH, dtype=torch.float32).eval()
    export_example(model, MODEL_PATH.parent)


if __name__ == "__main__":
    main()
