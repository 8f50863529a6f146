"""What the engine must know about a model family."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError


@dataclass(frozen=True)
class Observation:
    """What the vision encoder showed of a batch of images, one row per visual token, image after image.

    Attributes:
        lengths: visual tokens per image.
        shapes: (rows, columns) in which the visual tokens of each image stand.
        keys, saliency, grid: as in `VisualTokens`.
    """

    lengths: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    keys: Float[Tensor, "visual heads head_dim"]
    saliency: Float[Tensor, " visual"]
    grid: Float[Tensor, "visual 2"]

    @staticmethod
    def concatenate(parts: Sequence[Observation]) -> Observation:
        """The images of all `parts`, in order."""
        if len(parts) == 1:
            return parts[0]
        return Observation(
            lengths=tuple(n for part in parts for n in part.lengths),
            shapes=tuple(shape for part in parts for shape in part.shapes),
            keys=torch.cat([part.keys for part in parts]),
            saliency=torch.cat([part.saliency for part in parts]),
            grid=torch.cat([part.grid for part in parts]),
        )

    def take(self, spans: Sequence[tuple[int, int]]) -> Observation:
        """The images of all `spans` (first, end), in order; spans may repeat."""
        starts = [0, *accumulate(self.lengths)]
        return Observation.concatenate(
            [
                Observation(
                    lengths=self.lengths[first:end],
                    shapes=self.shapes[first:end],
                    keys=self.keys[starts[first] : starts[end]],
                    saliency=self.saliency[starts[first] : starts[end]],
                    grid=self.grid[starts[first] : starts[end]],
                )
                for first, end in spans
            ]
        )


class ModelFamily(ABC):
    """Where things are in one family of models. One subclass per architecture, not per checkpoint.

    Attributes:
        model_types: `config.model_type` of the models that belong to the family.
        first_stage_layer: the earliest decoder layer before which tokens may be dropped, besides 0.
        key_cutoff: density cutoff known to suit the keys of this vision encoder, or None.
        observed: the vision attention module whose inputs `observe` gets.
    """

    model_types: ClassVar[tuple[str, ...]]
    first_stage_layer: ClassVar[int] = 1
    key_cutoff: float | None = None
    observed: nn.Module

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.base: PreTrainedModel = model.base_model
        self.decoder: PreTrainedModel = model.get_decoder()
        self.vision: PreTrainedModel = model.get_encoder("image")
        self.layers: nn.ModuleList = self.decoder.layers
        _check_decoder(self.decoder)

    def visual_mask(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Bool[Tensor, "batch seq"]:
        """Where the prompt has a placeholder for a visual token.

        Raises:
            UnsupportedModelError: the placeholders cannot be told from text in `inputs_embeds`.
        """
        token = self.model.config.image_token_id
        if input_ids is not None:
            return input_ids == token
        assert inputs_embeds is not None
        embedding = self.model.get_input_embeddings()
        placeholder = embedding(torch.full((), token, dtype=torch.long, device=inputs_embeds.device))
        mask = (inputs_embeds == placeholder).all(-1)
        if not mask.any():
            raise UnsupportedModelError(
                "Which of these inputs_embeds are visual tokens cannot be seen: pass input_ids, or inputs_embeds that "
                "still hold the image placeholders together with pixel_values."
            )
        return mask

    def check_call(self, call: dict[str, Any]) -> None:  # noqa: B027 - most families have nothing to refuse
        """Raise if this call of the base model asks for what cannot be pruned correctly."""

    def check_encoding(self, call: dict[str, Any]) -> None:  # noqa: B027 - most families have nothing to refuse
        """Raise if this call of the vision encoder asks for features that `observe` does not belong to."""

    @abstractmethod
    def observe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Observation:
        """Keys, saliency and grid of every visual token, from the inputs of `observed`."""


def _check_decoder(decoder: PreTrainedModel) -> None:
    """Raise unless every layer attends to all tokens before it, and gets its cache, mask and positions by name."""
    config = decoder.config
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        raise UnsupportedModelError(
            f"The {config.model_type!r} decoder has sliding-window or other partial attention, which is not supported."
        )
    parameters = inspect.signature(decoder.layers[0].forward).parameters
    if not {"past_key_values", "attention_mask", "position_embeddings"} <= parameters.keys():
        raise UnsupportedModelError(
            f"The layers of the {config.model_type!r} decoder take their cache or positions in a way that is "
            "not supported."
        )
