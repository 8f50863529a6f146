"""What skipping repeated patches gains on a screen and costs on a photograph (NOTES, entry 14).

`python -m benchmarks.skipping` counts what repeats in drawn screens behind Qwen-VL's own processor, and prints
processor time, on one thread, of a model of Qwen2.5-VL's make with random weights.
"""

import io
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import vitcop
from vitcop.models.repeats import Repeats

IMAGE, TEXT, ROUNDS = 999, 32, 6
HD, TIMED = (1920, 1080), (1008, 728)
WORDS = ("the", "of", "patch", "window", "screen", "answer", "file", "settings", "search", "12.50", "2026", "total")

Draw = ImageDraw.ImageDraw


def text(draw: Draw, box: tuple[int, int, int, int], size: int, fill: str, share: float = 1.0) -> None:
    """Lines of random words in a box, of which the last fills this share of its width."""
    font, chance = ImageFont.load_default(size), random.Random(f"{box}")
    left, top, right, bottom = box
    for y in range(top, bottom - size, size * 3 // 2):
        end = left + (right - left) * (share if y + size * 3 > bottom else 1.0)
        x: float = left
        while x < end - 3 * size:
            word = chance.choice(WORDS) + " "
            draw.text((x, y), word, fill, font)
            x += draw.textlength(word, font)


def page(draw: Draw, width: int, height: int) -> None:
    """Black text on white, with margins."""
    text(draw, (width // 8, height // 10, width * 7 // 8, height * 9 // 10), 18, "black", 0.5)


def editor(draw: Draw, width: int, height: int) -> None:
    """Indented lines on dark, beside a list of files."""
    draw.rectangle((0, 0, width, height), "#1e1e1e")
    draw.rectangle((0, 0, width // 6, height), "#252526")
    text(draw, (16, 48, width // 7, height // 2), 15, "#cccccc")
    for line, y in enumerate(range(40, height * 3 // 4, 22)):
        start = width // 6 + 40 + 32 * (line * 7 % 4)
        text(draw, (start, y, start + width // 5 + 41 * (line * 5 % 9), y + 23), 15, "#d4d4d4")


def form(draw: Draw, width: int, height: int) -> None:
    """A dialogue on a desk: labels, fields, buttons."""
    draw.rectangle((0, 0, width, height), "#3a6ea5")
    left, top, right, bottom = width // 4, height // 6, width * 3 // 4, height * 5 // 6
    draw.rectangle((left, top, right, bottom), "#f0f0f0", "#404040")
    draw.rectangle((left, top, right, top + 32), "#e0e0e0")
    text(draw, (left + 12, top + 6, left + 300, top + 32), 16, "black")
    for y in range(top + 70, bottom - 100, 60):
        text(draw, (left + 40, y, left + 200, y + 28), 16, "black")
        draw.rectangle((left + 240, y - 4, right - 40, y + 26), "white", "#808080")
    for x in (right - 260, right - 140):
        draw.rectangle((x, bottom - 60, x + 100, bottom - 26), "#e1e1e1", "#808080")
        text(draw, (x + 20, bottom - 54, x + 90, bottom - 26), 16, "black")


def table(draw: Draw, width: int, height: int) -> None:
    """Numbers in cells between lines, in the upper half of the sheet."""
    for y in range(60, height, 28):
        draw.line((0, y, width, y), "#d0d0d0")
        for x in range(0, width, 120):
            draw.line((x, 60, x, height), "#d0d0d0")
            if y < height // 2:
                text(draw, (x + 6, y + 6, x + 110, y + 30), 14, "black")


def slide(draw: Draw, width: int, height: int) -> None:
    """A heading, some lines and a chart."""
    text(draw, (width // 12, height // 12, width * 2 // 3, height // 6), 48, "#203864")
    text(draw, (width // 10, height // 4, width // 2, height * 2 // 3), 28, "black")
    for bar, share in enumerate((0.5, 0.8, 0.35, 0.65)):
        x = width * 5 // 8 + bar * width // 14
        draw.rectangle((x, height * 3 // 4 - share * height / 2, x + width // 18, height * 3 // 4), "#4472c4")


SCREENS: dict[str, Callable[[Draw, int, int], None]] = {
    "page": page,
    "editor": editor,
    "form": form,
    "table": table,
    "slide": slide,
}


def screen(name: str, size: tuple[int, int]) -> Image.Image:
    """A drawn screen."""
    picture = Image.new("RGB", size, "white")
    SCREENS[name](ImageDraw.Draw(picture), *size)
    return picture


def noise(size: tuple[int, int]) -> Image.Image:
    """What a photograph is to exact comparison."""
    values = np.random.default_rng(0).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def jpeg(picture: Image.Image) -> Image.Image:
    """The picture after JPEG of quality 90."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return Image.open(file).convert("RGB")


def processed(picture: Image.Image) -> dict[str, torch.Tensor]:
    """What Qwen2-VL's processor makes of a picture; it resizes all that is no multiple of 28 pixels."""
    made = Qwen2VLImageProcessorPil()(picture, return_tensors="pt")
    return {name: made[name] for name in ("pixel_values", "image_grid_thw")}


def repeating(picture: Image.Image) -> float:
    """Share of the visual tokens that repeat a neighbour."""
    made = processed(picture)
    frames, rows, columns = made["image_grid_thw"][0].tolist()
    tokens = made["pixel_values"].view(frames * rows * columns // 4, -1)
    repeats = Repeats.of(tokens, [(frames, rows // 2, columns // 2)])
    return 0.0 if repeats is None else 1 - len(repeats.kept) / len(tokens)


def model_of_random_weights() -> Qwen2_5_VLForConditionalGeneration:
    """Small, with the 3B model's share of the encoder in the work for one visual token."""
    vision = {
        "depth": 6,
        "hidden_size": 512,
        "intermediate_size": 1368,
        "num_heads": 8,
        "out_hidden_size": 1024,
        "fullatt_block_indexes": [2, 5],
    }
    decoder = {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": IMAGE + 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    }
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=decoder, image_token_id=IMAGE)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


Inputs = dict[str, torch.Tensor]
Model = Qwen2_5_VLForConditionalGeneration


def encoder(model: Model, inputs: Inputs) -> None:
    """The vision encoder and its merger."""
    model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])


def first_token(model: Model, inputs: Inputs) -> None:
    """All that comes before the first token of an answer."""
    model(**inputs, logits_to_keep=1)


def seconds(work: Callable[[Model, Inputs], None], model: Model, inputs: Inputs, skip: bool, prune: bool) -> float:
    """Processor time of some work."""
    with torch.inference_mode(), ExitStack() as stack:
        if prune:
            stack.enter_context(vitcop.prune(model, vitcop.ViTCoP(retention=1 / 9)))
        if skip:
            stack.enter_context(vitcop.skip_repeated_patches(model))
        begun = time.process_time()
        work(model, inputs)
        return time.process_time() - begun


def lines() -> Iterator[str]:
    """A line for each screen, then one for each picture, kind of work and way."""
    pictures = {name: screen(name, HD) for name in SCREENS} | {"noise": noise(HD)}
    for name, picture in pictures.items():
        yield f"{name}: {repeating(picture):.0%} repeat, {repeating(jpeg(picture)):.0%} after JPEG"
    model = model_of_random_weights()
    timed = {name: screen(name, TIMED) for name in ("page", "editor")} | {"noise": noise(TIMED)}
    for name, picture in timed.items():
        inputs = processed(picture)
        tokens = int(inputs["image_grid_thw"].prod()) // 4
        inputs["input_ids"] = torch.tensor([[1, *[IMAGE] * tokens, *[5] * TEXT]])
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
        yield f"{name}: {tokens} visual tokens, of which {repeating(picture):.0%} repeat"
        ways = [(encoder, skip, False) for skip in (False, True)]
        ways += [(first_token, skip, prune) for prune in (False, True) for skip in (False, True)]
        rounds = [[seconds(work, model, inputs, skip, prune) for work, skip, prune in ways] for _ in range(ROUNDS)][1:]
        for number, (work, skip, prune) in enumerate(ways):
            own, whole = ([turn[n] for turn in rounds] for n in (number, 0 if work is encoder else 2))
            ratios = [one / other for one, other in zip(own, whole, strict=True)]
            yield (
                f"{name}, {work.__name__}, {'skipping' if skip else 'all patches'}, {'pruned' if prune else 'dense'}: "
                f"{median(own):.2f} s, {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for line in lines():
        print(line, flush=True)
