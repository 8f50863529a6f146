"""Models that are made in no time: the tests' tiny families, and named shapes of few and narrow layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import tiny
import torch
from families import FAMILIES
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

import vitcop
from vitcop.bench import SHAPES
from vitcop.bench.prompt import make_prompt, random_picture
from vitcop.bench.random_weights import fill_shape
from vitcop.bench.shapes import Shape
from vitcop.models import Size, family_of

CPU = torch.device("cpu")
TEXT_TOKENS = 32

METHODS: dict[str, vitcop.Pruner] = {
    name: method for name, method in tiny.METHODS.items() if name not in tiny.ENGINE and name != "pipeline"
}
"""All of them, and ViTCoP by the last query, at settings that the tiny models allow."""

# Of the decoder and of the encoder, as far as they have such a field. A head is as wide as the checkpoints' are.
_FEW: dict[str, Any] = {
    "num_hidden_layers": 8,
    "depth": 4,
    "hidden_size": 256,
    "intermediate_size": 512,
    "out_hidden_size": 256,
    "num_attention_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "fullatt_block_indexes": [2],
    "deepstack_visual_indexes": [1],
    # Large enough that attention is far from uniform, so that a token too many or too few shows in the logits.
    "initializer_range": 0.07,
}


@dataclass(frozen=True)
class Subject:
    """A model on the CPU in float32, and a batch of prompts for it.

    Attributes:
        name: for the record.
        build: makes both.
        has_masks: whether its attention always needs a mask, which flash attention does not take.
    """

    name: str
    build: Callable[[], tuple[PreTrainedModel, dict[str, Tensor]]]
    has_masks: bool = False

    def __str__(self) -> str:
        return self.name

    def on(self, device: torch.device, *dtypes: torch.dtype) -> tuple[PreTrainedModel, dict[str, Tensor]]:
        """Model and inputs of its own on a device, whose values went through some dtypes."""
        model, inputs = _built(self)
        model = copy.deepcopy(model)
        for weight in model.parameters():  # and no buffers: rotary frequencies never are in a narrow dtype
            weight.data = _cast(weight.data, dtypes)
        return model.to(device), {name: _cast(value, dtypes).to(device) for name, value in inputs.items()}


@cache
def _built(subject: Subject) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    return subject.build()


def _cast(values: Tensor, dtypes: Sequence[torch.dtype]) -> Tensor:
    for dtype in dtypes if values.is_floating_point() else ():
        values = values.to(dtype)
    return values


def tiny_family(name: str) -> Subject:
    """A tiny model, and a batch of all that it takes: images of several sizes, several in a prompt, none, a video."""
    family = FAMILIES[name]
    return Subject(
        f"tiny {name}",
        lambda: (family.model(), tiny.batch(tiny.ragged(family), family=family)),
        has_masks=name == "gemma3",
    )


def thin_shape(name: str, size: Size | None = None) -> Subject:
    """A named shape with as many visual tokens as it has, and few and narrow layers; one prompt.

    Args:
        size: of the picture; None is the family's usual one.
    """

    def build() -> tuple[PreTrainedModel, dict[str, Tensor]]:
        torch.manual_seed(0)
        model, processor = fill_shape(thin(SHAPES[name]), CPU, torch.float32)
        picture = random_picture(size or family_of(model).default_size)
        return model, make_prompt(model, processor, picture, TEXT_TOKENS, steps=0, batch=1).inputs

    return Subject(f"thin {name}", build)


def thin(shape: Shape) -> Shape:
    """The shape with few and narrow layers."""

    def config() -> PretrainedConfig:
        whole: Any = shape.config()
        for part in (whole.vision_config, whole.text_config):
            for name, value in _FEW.items():
                if hasattr(part, name):
                    setattr(part, name, value)
            if "mrope_section" in (getattr(part, "rope_parameters", None) or {}):
                part.rope_parameters["mrope_section"] = [8, 12, 12]
            if getattr(part, "layer_types", None):
                part.layer_types = part.layer_types[: _FEW["num_hidden_layers"]]
        return whole

    return Shape(config, shape.image_processor)
