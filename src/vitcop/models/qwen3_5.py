"""Qwen3.5: Qwen3-VL without DeepStack, before a decoder most of whose layers are recurrent (gated delta net)."""

from __future__ import annotations

from .base import Description
from .qwen3_vl import Qwen3VL


class Qwen35(Qwen3VL):
    """What is dropped before a layer is read by no recurrent layer behind it either."""

    model_types = ("qwen3_5", "qwen3_5_moe")
    described = Description(
        saliency="attention received in the last layer, mean over the patches of a token",
        grids="picture, two frames",
        first_layer="behind the first full-attention layer",
        refuses=("looking ahead at a layer that does not attend",),
    )
    has_states = True
