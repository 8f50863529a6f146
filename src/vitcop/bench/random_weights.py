"""A model of some shape with random weights, made on its device, and a processor for it.

How long a forward takes does not depend on what the weights are.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, BatchFeature, PreTrainedModel

from ..errors import UnsupportedModelError
from ..models import ModelFamily, Size, family_of
from .shapes import SHAPES, Shape

_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def random_model(name: str, device: torch.device, dtype: torch.dtype) -> tuple[PreTrainedModel, RandomProcessor]:
    """A model of a named shape, and its processor.

    Raises:
        UnsupportedModelError: its weights do not fit the memory.
    """
    shape = SHAPES[name]
    with torch.device("meta"):
        count = AutoModelForImageTextToText.from_config(shape.config(), trust_remote_code=False).num_parameters()
    needed, there = count * dtype.itemsize, _memory(device)
    if needed > there:
        raise UnsupportedModelError(
            f"The weights of {name!r} take {needed / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')}, and the "
            f"{device.type} has {there / 1e9:.1f} GB; name a smaller shape, or a narrower --dtype."
        )
    return fill_shape(shape, device, dtype)


def fill_shape(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[PreTrainedModel, RandomProcessor]:
    """A model of a shape that need not have a name, and its processor."""
    # Initialised as for training, not left empty: denormals and NaNs slow a CPU down.
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(shape.config(), dtype=dtype, trust_remote_code=False).eval()
    return model, RandomProcessor(family_of(model), shape.image_processor())


def _memory(device: torch.device) -> int:
    """Bytes for weights: what is free of a GPU's, and what a container may use of a CPU's, where caches make way."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _CONTAINER.read_text(encoding="utf-8").strip() if _CONTAINER.exists() else "max"
    return min(physical, int(limit)) if limit.isdecimal() else physical


class RandomProcessor:
    """Pictures as the real image processor makes them, and as many placeholders; there is no tokenizer.

    Args:
        family: of the model, which knows how many placeholders a picture gets.
        image_processor: that of the checkpoint.
    """

    image_token = "<image>"

    def __init__(self, family: ModelFamily, image_processor: Any) -> None:
        self.family, self.image_processor = family, image_processor
        self.image_token_id: int = family.model.config.image_token_id

    def __call__(self, text: str, images: Image.Image, return_tensors: str) -> BatchFeature:
        """A prompt that is the picture and nothing else."""
        made = dict(self.image_processor(images, return_tensors=return_tensors))
        if "image_grid_thw" in made:
            count = int(made["image_grid_thw"].prod()) // self.family.model.config.vision_config.spatial_merge_size**2
        else:
            count = self.family.geometry(Size(images.height, images.width)).image.placeholders
        for name in ("num_patches", "num_soft_tokens_per_image"):  # which processors keep for themselves
            made.pop(name, None)
        ids = torch.full((1, count), self.image_token_id)
        if self.family.keeps_positions:  # whose axes go by what is a picture
            made["mm_token_type_ids"] = torch.ones_like(ids)
        return BatchFeature({"input_ids": ids} | made)
