"""MiniCPM-V 4.6 and 4.7: pictures and slices of any shape, whose patches are merged halfway through the encoder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

from ..errors import UnsupportedModelError
from .base import Call, Description, VisionModules
from .encoders import KEYS, QUERIES, SIGLIP, Encoder, Patches, Watched, in_one_row
from .geometry import Geometry, Size
from .grids import Grids, Shape, merged_grids
from .tower import TowerFamily, joined_within

SIDE = 2
"""Rows and columns of what becomes one: in the merger within the encoder, and once more behind the encoder."""
UNMERGED = "4x"
"""The `downsample_mode` in which the merger within the encoder is left out. In any other, it is not."""


class MiniCPMV(TowerFamily):
    """One grid for the whole of a picture or frame, and one for each of its slices, of another shape.

    Attributes:
        numbered: modalities in front of which the processor writes a number.
    """

    model_types: ClassVar[tuple[str, ...]] = ("minicpmv4_6",)
    modalities = ("image", "video")
    encoders: ClassVar[dict[str, Encoder]] = {"minicpmv4_6_vision": SIGLIP}
    projector = "merger"
    described = Description(
        saliency="attention received, mean over what a token is merged from",
        grids="picture, frame, slice; frames with two tokens between them are one video",
        first_layer="behind the first full-attention layer",
        refuses=("another encoder", "looking ahead at a layer that does not attend", "mergers of other than 2 x 2"),
    )
    tiles_are_images = True
    has_states = True
    numbered: ClassVar[tuple[str, ...]] = ("image", "video")

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        config = model.config
        sides = {*config.merge_kernel_size, *config.vision_config.window_kernel_size}
        if sides != {SIDE} or config.merger_times != 1:
            raise UnsupportedModelError(
                "The mergers of this MiniCPM-V make other visual tokens than its processor writes placeholders for; "
                "use a checkpoint whose merge_kernel_size and window_kernel_size are 2 x 2 and whose merger_times is "
                "1, as MiniCPM-V is published."
            )
        if hasattr(inspect.getmodule(type(self.tower("image"))), "get_vision_merged_shape"):
            raise UnsupportedModelError(
                "In this transformers, the encoder of MiniCPM-V takes all pictures and slices for as large as the "
                "first one; install transformers 5.24 or newer."
            )

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        return merged_grids([[shape] for shape in _shapes(modality, call)], self._merged(call))

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        shapes, side = _shapes(modality, call), self._merged(call)
        if side > SIDE and self._number(modality, watched) > self._last_unmerged:
            shapes, side = [(rows // SIDE, columns // SIDE) for rows, columns in shapes], side // SIDE
        heads = watched.module.num_heads, watched.module.head_dim
        queries, keys = (watched.made_by(name).flatten(0, 1).unflatten(-1, heads) for name in (QUERIES, KEYS))
        patches = in_one_row(watched, queries, keys, [rows * columns for rows, columns in shapes])
        return patches.merged([shapes], side)

    @property
    def default_size(self) -> Size:
        pixels = MiniCPMV4_6ImageProcessorPil.scale_resolution
        return Size(pixels, pixels)

    def geometry(self, size: Size) -> Geometry:
        side, patch = self._merged({}), self.model.config.vision_config.patch_size
        sizes, breaks = _resized(size, patch, self.model.config.downsample_mode)
        shapes, frames = [(height // patch, width // patch) for height, width in sizes], size.frames or 1
        # A marker stands on either side of each, and a number between two others in front of all.
        markers = frames * (2 * len(shapes) + breaks) + (3 if size.modality in self.numbered else 0)
        seen = Geometry.of(shapes * frames, side=side, markers=markers)
        if side == SIDE:
            return seen
        return replace(
            seen,
            windows=(SIDE**2,) * (seen.patches // SIDE**2),
            merged=tuple(patches // SIDE**2 for patches in seen.stretches),
        )

    def vision(self, modality: str) -> VisionModules:
        modules, merger = super().vision(modality), self.tower(modality).vit_merger
        if self._merged({}) == SIDE:
            return modules
        before, behind = modules.layers[: self._last_unmerged + 1], modules.layers[self._last_unmerged + 1 :]
        return replace(
            modules,
            layers=[*before, merger.self_attn, *behind],
            windowed=1,
            merged=len(behind),
            merging=[merger.linear_1, merger.linear_2],
        )

    def joined(self, tokens: Tensor, starts: Sequence[tuple[int, int]], lengths: Sequence[int]) -> list[bool]:
        # The whole of a picture or frame comes before its slices, and has another marker in front of it than these. Of
        # two frames of a video, nothing but the markers that close one and open the other stands between.
        rows, columns = (list(place) for place in zip(*starts, strict=True))
        firsts = dict(zip(reversed(rows), reversed(columns), strict=True))
        before, whole = tokens[rows, [c - 1 for c in columns]], tokens[rows, [firsts[row] - 1 for row in rows]]
        differs = before != whole
        is_slice = differs if tokens.ndim == 2 else differs.any(-1)
        is_frame = self.placeholders({"input_ids" if tokens.ndim == 2 else "inputs_embeds": tokens})["video"]
        kinds = torch.stack([is_slice, is_frame[rows, columns]], 1).tolist()
        near = joined_within(2, starts, lengths)
        return [part or (frame and follows) for (part, frame), follows in zip(kinds, near, strict=True)]

    def _merged(self, call: Call) -> int:
        """Rows and columns of patches that become one visual token."""
        mode = call.get("downsample_mode") or self.model.config.downsample_mode
        return SIDE if mode == UNMERGED else SIDE**2

    def _number(self, modality: str, watched: Watched) -> int:
        """Number of the encoder layer that is at work."""
        layers = self.tower(modality).get_submodule(self.encoder.layers)
        return [layer.self_attn for layer in layers].index(watched.module)

    @property
    def _last_unmerged(self) -> int:
        """Number of the encoder layer behind which patches are merged."""
        number: int = self.model.config.vision_config.insert_layer_id
        return number


class MiniCPMV47(MiniCPMV):
    """Visual tokens, and markers among them, have positions in the picture that is shown whole and in slices."""

    model_types = ("minicpmv4_7",)
    encoders = {"minicpmv4_7_vision": SIGLIP}
    keeps_positions = True
    numbered = ("image",)

    def check_prefix(self) -> None:
        raise UnsupportedModelError(
            "MiniCPM-V 4.7 takes line breaks behind an image for a part of it, so that where it ends is not known "
            "before the question is, and no prefix can be cached: ask whole prompts."
        )


def _shapes(modality: str, call: Call) -> list[Shape]:
    """Rows and columns of patches of each picture or frame and, behind each, of its slices."""
    sizes = call["target_sizes" if modality == "image" else "target_sizes_videos"]
    return [(rows, columns) for rows, columns in sizes.tolist()]


def _resized(size: Size, patch: int, mode: str) -> tuple[list[tuple[int, int]], int]:
    """Height and width, in pixels, that the processor gives to a picture or frame and to each of its slices, and the
    line breaks that it writes between rows of these.

    Args:
        patch: rows and columns of pixels in a patch.
        mode: the `downsample_mode`.
    """
    processor, picture = MiniCPMV4_6ImageProcessorPil(), (size.height, size.width)
    scale = processor.scale_resolution
    slices = processor.get_sliced_grid(picture, processor.max_slice_nums, scale)
    whole = processor.find_best_resize(picture, scale, patch, mode, allow_upscale=slices is None)
    if slices is None:
        return [whole], 0
    rows, columns = slices
    height, width = processor.get_refine_size(picture, slices, scale, patch, mode, allow_upscale=True)
    return [whole, *[(height // rows, width // columns)] * (rows * columns)], rows - 1
