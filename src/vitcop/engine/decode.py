"""A later forward of a pruned prompt: decoding, or another turn. Runs no code of the method."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import UnsupportedModelError
from ..models import ModelFamily
from ..models.base import Call
from .cache import PrunedCache
from .forward import Forward
from .layout import Layout
from .masks import entering_mask, last_queries, layer_mask, window_cuts
from .positions import count_positions


class Decode(Forward):
    """New tokens behind a batch of pruned prompts.

    Attributes:
        new: columns of what is new.
        counted: whether positions that come along are those that `generate` counts by itself.
    """

    def __init__(self, family: ModelFamily, cache: PrunedCache, batch: int, new: int, *, counted: bool = False) -> None:
        assert cache.request is not None
        self.family, self.cache, self.request, self.new = family, cache, cache.request, new
        self.counted = counted
        if batch != self.request.batch:
            raise UnsupportedModelError(
                f"The KV cache is of a batch of {self.request.batch}, and one of {batch} came with it; go on with as "
                "many prompts, or choose among those of the cache by batch_select_indices or batch_repeat_interleave."
            )
        self.tail = cache.tail_length()
        self.seen = self.request.prompt_length + self.tail + new
        family.check_length(self.seen)
        self.tail_mask: Tensor | None = None
        self.layout = self.request.layouts[0]
        self.masks: dict[str, Any] = {}
        self.interrupted = False
        cache.running = True

    def start(self, call: Call) -> Call:
        """The arguments of the base model, with the request's positions, and without the mask, which is made here."""
        mask = call.get("attention_mask")
        if mask is not None:
            if mask.ndim != 2 or mask.shape[1] != self.seen:
                raise UnsupportedModelError(
                    f"attention_mask must be 2-D and cover the {self.seen} tokens of the conversation so far, dropped "
                    f"ones included; got shape {tuple(mask.shape)}."
                )
            self.prompt_mask, self.tail_mask = mask.bool().tensor_split([self.request.prompt_length], dim=1)
            if self.family.has_states and self.new > 1 and not self.tail_mask[:, -self.new :].all():
                raise UnsupportedModelError(
                    "Padding behind a prompt would change the states into which some layers of this decoder fold its "
                    "tokens; go on with turns of one length, or row by row."
                )
        positions = call.get("position_ids")
        if positions is not None and positions.ndim == 3 and len(positions) != 3:
            positions = None  # `generate` counts on from the last prompt that the model has seen, whichever it was
        if self.counted and self.request.padded_behind:
            positions = None  # it counts on from the last column, which has none
        if positions is not None:  # counted in the unpruned prompt
            positions = self.request.positions.given(positions)
        else:
            first = self.request.next_position
            steps = torch.arange(self.tail, self.tail + self.new, device=first.device)[None]
            if self.tail_mask is not None:
                steps = count_positions(self.tail_mask)[:, -self.new :].to(first.device)
            positions = first[:, None] + steps
        return call | {"position_ids": positions, "attention_mask": None}

    def enter(self, kwargs: Call) -> Call:
        self.interrupted = True  # until it is over
        layout, embeds = self.request.layouts[0], kwargs["inputs_embeds"]
        needed = self.new > 1 or not self.is_plain
        mask = entering_mask(
            self.family,
            layout,
            self._real(layout),
            lambda layer: self._mask(layer, layout, embeds) if needed else None,
        )
        return kwargs | {"attention_mask": mask}

    def leaves_alone(self, kwargs: Call) -> bool:
        return self.is_plain and kwargs.get("attention_mask") is None

    @cached_property
    def is_plain(self) -> bool:
        """Whether no layer has padding, counts, or a window that ends, so that a single new token needs no mask."""
        return not window_cuts(self.family, self.seen) and all(map(self._needs_none, self.request.layouts.values()))

    def before_layer(self, layer: int, hidden_states: Tensor, kwargs: Call) -> tuple[Tensor, Call]:
        kind, layout = self.family.layer_kinds[layer], self.request.layout_at(layer)
        if layout is not self.layout:  # which may have come in a layer that was left alone
            self.layout, self.masks = layout, {}
        if kind not in self.masks:
            self.masks[kind] = kwargs.get("attention_mask")
            plain = kind == "full_attention" and self.masks[kind] is None and self._needs_none(layout)
            if layout is not self.request.layouts[0] and not plain:
                self.masks[kind] = self._mask(layer, layout, hidden_states)
        return hidden_states, kwargs | {"attention_mask": last_queries(self.masks[kind], hidden_states.shape[1])}

    def finish(self) -> None:
        self.interrupted = False

    def release(self) -> None:
        self.cache.release(interrupted=self.interrupted)

    def _needs_none(self, layout: Layout) -> bool:
        return layout.counts is None and self._real(layout) is None

    def _mask(self, layer: int, layout: Layout, hidden_states: Tensor) -> Any:
        steps = torch.arange(self.tail + self.new, device=self.request.ends.device)[None]
        if self.tail_mask is not None:  # padding of a later turn is no distance
            steps = count_positions(self.tail_mask).to(steps.device)
        tail = self.request.ends[:, None] + steps
        return layer_mask(
            self.family,
            layer,
            hidden_states,
            self.cache,
            real=self._real(layout),
            columns=torch.cat([layout.columns, tail.to(layout.columns.device)], 1),
            seen=self.seen,
            counts=None if layout.counts is None else layout.counts.map(lambda part: pad(part, (0, tail.shape[1]))),
        )

    def _real(self, layout: Layout) -> Tensor | None:
        """2-D mask over what a stretch of layers holds of the prompt and all that came after it."""
        if layout.mask is None and self.tail_mask is None:
            return None
        prompt = layout.alive
        if self.tail_mask is None:
            return torch.cat([prompt, prompt.new_ones(len(prompt), self.tail + self.new)], dim=1)
        given = self.prompt_mask.gather(1, layout.columns.to(self.prompt_mask.device))
        return torch.cat([prompt.to(given.device) & given, self.tail_mask], dim=1)
