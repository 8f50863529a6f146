"""Qwen2-VL and Qwen2.5-VL: pictures and videos of any size, merged by two, in window order, with 3-D positions."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from .base import Call, Description, ModelFamily, Observation
from .encoders import Watched, with_rotary
from .grids import Grids, Shape


class Qwen2VL(ModelFamily):
    """One grid per picture, or per two frames of a video."""

    model_types = ("qwen2_vl", "qwen2_5_vl")
    modalities = ("image", "video")
    described = Description(
        saliency="attention received in the last full-attention layer, mean over the patches of a token",
        grids="picture, two frames",
        refuses=("sliding windows in the decoder",),
    )
    keeps_positions = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.observed = {modality: self.encoder_attention(modality, 1.0) for modality in self.modalities}

    def encoder_attention(self, modality: str, depth: float) -> nn.Module:
        vision = self.base.visual
        wanted = depth * len(vision.blocks) - 1
        unwindowed = getattr(vision, "fullatt_block_indexes", range(len(vision.blocks)))
        return vision.blocks[min(unwindowed, key=lambda layer: abs(layer - wanted))].attn

    def observe(self, modality: str, call: Call, watched: Watched) -> Observation:
        vision = self.model.config.vision_config
        side = vision.spatial_merge_size
        images = [[(rows, columns)] * frames for frames, rows, columns in call[f"{modality}_grid_thw"].tolist()]
        lengths = [rows * columns for image in images for rows, columns in image]
        merged = [[(rows // side, columns // side) for rows, columns in image] for image in images]
        patches = with_rotary(watched, _project, lengths)
        # The encoder has the patches of a token one after another, and its tokens in the order of its windows.
        window = getattr(vision, "window_size", None)
        place = torch.arange(sum(lengths) // side**2, device="cpu")
        if window is not None:
            place = _places_in_windows(
                [shape for image in merged for shape in image], window // side // vision.patch_size
            )
        patches = patches.mean(place[:, None] * side**2 + torch.arange(side**2, device="cpu"))
        return Observation(tuple(Grids.full(*image) for image in merged), patches)


def _project(module: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    states = module.qkv(hidden_states).unflatten(-1, (3, module.num_heads, -1))
    return states[:, 0], states[:, 1]


def _places_in_windows(shapes: list[Shape], side: int) -> Int[Tensor, " tokens"]:
    """Where each token stands when every grid is ordered window by window, `side` x `side` tokens each."""
    places, start = [], 0
    for rows, columns in shapes:
        row, column = (torch.arange(count, device="cpu") // side for count in (rows, columns))
        window = row[:, None] * (columns // side + 1) + column
        places.append(start + window.flatten().argsort(stable=True).argsort())
        start += rows * columns
    return torch.cat(places)
