"""VideoLLaMA 3: pictures and videos of any size, each with a merge size of its own, before a plain decoder."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.models.video_llama_3.image_processing_pil_video_llama_3 import (
    VideoLlama3ImageProcessorPil,
    smart_resize,
)

from ..errors import UnsupportedModelError
from .base import Call, Description
from .encoders import KEYS, QUERIES, SIGLIP, Patches, Watched, with_rotary
from .geometry import Geometry, Size
from .grids import Grids, merged_grids
from .tower import TowerFamily

VIDEO_SIZE = {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}
"""Least pixels of a frame, and most of all frames, by default in a processor that needs torchvision to be imported."""
VIDEO_MERGED = 2
"""Merge size by default of that processor, `VideoLlama3VideoProcessor`."""


class VideoLlama3(TowerFamily):
    """One grid per picture or frame. The frames of a video stand apart, each behind its time."""

    model_types = ("video_llama_3",)
    modalities = ("image", "video")
    encoders = {"video_llama_3_vision": SIGLIP}
    projector = "projector"
    described = Description(
        saliency="attention received, mean over the patches that a token is interpolated from",
        grids="picture, frame",
        refuses=("another encoder", "sliding windows in the decoder", "videos that the processor has compressed"),
    )

    def placeholders(self, call: Call) -> dict[str, Bool[Tensor, "batch seq"]]:
        compressed = call.get("video_compression_mask")
        if compressed is not None and not compressed.all():
            raise UnsupportedModelError(
                "The processor has compressed these videos, whose frames then lack tokens that a method would choose "
                "among: call it with use_token_compression=False, and prune by a lower retention."
            )
        return super().placeholders(call)

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        return tuple(
            merged_grids([[(rows, columns)] * frames], side)[0]
            for frames, rows, columns, side in self._sizes(modality, call)
        )

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        sizes, heads = self._sizes(modality, call), (watched.module.num_heads, -1)
        lengths = [rows * columns for frames, rows, columns, _ in sizes for _ in range(frames)]
        queries, keys = (watched.made_by(name).unflatten(-1, heads) for name in (QUERIES, KEYS))
        patches = with_rotary(watched, queries, keys, lengths)
        if all(side == 1 for *_, side in sizes):
            return patches
        return patches.mean(_interpolated((frames * rows * columns, side) for frames, rows, columns, side in sizes))

    @property
    def default_size(self) -> Size:
        pixels = 24 * self.model.config.vision_config.patch_size  # 576 visual tokens
        return Size(pixels, pixels)

    def geometry(self, size: Size) -> Geometry:
        patch, frames = self.model.config.vision_config.patch_size, size.frames or 1
        picture = VideoLlama3ImageProcessorPil
        limits, side = (picture.size, picture.merge_size) if size.frames is None else (VIDEO_SIZE, VIDEO_MERGED)
        least, most = limits["shortest_edge"], limits["longest_edge"] // frames
        try:
            height, width = smart_resize(size.height, size.width, patch * side, least, most)
        except ValueError as error:
            raise UnsupportedModelError(f"The processor takes no {size.modality} of this size: {error}.") from error
        # The time stamps of frames are left to the text.
        return Geometry.of([(height // patch, width // patch)] * frames, side=side)

    @staticmethod
    def _sizes(modality: str, call: Call) -> list[tuple[int, int, int, int]]:
        """Of each picture or video the frames, rows and columns of patches, and how many of either become one token."""
        sizes = torch.cat([call[f"{modality}_grid_thw"], call[f"{modality}_merge_sizes"][:, None]], 1)
        return [(frames, rows, columns, side) for frames, rows, columns, side in sizes.tolist()]


def _interpolated(sizes: Iterable[tuple[int, int]]) -> Int[Tensor, "tokens 4"]:
    """Numbers of the patches between which each visual token lies: those in the middle of its block, which stand one
    after another.

    Args:
        sizes: of each picture or video the patches, and rows and columns of a block.
    """
    numbers, start = [], 0
    for patches, side in sizes:
        blocks = start + torch.arange(patches, device="cpu").view(-1, side, side)
        middle = [(side - 1) // 2, side // 2]
        numbers.append(blocks[:, middle][:, :, middle].flatten(1))
        start += patches
    return torch.cat(numbers)
