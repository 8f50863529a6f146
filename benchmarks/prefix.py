"""What a cached image prefix gains where several questions are asked about one picture (NOTES, entry 15).

`python -m benchmarks.prefix` prints processor time until the first token of an answer, on one thread, of the model in
the box and of a named shape with random weights.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import vitcop
from vitcop.bench.prompt import make_prompt, random_picture
from vitcop.bench.random_weights import random_model
from vitcop.builtin import EXAMPLE_PICTURE, MODEL_PATH
from vitcop.models import Size

SHAPE, SIDE, TEXT, QUESTIONS, ROUNDS = "llava-onevision-0.5b", 384, 32, 4, 5
METHOD = vitcop.ViTCoP(retention=1 / 9)

Inputs = dict[str, torch.Tensor]


def subjects() -> Iterator[tuple[str, Any, Any, Image.Image]]:
    """Name, model, processor and picture."""
    box = AutoModelForImageTextToText.from_pretrained(MODEL_PATH, dtype=torch.float32, trust_remote_code=False)
    processor = AutoProcessor.from_pretrained(MODEL_PATH, trust_remote_code=False)
    yield "the model in the box", box.eval(), processor, Image.open(EXAMPLE_PICTURE)
    picture = random_picture(Size(SIDE, SIDE))
    yield SHAPE, *random_model(SHAPE, torch.device("cpu"), torch.float32), picture


def questions(model: Any, processor: Any, picture: Image.Image) -> list[Inputs]:
    """Whole prompts that differ in their text alone, which stands behind the picture."""
    inputs = make_prompt(model, processor, picture.convert("RGB"), TEXT, 1, batch=1).inputs
    *_, text = inputs["input_ids"].split([inputs["input_ids"].shape[1] - TEXT, TEXT], dim=1)
    return [
        inputs | {"input_ids": torch.cat([inputs["input_ids"][:, :-TEXT], text[:, torch.randperm(TEXT)]], 1)}
        for _ in range(QUESTIONS)
    ]


def seconds(work: Callable[[Inputs], object], asked: list[Inputs]) -> float:
    """Processor time for each of these, on average."""
    begun = time.process_time()
    for inputs in asked:
        work(inputs)
    return (time.process_time() - begun) / len(asked)


def measured(model: Any, asked: list[Inputs]) -> dict[str, float]:
    """Seconds of each way, side by side."""

    def whole(inputs: Inputs) -> None:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)

    times = {"dense": seconds(whole, asked)}
    with vitcop.prune(model, METHOD):
        times["pruned"] = seconds(whole, asked)
        times["read the prefix"] = seconds(lambda inputs: vitcop.ImagePrefix(model, **inputs), asked[:1])
        prefix = vitcop.ImagePrefix(model, **asked[0])

        def behind(inputs: Inputs) -> None:
            prefix.generate(**inputs, max_new_tokens=1, do_sample=False)

        times["behind it"] = seconds(behind, asked)
    times[f"all {QUESTIONS}, dense"] = QUESTIONS * times["dense"]
    times[f"all {QUESTIONS}, pruned"] = QUESTIONS * times["pruned"]
    times[f"all {QUESTIONS}, prefix"] = times["read the prefix"] + QUESTIONS * times["behind it"]
    return times


def lines() -> Iterator[str]:
    """For each model its prompt, then each way with its ratio to whole pruned prompts in the same round."""
    for name, model, processor, picture in subjects():
        asked = questions(model, processor, picture)
        visual = int((asked[0]["input_ids"] == model.config.image_token_id).sum())
        yield f"{name}: {visual} placeholders, {TEXT} tokens of text behind them"
        rounds = [measured(model, asked) for _ in range(ROUNDS)][1:]
        for way in rounds[0]:
            beside = f"all {QUESTIONS}, pruned" if way.startswith("all") else "pruned"
            ratios = [times[way] / times[beside] for times in rounds]
            spread = f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            yield f"{name}, {way}: {median(times[way] for times in rounds):.3f} s, {spread}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for line in lines():
        print(line, flush=True)
