"""A picture that is read once and asked about many times: its pruned KV cache answers every question."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import vitcop
from vitcop.builtin import EXAMPLE_PICTURE, MODEL_PATH
from vitcop.inputs.pictures import read_picture

QUESTIONS = ["what color is the circle?", "do you see a bus?", "what color is the ring?"]


def main() -> None:
    """Read the picture, then ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    parser.add_argument("--picture", type=Path, default=EXAMPLE_PICTURE)
    parser.add_argument("--model", default=str(MODEL_PATH), help="default: the small model in the box")
    given = parser.parse_args()

    device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", "float32")
    model = AutoModelForImageTextToText.from_pretrained(given.model, dtype=dtype, trust_remote_code=False).to(device)
    processor = AutoProcessor.from_pretrained(given.model, trust_remote_code=False)
    picture = read_picture(given.picture)

    def prompt(question: str) -> dict[str, torch.Tensor]:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return processor(text=text, images=picture, return_tensors="pt").to(device, dtype=model.dtype)

    with vitcop.prune(model, vitcop.ViTCoP(retention=1 / 9)):
        prefix = vitcop.ImagePrefix(model, **prompt(given.questions[0]))  # the text behind the picture is not read
        for question in given.questions:
            inputs = prompt(question)
            output = prefix.generate(**inputs, max_new_tokens=64, do_sample=False)
            answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            print(f"{question} {answer.strip()}")
    print(prefix.report)


if __name__ == "__main__":
    main()
