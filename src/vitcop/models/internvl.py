"""InternVL 3: tiles of equal size, whose patches are merged by pixel shuffle."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .base import Call, Description, Observation
from .encoders import Encoder, Watched
from .tower import OTHER_FEATURES, TowerFamily


class InternVL(TowerFamily):
    """One grid per tile; tiles whose placeholders follow each other are one picture."""

    model_types = ("internvl",)
    encoders = {"internvl_vision": Encoder("encoder.layer", "attention", has_cls=True)}
    described = Description(
        saliency="attention of [CLS], mean over the patches of a token",
        grids="tile; those that follow each other are one picture, so that frames of a video are pictures",
        refuses=OTHER_FEATURES,
    )
    tiles_are_images = True

    def observe(self, modality: str, call: Call, watched: Watched) -> Observation:
        tiles, tokens, _ = watched.hidden_states.shape
        side = int((tokens - 1) ** 0.5)
        merged = int(1 / self.model.config.downsample_ratio)
        return Observation.of(self.patches(watched), [[(side, side)]] * tiles, merged)

    def joined(self, tokens: Tensor, starts: Sequence[tuple[int, int]], lengths: Sequence[int]) -> list[bool]:
        ends = [None, *((row, column + length) for (row, column), length in zip(starts, lengths, strict=True))]
        return [start == end for start, end in zip(starts, ends, strict=False)]
