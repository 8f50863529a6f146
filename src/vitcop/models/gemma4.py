"""Gemma 4: pictures of any shape in a budget of tokens, layers that share keys and values, inputs for each layer."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.gemma4.image_processing_pil_gemma4 import (
    Gemma4ImageProcessorPil,
    get_aspect_ratio_preserving_size,
)
from transformers.models.gemma4.modeling_gemma4 import apply_multidimensional_rope

from ..errors import UnsupportedModelError
from ..ops.gather import gather_slots
from .base import Call, Description, VisionModules
from .encoders import QUERIES, SIGLIP, Patches, Watched, with_axes
from .gemma3 import runs
from .geometry import Geometry, Size
from .grids import Grids, Shape, merged_grids
from .tower import TowerFamily

VIDEO_TOKENS = 70
"""Most tokens of a frame by default in `Gemma4VideoProcessor`, which needs torchvision to be imported."""


class Gemma4(TowerFamily):
    """One grid per picture or frame, padded to as many patches as the processor may make of any."""

    model_types = ("gemma4",)
    modalities = ("image", "video")
    encoders = {"gemma4_vision": SIGLIP}
    projector = "embed_vision"
    described = Description(
        saliency="attention received, mean over the patches of a token",
        grids="picture, frame",
        first_layer="1, and none behind the first layer whose keys others use",
        refuses=("no vision encoder", "another encoder", "flash attention", "text that sees what follows it"),
    )
    has_windows = True
    has_blocks = True
    layer_inputs = ("per_layer_input",)

    def __init__(self, model: PreTrainedModel) -> None:
        if model.config.vision_config is None:
            raise UnsupportedModelError(
                "This 'gemma4' model has no vision encoder, and so no visual tokens to drop; load one that has."
            )
        super().__init__(model)
        if self.decoder.config.use_bidirectional_attention == "all":
            raise UnsupportedModelError(
                "use_bidirectional_attention='all' lets text see what follows it, as in an encoder, where no KV cache "
                "can be pruned; use a model that generates."
            )

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        shapes = [_shape(places, self._pooled) for places in self._places(modality, call)]
        return merged_grids(
            [shapes[first:end] for first, end in self._spans(modality, call, len(shapes))], self._pooled
        )

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        places = self._places(modality, call)
        rope, cells = watched.inputs["position_embeddings"], watched.inputs["position_ids"]
        patches = with_axes(
            watched,
            (places >= 0).all(-1),
            lambda name, states: apply_multidimensional_rope(
                getattr(watched.module, "q_norm" if name == QUERIES else "k_norm")(states), *rope, cells
            ),
        )
        return patches.mean(_patches_of_tokens(places, self._pooled))

    @property
    def default_size(self) -> Size:
        pixels = 16 * self._pooled * self.model.config.vision_config.patch_size  # 256 of at most 280 tokens
        return Size(pixels, pixels)

    def geometry(self, size: Size) -> Geometry:
        patch, most = self.model.config.vision_config.patch_size, self._most_patches(size.modality)
        try:
            height, width = get_aspect_ratio_preserving_size(size.height, size.width, patch, most, self._pooled)
        except ValueError as error:
            raise UnsupportedModelError(f"The processor takes no {size.modality} of this size: {error}") from error
        frames = 1 if size.frames is None else size.frames
        # Each is between two markers; the time stamps of frames are left to the text.
        seen = Geometry.of([(height // patch, width // patch)] * frames, side=self._pooled, markers=2 * frames)
        return replace(seen, stretches=(most,) * frames, patches=most * frames)

    def vision(self, modality: str) -> VisionModules:
        modules = super().vision(modality)
        return replace(modules, embedding=[modules.tower.get_submodule("patch_embedder.input_proj")])

    def attention_blocks(self, call: Call) -> dict[str, Int[Tensor, "batch seq"]]:
        kinds = call.get("mm_token_type_ids")
        if kinds is None or self.decoder.config.use_bidirectional_attention != "vision":
            return {}
        return {"sliding_attention": runs((kinds == 1) | (kinds == 2))}

    def gather_features(self, kwargs: Call, slots: Int[Tensor, "batch kept"], alive: Tensor, count: int) -> Call:
        inputs = kwargs.get("per_layer_inputs")
        return {} if inputs is None else {"per_layer_inputs": gather_slots(inputs, slots, -3)}

    def _places(self, modality: str, call: Call) -> Int[Tensor, "pictures patches 2"]:
        """Column and row of each patch of each picture or frame, -1 for padding, on the CPU."""
        # Releases of transformers that have no numbers of frames have an axis of them.
        return call[f"{modality}_position_ids"].flatten(0, -3).cpu()

    def _spans(self, modality: str, call: Call, pictures: int) -> list[tuple[int, int]]:
        """First and end of the pictures or frames of each image or video."""
        if modality == "image":
            return [(number, number + 1) for number in range(pictures)]
        places = call["video_position_ids"]
        frames = call.get("num_frames_per_video", torch.full(places.shape[:1], places.shape[1], device="cpu"))
        return list(pairwise([0, *frames.cumsum(0).tolist()]))

    def _most_patches(self, modality: str) -> int:
        """To which the processor pads a picture or a frame."""
        tokens: int = Gemma4ImageProcessorPil.max_soft_tokens if modality == "image" else VIDEO_TOKENS
        return tokens * self._pooled**2

    @property
    def _pooled(self) -> int:
        """Rows and columns of patches that become one visual token."""
        side: int = self.model.config.vision_config.pooling_kernel_size
        return side


def _shape(places: Int[Tensor, "patches 2"], side: int) -> Shape:
    """Rows and columns of the patches of a picture."""
    columns, rows = (places.amax(0) + 1).tolist()
    if rows * columns != int((places >= 0).all(-1).sum()) or rows % side or columns % side:
        raise UnsupportedModelError(
            f"The places of the patches of a picture fill no grid of {side} x {side} to a token; pass pictures as the "
            "model's processor makes them."
        )
    return rows, columns


def _patches_of_tokens(places: Int[Tensor, "pictures patches 2"], side: int) -> Int[Tensor, "tokens patches_per_token"]:
    """Numbers of the patches that each visual token is pooled from, over all pictures with their padding."""
    column, row = (places // side).unbind(-1)
    token = row * (column.amax(1, keepdim=True) + 1) + column
    real = (places >= 0).all(-1)
    token = torch.where(real, token, token.amax() + 1)  # padding comes last
    order = token.argsort(dim=1, stable=True) + places.shape[1] * torch.arange(len(places), device="cpu")[:, None]
    return torch.cat([own[:count] for own, count in zip(order, real.sum(1).tolist(), strict=True)]).view(-1, side**2)
