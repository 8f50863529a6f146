"""What the shared tests ask of a tiny model with random weights, and of the pictures that it takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from transformers import PreTrainedModel

PAD, IMAGE, VIDEO, BREAK = 0, 63, 62, 61
VOCABULARY, NUM_LAYERS = 64, 8

# Large enough that attention is far from uniform, so that a token too many or too few shows in the logits.
SPREAD = 0.2

DECODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "initializer_range": SPREAD,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": PAD,
}
ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": SPREAD,
}


@dataclass(frozen=True)
class Visual:
    """An image or a video in a prompt.

    Attributes:
        kind: "image" or "video".
        size: number of its size among those that the family takes.
        alone: whether it is the only image of its prompt.
        pixels: what the encoder gets of it, picture by picture: (pictures, 3, height, width).
    """

    kind: str
    size: int
    alone: bool
    pixels: Tensor = field(compare=False)


class TinyFamily(ABC):
    """A model of one family, small enough for a test.

    Attributes:
        name: what tests call it; the model type, unless a family has several encoders.
        kinds: "image" and "video", as far as it takes them.
        has_cls: whether its encoder has a [CLS] token.
        cls_behind: whether that stands behind the patches, and not before them.
        registers: tokens that its encoder has between [CLS] and the patches.
        sizes: how many sizes of images there are.
        frames_per_grid: pictures of a video that become one grid.
        shrunk_sizes: those of the sizes of which several patches are interpolated to one token.
        refuses: methods of `tiny.METHODS` that look at what layers of its decoder do not show.
    """

    name: str
    kinds: tuple[str, ...] = ("image",)
    has_cls: bool = False
    cls_behind: bool = False
    registers: int = 0
    sizes: int = 1
    frames_per_grid: int = 1
    shrunk_sizes: tuple[int, ...] = ()
    refuses: frozenset[str] = frozenset()

    @abstractmethod
    def build(self, attention: str) -> PreTrainedModel:
        """The model, without any setting of the random generator."""

    @abstractmethod
    def shape(self, kind: str, size: int, alone: bool) -> tuple[int, int, int]:
        """Pictures, height and width that the encoder gets of an image or a video."""

    @abstractmethod
    def tokens(self, visual: Visual) -> list[int]:
        """Placeholders, and what else the processor writes among them."""

    @abstractmethod
    def inputs(self, rows: list[list[Visual]]) -> dict[str, Tensor]:
        """What the processor makes of the images and videos of a batch of prompts; there is at least one."""

    def token_kinds(self, input_ids: Tensor) -> dict[str, Tensor]:
        """What the processor says of the kind of each token."""
        return {}

    def model(self, attention: str = "sdpa") -> PreTrainedModel:
        """A model of one's own; random numbers go on from where they stood when it was built."""
        model, state = self._built(attention)
        torch.set_rng_state(state)
        return deepcopy(model)

    @cache  # noqa: B019 - families last as long as the tests
    def _built(self, attention: str) -> tuple[PreTrainedModel, Tensor]:
        torch.manual_seed(0)
        return self.build(attention).eval(), torch.get_rng_state()

    def visual(self, kind: str, size: int, seed: int, alone: bool = True) -> Visual:
        generator = torch.Generator().manual_seed(1000 + seed)
        pictures, height, width = self.shape(kind, size, alone)
        return Visual(kind, size, alone, torch.randn(pictures, 3, height, width, generator=generator))


def of_kind(rows: list[list[Visual]], kind: str) -> list[Visual]:
    """All images, or all videos, of a batch."""
    return [visual for row in rows for visual in row if visual.kind == kind]


def sized(rows: list[list[Visual]]) -> dict[str, Tensor]:
    """Pictures of different sizes with their sizes, as Pixtral's encoder takes them."""
    images = of_kind(rows, "image")
    sizes = torch.tensor([visual.pixels.shape[2:] for visual in images])
    return {"pixel_values": padded([visual.pixels[0] for visual in images]), "image_sizes": sizes}


def padded(pixels: list[Tensor]) -> Tensor:
    """Pictures, or stacks of them, of different sizes as one tensor with zeros at the ends."""
    shape = [max(sizes) for sizes in zip(*(p.shape for p in pixels), strict=True)]
    out = torch.zeros(len(pixels), *shape)
    for number, picture in enumerate(pixels):
        out[(number, *map(slice, picture.shape))] = picture
    return out
