"""Positions with several axes: tokens that are left stay at the rows and columns that they had in their picture.

vLLM has to know the position of every token before pictures are encoded, and asks for them again as they are, by its
interface for pruned videos. Until then what is left of a picture stands where the picture begins; text behind it is at
its place from the start, since that depends on the size of the picture alone. What a place is travels to the decoder
behind the features, in channels of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..entrance import PrunedFeatures
from ..models import Observation
from ..models.base import Call
from .model import PrunedModel

BASE = 128
"""Numbers are written in two digits, of which every floating point type holds each exactly."""

PLACES = 4
"""Frame, row and column of a token, and how many positions its picture takes."""


class MRoPE(PrunedModel):
    """Mixed into a pruned model of vLLM, before all else."""

    supports_multimodal_pruning = True
    config: Any

    def _encoded(self, call: Call) -> tuple[list[Tensor], Observation]:
        features, observation = super()._encoded(call)
        width = self.config.get_text_config().hidden_size
        return [image[:, :width] for image in features], observation  # vLLM's own class adds positions of its own

    def _placed(self, call: Call, left: list[PrunedFeatures]) -> list[Tensor]:
        grids = call["image_grid_thw"].tolist()
        placed: list[Tensor] = []
        for image, grid in zip(super()._placed(call, left), grids, strict=True):
            frames, rows, columns = self._grid(grid)
            number = left[len(placed)].placeholders
            axes = [number // (rows * columns), number // columns % rows, number % columns]
            places = torch.stack([*axes, torch.full_like(number, max(frames, rows, columns))], 1)
            placed.append(torch.cat([image, _digits(places).to(image)], 1))
        return placed

    def get_mrope_input_positions(self, input_tokens: Sequence[int], mm_features: Any) -> tuple[Tensor, int]:
        """Positions (3, tokens) until pictures are encoded, and by how much they are ahead at the end."""
        parts, position, done = [], 0, 0
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            first, length = feature.mm_position.offset, feature.mm_position.length
            parts += [_consecutive(position, first - done), torch.full((3, length), position + first - done)]
            position += first - done + max(self._grid(feature.data["image_grid_thw"].data.tolist()))
            done = first + length
        parts.append(_consecutive(position, len(input_tokens) - done))
        return torch.cat(parts, 1), position - done

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[list[Tensor], Tensor, int]:
        """Features without their places, positions with the pictures of this chunk at theirs, and as above."""
        positions = mrope_positions.clone()
        pictured = torch.as_tensor(input_ids, device=positions.device) == self.config.image_token_id
        features, end, behind = [], num_computed_tokens, 0
        for embedding in multimodal_embeddings:
            image, places = embedding.tensor_split([embedding.shape[1] - 2 * PLACES], 1)
            start = end + int(pictured[end:].int().argmax())
            end = start + len(embedding)
            text = (~pictured[:start]).nonzero()  # between any two pictures stands a marker
            before = int(text[-1]) if len(text) else -1
            begin = int(positions[:, before].max()) + 1 if len(text) else 0
            numbers = _numbers(places)
            positions[:, start:end] = begin + numbers[:, :-1].T.to(positions)
            behind = begin + int(numbers[0, -1])
            features.append(image)
        if not (end == positions.shape[1] and features):
            behind = int(positions[:, -1].max()) + 1
        return features, positions, behind - positions.shape[1]

    def _grid(self, patches: Sequence[int]) -> tuple[int, int, int]:
        """Frames, rows and columns of the tokens of a picture."""
        frames, rows, columns = patches
        side = self.config.vision_config.spatial_merge_size
        return frames, rows // side, columns // side


def _consecutive(first: int, count: int) -> Int[Tensor, "3 count"]:
    return torch.arange(first, first + count).expand(3, -1)


def _digits(numbers: Int[Tensor, "tokens places"]) -> Int[Tensor, "tokens digits"]:
    return torch.cat([numbers // BASE, numbers % BASE], 1)


def _numbers(digits: Tensor) -> Int[Tensor, "tokens places"]:
    high, low = digits.long().chunk(2, 1)
    return high * BASE + low
