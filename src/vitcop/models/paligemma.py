"""PaliGemma 1 and 2: pictures and the text of the prefix see each other both ways, and what follows sees backwards."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .base import Call, Description
from .encoders import SIGLIP, Patches, Watched
from .geometry import Geometry, Size
from .grids import Grids, merged_grids
from .tower import TowerFamily


class PaliGemma(TowerFamily):
    """One square grid per picture, of whose patches each becomes a visual token."""

    model_types = ("paligemma",)
    encoders = {"siglip_vision_model": SIGLIP}
    described = Description(
        saliency="attention received",
        refuses=("another encoder", "flash attention", "prompts without token_type_ids"),
    )
    has_blocks = True
    windows_cut_blocks = False

    def __init__(self, model: PreTrainedModel) -> None:
        # The decoder of PaliGemma 2 is Gemma 2, every other layer of which has a window.
        self.has_windows = "sliding_attention" in (getattr(model.get_decoder().config, "layer_types", None) or ())
        super().__init__(model)

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        return merged_grids([[self.square]] * len(call["pixel_values"]))

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        return self.patches(watched, len(call["pixel_values"]))

    def geometry(self, size: Size) -> Geometry:
        # The token that prompts begin with stands behind the picture, and a line break ends the question.
        return Geometry.of([self.square], markers=2)

    def attention_blocks(self, call: Call) -> dict[str, Int[Tensor, "batch seq"]]:
        kinds = call.get("token_type_ids")
        if kinds is None:
            raise UnsupportedModelError(
                "Without token_type_ids, PaliGemma is not told which tokens see each other both ways, and takes all or "
                "none, by the attention backend: pass them on as its processor makes them, 0 for the prompt and 1 for "
                "an answer behind it."
            )
        return dict.fromkeys(self.layer_kinds, torch.where(kinds == 0, 0, -1))
