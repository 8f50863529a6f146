"""Qwen2-VL and Qwen2.5-VL: pictures and videos of any size, merged by two, in window order, with 3-D positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from ..errors import UnsupportedModelError
from ..ops.segments import upload
from ..selection.tokens import VisualTokens
from .base import Call, Description, ModelFamily, VisionModules
from .encoders import FUSED, Patches, Watched, with_rotary
from .geometry import Geometry, Size
from .grids import Grids, Shape, merged_grids
from .repeats import Repeats

VIDEO_SIZE = {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}
"""Least and most pixels of a frame by default in `Qwen2VLVideoProcessor`, which needs torchvision to be imported."""


class Qwen2VL(ModelFamily):
    """One grid per picture, or per two frames of a video."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl")
    modalities = ("image", "video")
    described = Description(
        saliency="attention received in the last full-attention layer, mean over the patches of a token",
        grids="picture, two frames",
        refuses=("sliding windows in the decoder",),
    )
    keeps_positions = True
    runs_on_some = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.observed = {modality: self.encoder_attention(modality, 1.0) for modality in self.modalities}

    def encoder_attention(self, modality: str, depth: float) -> nn.Module:
        vision = self.base.visual
        wanted = depth * len(vision.blocks) - 1
        unwindowed = getattr(vision, "fullatt_block_indexes", range(len(vision.blocks)))
        return vision.blocks[min(unwindowed, key=lambda layer: abs(layer - wanted))].attn

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        return merged_grids(self._images(modality, call), self._merged)

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        side, shapes = self._merged, [shape for image in self._images(modality, call) for shape in image]
        lengths, place = [rows * columns for rows, columns in shapes], self._places(shapes)
        if (repeats := watched.repeats) is not None:
            lengths, place = [side**2 * length for length in repeats.lengths], repeats.places(place)
        patches = with_rotary(watched, *self._queries_and_keys(watched), lengths)
        return patches.mean(_patches_of(place, side**2))

    def encoder_places(self, sizes: Tensor) -> Int[Tensor, " tokens"]:
        return self._places([(rows, columns) for frames, rows, columns in sizes.tolist() for _ in range(frames)])

    def arguments_of_some(self, sizes: Tensor, repeats: Repeats) -> Call:
        side, device = self._merged, sizes.device
        patches = upload(_patches_of(repeats.kept, side**2).flatten(), device)
        arguments = {name: values[patches] for name, values in self._of_patches(sizes).items()}
        arguments["cu_seqlens"] = _ends([side**2 * length for length in repeats.lengths], device)
        if self._window is None:
            return arguments
        vision, place = self.model.config.vision_config, self.encoder_places(sizes)
        _, ends = get_vision_window_index(sizes.cpu(), side, vision.window_size, vision.patch_size)
        windows = torch.bucketize(side**2 * place[repeats.kept], ends[1:], right=True).bincount()
        window_ends = _ends((side**2 * windows[windows > 0]).tolist(), device)
        return arguments | {
            "window_index": upload(repeats.order(place), device),
            "cu_window_seqlens": window_ends,
        }

    def positions_alone(self, tokens: VisualTokens) -> Int[Tensor, "visual 3"]:
        """Frame, row and column of each token. Frames are one apart, however much time lies between them."""
        frames = [0, *accumulate(map(len, tokens.segment_sizes))]
        frame = tokens.segments - upload(frames[:-1], tokens.rows.device)[tokens.images]
        return torch.cat([frame[:, None], tokens.cells], 1)

    @property
    def default_size(self) -> Size:
        vision = self.model.config.vision_config
        pixels = 24 * vision.patch_size * vision.spatial_merge_size  # 576 visual tokens
        return Size(pixels, pixels)

    def geometry(self, size: Size) -> Geometry:
        vision = self.model.config.vision_config
        side, patch = vision.spatial_merge_size, vision.patch_size
        try:
            height, width = self._resized(size, patch * side)
        except ValueError as error:
            raise UnsupportedModelError(f"The processor takes no {size.modality} of this size: {error}.") from error
        shape = height // patch, width // patch
        grids = 1 if size.frames is None else -(-size.frames // vision.temporal_patch_size)
        geometry = Geometry.of([shape] * grids, side=side, markers=self._markers(size.modality, grids))
        if self._window is None:
            return geometry
        rows, columns = (_spans(count // side, self._window) for count in shape)
        windows = [tall * wide * side**2 for tall in rows for wide in columns]
        return replace(geometry, windows=tuple(windows * grids))

    def vision(self, modality: str) -> VisionModules:
        tower = self.base.visual
        full = getattr(tower, "fullatt_block_indexes", range(len(tower.blocks)))
        return VisionModules(
            tower=tower,
            layers=list(tower.blocks),
            attention=self.observed[modality],
            has_cls=False,
            projector=[tower.merger, *getattr(tower, "deepstack_merger_list", [])],
            windowed=len(tower.blocks) - len(full),
        )

    @staticmethod
    def _queries_and_keys(watched: Watched) -> tuple[Tensor, Tensor]:
        """As they were projected, (patches, heads, head_dim) each."""
        queries, keys, _ = watched.made_by(FUSED).unflatten(-1, (3, watched.module.num_heads, -1)).unbind(1)
        return queries, keys

    def _of_patches(self, sizes: Tensor) -> Call:
        """Those arguments of `arguments_of_some` that have a row per patch, for all patches."""
        return {"position_ids": get_vision_position_ids(sizes, self._merged)}

    def _places(self, shapes: Sequence[Shape]) -> Int[Tensor, " tokens"]:
        """Where the encoder has each token of grids of so many rows and columns of patches.

        It has the patches of a token one after another, and its tokens in the order of its windows.
        """
        tokens = [(rows // self._merged, columns // self._merged) for rows, columns in shapes]
        if self._window is not None:
            return _places_in_windows(tokens, self._window)
        return torch.arange(sum(rows * columns for rows, columns in tokens), device="cpu")

    def _resized(self, size: Size, factor: int) -> tuple[int, int]:
        """Height and width, in pixels, that the processor gives to a picture or to the frames of a video."""
        limits = Qwen2VLImageProcessorPil.size if size.frames is None else VIDEO_SIZE
        return smart_resize(size.height, size.width, factor, limits["shortest_edge"], limits["longest_edge"])

    def _markers(self, modality: str, grids: int) -> int:
        """Text tokens that the processor writes around placeholders."""
        return 2

    def _images(self, modality: str, call: Call) -> list[list[Shape]]:
        """The grids of each image or video of a call of the encoder, in patches."""
        return [[(rows, columns)] * frames for frames, rows, columns in call[f"{modality}_grid_thw"].tolist()]

    @property
    def _merged(self) -> int:
        """Rows and columns of patches that become one visual token."""
        return self.model.config.vision_config.spatial_merge_size

    @property
    def _window(self) -> int | None:
        """Rows and columns of tokens in a window of the encoder, if it has any."""
        vision = self.model.config.vision_config
        window = getattr(vision, "window_size", None)
        return None if window is None else window // vision.spatial_merge_size // vision.patch_size


def _patches_of(tokens: Int[Tensor, " tokens"], count: int) -> Int[Tensor, "tokens count"]:
    """Numbers of the patches of tokens that are each made of `count` in a row."""
    return tokens[:, None] * count + torch.arange(count, device="cpu")


def _ends(lengths: Sequence[int], device: torch.device) -> Int[Tensor, " ends"]:
    """Where each of some stretches begins, and the last one ends, as attention is told it."""
    return upload([0, *accumulate(lengths)], device).int()


def _spans(count: int, side: int) -> list[int]:
    """Rows, or columns, of each window, of which the last may be smaller."""
    return [min(side, count - start) for start in range(0, count, side)]


def _places_in_windows(shapes: list[Shape], side: int) -> Int[Tensor, " tokens"]:
    """Where each token stands when every grid is ordered window by window, `side` x `side` tokens each."""
    places, start = [], 0
    for rows, columns in shapes:
        row, column = (torch.arange(count, device="cpu") // side for count in (rows, columns))
        window = row[:, None] * (columns // side + 1) + column
        places.append(start + window.flatten().argsort(stable=True).argsort())
        start += rows * columns
    return torch.cat(places)
