"""Idefics3 and SmolVLM: tiles with marker tokens between them, whose patches are merged by pixel shuffle."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .base import Call, Observation
from .tower import TowerFamily


class Idefics3(TowerFamily):
    """One grid per tile, padding patches included; the markers are text and stay."""

    model_types = ("idefics3", "smolvlm")
    encoders = ("idefics3_vision", "smolvlm_vision")
    grids = "tile; those up to a thumbnail are one picture"
    refuses = ("another encoder",)
    tiles_are_images = True
    saliency = "attention received, mean over the patches of a token"

    def observe(self, modality: str, call: Call, attention: Call) -> Observation:
        tiles, patches, _ = attention["hidden_states"].shape
        side = int(patches**0.5)
        merged = self.model.config.scale_factor
        return Observation.of(self._patches(modality, attention), [[(side, side)]] * tiles, merged)

    def joined(self, tokens: Tensor, starts: Sequence[tuple[int, int]], lengths: Sequence[int]) -> list[bool]:
        # The processor ends each picture with its thumbnail, so that the marker before the last tile of a
        # prompt is the one that stands before every thumbnail.
        rows = [row for row, _ in starts]
        last = {row: number for number, row in enumerate(rows)}
        markers = tokens[rows, [max(0, column - 1) for _, column in starts]].view(len(starts), -1)
        ends = (markers == markers[[last[row] for row in rows]]).all(-1).tolist()
        return [n > 0 and rows[n] == rows[n - 1] and not ends[n - 1] for n in range(len(starts))]
