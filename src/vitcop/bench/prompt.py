"""The prompt that is measured: a random picture, and random text behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ..models import Size


@dataclass(frozen=True, eq=False)
class Prompt:
    """A batch of equal prompts, and what is said after them.

    Attributes:
        inputs: of the model.
        continuation: a token of each prompt for every step of decoding.
    """

    inputs: dict[str, Tensor]
    continuation: Int[Tensor, "batch steps"]

    @property
    def length(self) -> int:
        """Tokens of each prompt."""
        return self.inputs["input_ids"].shape[1]


def random_picture(size: Size) -> Image.Image:
    """Noise: no processor makes less of it than of another picture of that size."""
    values = torch.randint(256, (size.height * size.width * 3,), generator=torch.Generator().manual_seed(0))
    return Image.frombytes("RGB", (size.width, size.height), bytes(values.tolist()))


def make_prompt(
    model: PreTrainedModel, processor: Any, picture: Image.Image, text_tokens: int, steps: int, batch: int
) -> Prompt:
    """A picture with text behind it, `batch` times, on the model's device.

    Args:
        model: that will read it.
        processor: of the model.
        picture: what it is about.
        text_tokens: behind what the processor makes of the picture.
        steps: of decoding.
        batch: prompts.
    """
    made = processor(text=getattr(processor, "image_token", "<image>"), images=picture, return_tensors="pt")
    made = made.to(model.device, dtype=model.dtype)
    ids = made["input_ids"]
    text = _random_text(model.config, text_tokens + steps)[None].to(ids.device)
    inputs: dict[str, Tensor] = {}
    for name, value in made.items():
        if name == "attention_mask":
            continue  # nothing is padded
        if name == "input_ids":
            value = torch.cat([ids, text[:, :text_tokens]], 1)
        elif value.shape == ids.shape:  # the kind of each token, which is 0 for text
            value = torch.cat([value, value.new_zeros(1, text_tokens)], 1)
        inputs[name] = value.repeat(batch, *[1] * (value.ndim - 1))
    return Prompt(inputs, text[:, text_tokens:].repeat(batch, 1))


def _random_text(config: PretrainedConfig, count: int) -> Int[Tensor, " count"]:
    """Ids that stand for no picture, and for nothing else that a model looks out for."""
    text = config.get_text_config()
    special = [value for part in (config, text) for name, value in part.to_dict().items() if name.endswith("_token_id")]
    special += [getattr(config, f"{kind}_token_id", None) for kind in ("image", "video")]  # by other names in some
    usual = torch.ones(text.vocab_size)
    for value in special:
        usual[value if value is not None else []] = 0
    return torch.multinomial(usual, count, replacement=True, generator=torch.Generator().manual_seed(1))
