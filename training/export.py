"""Writes the trained model and an example picture into the package."""

import json
import shutil
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from training.evaluate import answers
from training.model import make_processor
from vitcop.scenes import scene

EXAMPLE_SEED = 117
EXAMPLE_SIZE = 384  # four times what the model sees, for people


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
    """A scene of the test split with a question about a colour that the model answers right."""
    drawn = scene(EXAMPLE_SEED, "test", EXAMPLE_SIZE)
    given = answers(model, make_processor(), drawn.picture, [q.text for q in drawn.questions])
    pairs = zip(drawn.questions, given, strict=True)
    question = next(q for q, a in pairs if a == q.answer and q.type == "color")
    drawn.picture.save(target / "example.png", optimize=True)
    example = {"question": question.text, "answer": question.answer}
    (target / "example.json").write_text(json.dumps(example, indent=2) + "\n")
