"""Tiny checkpoints that transformers and vLLM both read, and what both are asked."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from families import FAMILIES
from families.base import IMAGE, VIDEO
from PIL import Image
from processors import PROCESSORS, Written, square
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import vitcop
from vitcop.selection.pipeline import Pipeline, Stage

NEW_TOKENS = 8
WIDTH, HEADS, HEAD_DIM = 128, 4, 32  # vLLM's attention on a CPU takes no narrower heads
SIZES = {"wide": (112, 40), "tall": (80, 112), "small": (60, 60), "large": (220, 200)}
"""Width and height, of which those that tile make 3, 5 and 3 tiles, and LLaVA-OneVision 17, shrunk."""

SIGLIP = {"patch_size": 14, "vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}
WRITTEN = PROCESSORS | {
    "llava with siglip": Written(
        ("LlavaProcessor", SIGLIP), ("SiglipImageProcessor", square(84)), wide=36, tall=36, needs=()
    ),
}

ONEVISION = {
    "vision_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112], [224, 224]],
}
"""All that vLLM knows of it: pictures are shrunk to nine tiles."""


ON_BACKEND = ("llava with registers", "internvl", "qwen2_vl")
"""Families that vLLM's Transformers backend runs, which cannot run the decoder over a picture by itself."""


def served_methods(name: str, retention: float) -> dict[str, vitcop.Pruner]:
    """Every method that can be served on a family, and stages of others; all leave as many tokens."""

    def alone(selector: Any) -> vitcop.Pruner:
        return Pipeline([Stage(selector, 0, 0.5)], retention=retention, positions="compact")

    methods = {
        "visionzip": vitcop.VisionZip(retention),
        "divprune": vitcop.DivPrune(retention),
        "hiprune": vitcop.HiPrune(retention),
        "vispruner": vitcop.VisPruner(retention),
        "scope": vitcop.SCOPE(retention, positions="compact"),
        "score": vitcop.SCoRe(retention, positions="compact"),
        "census": vitcop.Census(retention, calibrate="none", positions="compact"),
        "random": alone(vitcop.Random()),
        "uniformgrid": vitcop.UniformGrid(retention),
        "averagepool": vitcop.AveragePool(retention),
        "two scans": alone(vitcop.TwoScans()),
        "salient clusters": alone(vitcop.SalientClusters()),
    }
    return methods | ({} if name in ON_BACKEND else {"earlyvitcop": vitcop.EarlyViTCoP(retention)})


def watching_methods(name: str, retention: float) -> dict[str, vitcop.Pruner]:
    """Those that look at different things, each of which processes have to put together."""
    looks_at = ("visionzip", "hiprune", "two scans", "earlyvitcop")  # features' layer, others, received, decoder
    return {key: method for key, method in served_methods(name, retention).items() if key in looks_at}


@cache
def checkpoint(name: str) -> str:
    """The folder of a tiny model with its processor."""
    family, folder = FAMILIES[name], Path(mkdtemp(prefix="vitcop-"))
    stock = family.model()
    config, processor = copy.deepcopy(stock.config), WRITTEN[name].build()
    if name == "llava_onevision":
        for setting, value in ONEVISION.items():
            setattr(config, setting, value)
        processor.vision_aspect_ratio = ONEVISION["vision_aspect_ratio"]
        processor.image_processor.image_grid_pinpoints = ONEVISION["image_grid_pinpoints"]
    text = config.get_text_config()
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = WIDTH, 2 * WIDTH, 4
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = HEADS, HEADS // 2, HEAD_DIM
    text.layer_types = ["full_attention"] * 4 if getattr(text, "layer_types", None) else None
    if "mrope_section" in (text.rope_parameters or {}):
        text.rope_parameters |= {"mrope_section": [4, 6, 6]}
    width = {"qwen2_vl": "hidden_size", "qwen2_5_vl": "out_hidden_size"}.get(name)
    if width is not None:
        setattr(config.vision_config, width, WIDTH)
    torch.manual_seed(0)
    model = type(stock)._from_config(config, attn_implementation="sdpa").eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if config.vision_config.model_type in ("clip_vision_model", "siglip_vision_model"):
        _rename_tower(folder / "model.safetensors")
    return str(folder)


def _rename_tower(weights: Path) -> None:
    """To what these weights were called before transformers 5.18, which vLLM's own classes go by."""
    names = {name: name.replace("vision_tower.", "vision_tower.vision_model.") for name in load_file(weights)}
    save_file({names[name]: weight for name, weight in load_file(weights).items()}, weights, metadata={"format": "pt"})


@dataclass(frozen=True)
class Question:
    """A prompt with pictures."""

    text: str
    pictures: tuple[Image.Image, ...]


def questions(name: str) -> list[Question]:
    """With one picture of each size, with two, among whose tokens a block of the KV cache ends, and with none."""
    sizes = [("wide",), ("tall",), ("large",), ("wide", "tall"), ("tall", "small"), ("small", "small"), ()]
    asked = []
    for number, names in enumerate(sizes):
        pictures = [_picture(10 * number + n, *SIZES[size]) for n, size in enumerate(names)]
        before = "what and " * 12 if len(names) > 1 else ""
        text = f"{before}look at {' and '.join([WRITTEN[name].image] * len(names)) or 'it'} what"
        asked.append(Question(text, tuple(pictures)))
    return asked


def _picture(seed: int, width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


class Reference:
    """A model in transformers, which `vitcop.prune` prunes."""

    def __init__(self, name: str) -> None:
        self.asked = questions(name)
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint(name), dtype=torch.float32).eval()
        self._processor = AutoProcessor.from_pretrained(checkpoint(name))
        self._answers: dict[vitcop.Pruner | None, list[list[int]]] = {}

    def answers(self, method: vitcop.Pruner | None) -> list[list[int]]:
        """Tokens of the answer to each question; of the dense model without a method."""
        if method not in self._answers:
            with nullcontext() if method is None else vitcop.prune(self.model, method):
                self._answers[method] = [self._answer(question) for question in self.asked]
        return self._answers[method]

    def _answer(self, question: Question) -> list[int]:
        inputs = self._processor(images=list(question.pictures) or None, text=[question.text], return_tensors="pt")
        settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO]}
        output = self.model.generate(**inputs, **settings)
        return output[0, inputs["input_ids"].shape[1] :].tolist()
