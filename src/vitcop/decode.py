"""A later forward of a pruned prompt: decoding, or another turn. Runs no code of the method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from .cache import PrunedCache
from .errors import UnsupportedModelError
from .layout import Layout, positions_of
from .models import ModelFamily


class Decode:
    """New tokens behind a batch of pruned prompts."""

    def __init__(self, family: ModelFamily, cache: PrunedCache, batch: int) -> None:
        assert cache.request is not None
        self.family, self.cache, self.request = family, cache, cache.request
        rows = len(self.request.positions)
        if batch != rows:
            raise UnsupportedModelError(f"The KV cache holds {rows} prompts, and {batch} rows came with it.")
        self.tail = cache.tail_length()
        cache.running = True

    def enter(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        new = kwargs["inputs_embeds"].shape[1]
        mask = kwargs.get("attention_mask")
        if mask is not None:
            seen = self.request.prompt_length + self.tail + new
            if mask.ndim != 2 or mask.shape[1] != seen:
                raise UnsupportedModelError(
                    f"attention_mask must be 2-D and cover the {seen} tokens of the conversation so far, dropped ones "
                    f"included; got shape {tuple(mask.shape)}."
                )
            self.prompt_mask, mask = mask.bool().tensor_split([self.request.prompt_length], dim=1)
        self.tail_mask: Tensor | None = mask
        positions = kwargs.get("position_ids")
        if positions is not None:  # counted in the unpruned prompt
            positions = positions - self.request.position_shift.to(positions.device)[:, None]
        else:
            next_position = self.request.next_position
            steps = torch.arange(self.tail, self.tail + new, device=next_position.device)[None]
            if mask is not None:
                steps = positions_of(mask)[:, -new:].to(next_position.device)
            positions = next_position[:, None] + steps
        padding = self._padding_mask(self.request.layouts[0], new)
        return kwargs | {"position_ids": positions, "attention_mask": padding}

    def before_layer(self, layer: int, hidden_states: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        if layer == 0:
            self.mask = kwargs.get("attention_mask")
        elif layer in self.request.layouts:
            padding = self._padding_mask(self.request.layouts[layer], hidden_states.shape[1])
            if padding is not None or self.mask is not None:
                self.mask = create_causal_mask(
                    config=self.family.decoder.config,
                    inputs_embeds=hidden_states,
                    attention_mask=padding,
                    past_key_values=self.cache,
                    layer_idx=layer,
                )
        return hidden_states, kwargs | {"attention_mask": self.mask}

    def release(self) -> None:
        self.cache.release()

    def _padding_mask(self, layout: Layout, new: int) -> Tensor | None:
        """2-D mask over what a stretch of layers holds of the prompt and all that came after it."""
        if layout.mask is None and self.tail_mask is None:
            return None
        prompt = torch.ones_like(layout.columns, dtype=torch.bool) if layout.mask is None else layout.mask
        if self.tail_mask is None:
            return torch.cat([prompt, prompt.new_ones(len(prompt), self.tail + new)], dim=1)
        given = self.prompt_mask.gather(1, layout.columns.to(self.prompt_mask.device))
        return torch.cat([prompt.to(given.device) & given, self.tail_mask], dim=1)
