"""One question about every picture in a folder, in batches, written as lines of JSON; what is no picture is skipped."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForImageTextToText, AutoProcessor

import vitcop
from vitcop.builtin import MODEL_PATH
from vitcop.inputs.pictures import read_picture

BATCH_SIZE = 8


def readable(files: list[Path]) -> Iterator[tuple[Path, Image.Image]]:
    """The pictures among some files; says which are none."""
    for file in track(files, "Answering", console=Console(stderr=True), transient=True):
        try:
            yield file, read_picture(file)
        except vitcop.VitcopError as error:
            print(f"skipped: {error}")


def answers(model: Any, processor: Any, pictures: list[Image.Image], question: str) -> list[str]:
    """What the model says to the same question about each."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    # A list of pictures for each prompt: processors differ in how they share out a plain one.
    images = [[picture] for picture in pictures]
    inputs = processor(text=[prompt] * len(pictures), images=images, padding=True, return_tensors="pt")
    inputs = inputs.to(model.device, dtype=model.dtype)
    output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


def main() -> None:
    """Read, answer, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("question")
    parser.add_argument("--output", type=Path, default=Path("answers.jsonl"))
    parser.add_argument("--model", default=str(MODEL_PATH), help="default: the small model in the box")
    given = parser.parse_args()

    device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", "float32")
    model = AutoModelForImageTextToText.from_pretrained(given.model, dtype=dtype, trust_remote_code=False).to(device)
    processor = AutoProcessor.from_pretrained(given.model, trust_remote_code=False)
    processor.tokenizer.padding_side = "left"
    files = sorted(file for file in given.folder.iterdir() if file.is_file())
    with vitcop.prune(model, vitcop.ViTCoP(retention=1 / 9)), given.output.open("w", encoding="utf-8") as lines:
        pictures = readable(files)
        while batch := list(islice(pictures, BATCH_SIZE)):
            said = answers(model, processor, [picture for _, picture in batch], given.question)
            for (file, _), answer in zip(batch, said, strict=True):
                lines.write(json.dumps({"picture": file.name, "answer": answer}) + "\n")


if __name__ == "__main__":
    main()
