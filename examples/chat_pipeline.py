"""transformers' own pipeline and chat template, on a pruned model: nothing else changes."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from transformers import pipeline

import vitcop
from vitcop.builtin import EXAMPLE_PICTURE, MODEL_PATH, example_question


def main() -> None:
    """Answer, and say what was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default=example_question())
    parser.add_argument("--picture", type=Path, default=EXAMPLE_PICTURE)
    parser.add_argument("--model", default=str(MODEL_PATH), help="default: the small model in the box")
    given = parser.parse_args()

    dtype = "auto" if torch.cuda.is_available() else "float32"
    ask = pipeline("image-text-to-text", model=given.model, dtype=dtype)
    content = [{"type": "image", "image": Image.open(given.picture)}, {"type": "text", "text": given.question}]
    chat = [{"role": "user", "content": content}]
    with vitcop.prune(ask.model, vitcop.ViTCoP(retention=1 / 9)) as pruning:
        (answer,) = ask(text=chat, max_new_tokens=64, do_sample=False, return_full_text=False)
    print(answer["generated_text"].strip())
    print(pruning.report)


if __name__ == "__main__":
    main()
