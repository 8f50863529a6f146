"""Writes the trained model and an example picture into the package."""

import json
import shutil
from itertools import count
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from training.model import make_processor
from vitcop.quality import Case
from vitcop.quality.reader import Reader
from vitcop.scenes import scene

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
    """The first scene from EXAMPLE_SEED on with a question about a colour that the model answers right."""
    for seed in count(EXAMPLE_SEED):
        asked = [q for q in scene(seed, "test").questions if q.type == "color"]
        cases = [Case(seed, question.type, question.text, question.answer) for question in asked]
        given = Reader(model, make_processor(), cases, len(cases)).read(None).answers if cases else ()
        right = [case for case, answer in zip(cases, given, strict=True) if answer == case.answer]
        if right:
            break
    scene(seed, "test", EXAMPLE_SIZE).picture.save(target / "example.png", optimize=True)
    example = {"question": right[0].question, "answer": right[0].answer}
    (target / "example.json").write_text(json.dumps(example, indent=2) + "\n")
