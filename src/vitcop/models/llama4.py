"""Llama 4: tiles between markers, [CLS] behind their patches, pixel shuffle, and layers that attend within chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama4.modeling_llama4 import vision_apply_rotary_emb

from .base import Call, Description, VisionModules
from .encoders import Encoder, Patches, Watched, with_cls
from .geometry import Geometry, Size, least_enlarging
from .grids import Grids, Shape, merged_grids
from .tower import TowerFamily, joined_within

MOST_TILES = 16
"""Of a picture, the whole of it in one tile left out, by default in `Llama4ImageProcessor`."""
MOST_MARKERS = 2
"""That stand between two tiles of a picture: behind a row of them, and before the one that shows all of it."""


class Llama4(TowerFamily):
    """One square grid per tile. Of the decoder layers, every fourth attends to all, and turns no queries and keys.

    The whole has no base model: pictures enter it by itself, and its language model comes with a head.
    """

    model_types = ("llama4",)
    encoders = {"llama4_vision_model": Encoder("model.layers", "self_attn", has_cls=True)}
    described = Description(
        saliency="attention of [CLS], mean over the patches of a token",
        grids="tile; those up to the marker that begins a picture are one picture",
        refuses=("another encoder", "prompts that are longer than a chunk"),
    )
    tiles_are_images = True
    has_windows = True

    @staticmethod
    def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
        decoder: PreTrainedModel = model.language_model.model
        return decoder

    def features_in(self, output: Any) -> Tensor | Sequence[Tensor]:
        features: Tensor = output.last_hidden_state
        return features

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        return merged_grids(self._tiles(call), self._merged)

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        tiles = self._tiles(call)
        return self.patches(watched, len(tiles)).merged(tiles, self._merged)

    def patches(self, watched: Watched, pictures: int) -> Patches:
        angles = watched.inputs["freqs_ci"]

        def turn(states: Tensor) -> Tensor:
            turned: Tensor = vision_apply_rotary_emb(states, states, angles)[0]
            return turned

        return with_cls(watched, pictures, behind=True, turn=turn)

    def vision(self, modality: str) -> VisionModules:
        tower, modules = self.tower(modality), super().vision(modality)
        return replace(
            modules,
            embedding=[tower.patch_embedding.linear],
            projector=[tower.vision_adapter, *modules.projector],
        )

    def geometry(self, size: Size) -> Geometry:
        tile = self.model.config.vision_config.image_size
        rows, columns = least_enlarging(
            MOST_TILES, lambda rows, columns: min(rows * tile / size.height, columns * tile / size.width)
        )
        tiles = rows * columns
        # A marker behind each tile, and three around the one that shows all of the picture.
        separators = tiles if tiles > 1 else 0
        shapes = [self.square] * (tiles + (tiles > 1))
        return Geometry.of(shapes, side=self._merged, cls=True, markers=3 + separators)

    def joined(self, tokens: Tensor, starts: Sequence[tuple[int, int]], lengths: Sequence[int]) -> list[bool]:
        # Between two pictures there may be as few tokens, of which the last then begins a picture.
        rows, columns = (list(place) for place in zip(*starts, strict=True))
        before = tokens[rows, [column - 1 for column in columns]]
        begin = torch.full((), self.model.config.boi_token_id, device=tokens.device)
        begins = before == begin if before.ndim == 1 else (before == self.model.get_input_embeddings()(begin)).all(-1)
        near = joined_within(MOST_MARKERS, starts, lengths)
        return [close and not first for close, first in zip(near, begins.tolist(), strict=True)]

    def _tiles(self, call: Call) -> list[list[Shape]]:
        return [[self.square]] * len(call["pixel_values"])

    @property
    def _merged(self) -> int:
        """Rows and columns of patches that become one visual token."""
        return int(1 / self.model.config.vision_config.pixel_shuffle_ratio)
