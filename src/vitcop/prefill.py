"""A prompt's first forward: stages between the layers of a stock decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.masking_utils import create_causal_mask

from .cache import PrunedCache, Request, adopt
from .errors import BudgetError, UnsupportedModelError, VitcopError
from .layout import Layout, gather_slots
from .models import ModelFamily, Observation
from .ops.segments import indices_of
from .pruner import Pruner
from .report import Report, StageReport
from .tokens import VisualTokens, merge_hidden_states


class Prefill:
    """A batch of prompts on its way through the decoder for the first time."""

    def __init__(
        self,
        family: ModelFamily,
        method: Pruner,
        visual: Tensor,
        counts: list[int],
        real: Tensor,
        lengths: list[int],
    ) -> None:
        self.family, self.method = family, method
        self.observations: list[Observation] = []
        self.stages: list[StageReport] = []
        self.checks: list[Tensor] = []
        self.cache: PrunedCache | None = None
        # What layers get instead of what the model passes on, since the last stage.
        self.fitted: dict[str, Any] = {}
        batch, width = visual.shape
        columns = torch.arange(width, device=visual.device).expand(batch, width)
        self.layout = Layout(columns, None if min(lengths) == width else real)
        self.layouts, self.row_lengths = {0: self.layout}, {0: tuple(lengths)}
        self.prompt_lengths, self.prompt_width, self.counts = tuple(lengths), width, counts
        # Of the visual tokens, in the flattened layout.
        self.slots = indices_of(visual.flatten(), sum(counts))
        self.text_after_images = width - 1 - (self.slots % width).max()
        # Of the layout, in the one that entered: what the model keeps passing on at full length.
        self.entered: Tensor | None = None

    def enter(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Apply stage 0 to what enters the language model."""
        hidden_states, method = kwargs["inputs_embeds"], self.method
        observation, self.rows = _images_of_rows(self.observations, self.counts)
        self.images, self.shapes = observation.lengths, observation.shapes
        self.bytes_per_value = hidden_states.element_size()
        schedules = {n: _checked_budgets(method, self.family, n) for n in set(self.images)}
        self.schedule = [schedules[n] for n in self.images]
        self.stage_layers = sorted({layer for budgets in self.schedule for layer in budgets})
        if all(min(budgets.values()) == n for budgets, n in zip(self.schedule, self.images, strict=True)):
            self.stage_layers = []  # nothing is ever dropped: leave the forward alone
            return kwargs

        self._to(hidden_states.device)
        self.tokens = VisualTokens(
            layer=0,
            stage=0,
            lengths=self.images,
            hidden_states=hidden_states.flatten(0, 1)[self.slots],
            keys=observation.keys,
            index=torch.cat([torch.arange(n, device=self.slots.device) for n in self.images]),
            grid=observation.grid,
            saliency=observation.saliency,
            key_cutoff=self.family.key_cutoff,
        ).to(hidden_states.device)
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = self.layout.columns
        positions = positions.expand(*positions.shape[:-2], *hidden_states.shape[:2])
        self.position_shift = torch.zeros_like(self.layout.columns[:, 0])
        if 0 in self.stage_layers:
            entering = self.layout
            hidden_states, slots = self._stage(hidden_states)
            if slots is not None:
                dropped = entering.ranks.gather(1, slots) - self.layout.ranks
                positions = gather_slots(positions, slots, -1)
                if method.positions == "compact":
                    positions = positions - dropped
                    self.position_shift = dropped[:, -1]
                kwargs |= {"inputs_embeds": hidden_states, "attention_mask": self.layout.mask}
        self.positions = positions
        return kwargs | {"position_ids": positions}

    def before_layer(self, layer: int, hidden_states: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Apply the stage that stands before `layer`, and give the layer what fits its tokens."""
        if not self.stage_layers:
            return hidden_states, kwargs
        if layer == 0:
            self._take_cache(kwargs.get("past_key_values"))
        elif layer in self.stage_layers:
            assert self.cache is not None and self.cache.last_keys is not None
            self._to(hidden_states.device)
            row, slot = self.slots // hidden_states.shape[1], self.slots % hidden_states.shape[1]
            self.tokens = replace(
                self.tokens.to(hidden_states.device),
                layer=layer,
                stage=self.stage_layers.index(layer),
                hidden_states=hidden_states.flatten(0, 1)[self.slots],
                keys=self.cache.last_keys.to(hidden_states.device)[row, :, slot],
            )
            hidden_states, slots = self._stage(hidden_states)
            if slots is not None:
                self.entered = slots if self.entered is None else self.entered.gather(1, slots)
                self.fitted = self._fit(layer, hidden_states, kwargs)
        kwargs = kwargs | self.fitted
        if "flash" in self.family.decoder.config._attn_implementation:
            # Flash attention would take gaps between positions for the borders of packed sequences.
            kwargs["position_ids"] = None
        return hidden_states, kwargs

    def release(self) -> None:
        if self.cache is not None:
            self.cache.release()

    def check_selections(self) -> None:
        """Raise if a stage's selection was not what it has to be; all at once, so that no stage waits for the host."""
        if self.checks and not torch.stack([check.cpu() for check in self.checks]).all():
            if self.cache is not None and self.cache.request is not None:
                self.cache.request = replace(self.cache.request, num_layers=0)  # never to be continued
            raise VitcopError(
                f"{self.method.name} made a selection that is not valid: keep must be ascending rows, as many of each "
                "image as its budget says, and merge must name slots of the same image, or be -1."
            )

    def report(self) -> Report:
        return Report(
            method=self.method.name,
            num_layers=len(self.family.layers),
            image_lengths=self.images,
            rows=self.rows,
            shapes=self.shapes,
            stages=tuple(self.stages),
            layouts=self.layouts,
            row_lengths=self.row_lengths,
            prompt_lengths=self.prompt_lengths,
            decoder_config=self.family.decoder.config,
            bytes_per_value=self.bytes_per_value,
        )

    def _take_cache(self, cache: Cache | None) -> None:
        if cache is None:
            raise UnsupportedModelError(
                "Pruning needs the KV cache, whose keys it selects by: leave use_cache on, gradient checkpointing off."
            )
        self.cache = adopt(cache)
        self.cache.request = Request(
            prompt_length=self.prompt_width,
            num_layers=len(self.family.layers),
            layouts=self.layouts,
            positions=self.positions,
            position_shift=self.position_shift,
            text_after_images=self.text_after_images,
        )
        self.cache.running = True

    def _stage(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Select, merge and repack. Returns the new hidden states and the slots they gather, None if all stayed."""
        tokens, (batch, width) = self.tokens, hidden_states.shape[:2]
        budget = tuple(b.get(tokens.layer, n) for b, n in zip(self.schedule, tokens.lengths, strict=True))
        with torch.no_grad():
            selection = self.method.select(tokens, budget)
            self.checks.append(tokens.allows(selection, budget))
        labels = tokens.labels | selection.labels
        self.stages.append(StageReport.of(tokens, selection, budget, labels.get("cluster")))
        self.tokens = replace(tokens, labels=labels).take(selection.keep, budget)
        if budget == tokens.lengths:
            return hidden_states, None

        flat, kept = hidden_states.flatten(0, 1), self.slots[selection.keep]
        if selection.merge is not None:
            flat = flat.index_copy(0, kept, merge_hidden_states(tokens.hidden_states, selection))
        alive = torch.ones_like(self.layout.columns, dtype=torch.bool) if self.layout.mask is None else self.layout.mask
        alive = alive.flatten().scatter(0, self.slots, False).scatter(0, kept, True).view(batch, width)
        lengths = list(self.row_lengths[max(self.row_lengths)])
        for row, before, after in zip(self.rows, tokens.lengths, budget, strict=True):
            lengths[row] -= before - after
        self.layout, slots = self.layout.keep(alive, lengths)
        self.layouts[tokens.layer], self.row_lengths[tokens.layer] = self.layout, tuple(lengths)

        new_slot = torch.arange(self.layout.width, device=slots.device).expand_as(slots)
        moved_to = torch.zeros_like(alive, dtype=torch.long).scatter(1, slots, new_slot)
        self.slots = kept // width * self.layout.width + moved_to.flatten()[kept]
        return gather_slots(flat.view_as(hidden_states), slots, -2), slots

    def _fit(self, layer: int, hidden_states: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments that the model goes on passing at the length that entered, at the length now."""
        assert self.entered is not None
        fitted: dict[str, Any] = {
            "attention_mask": create_causal_mask(
                config=self.family.decoder.config,
                inputs_embeds=hidden_states,
                attention_mask=self.layout.mask,
                past_key_values=self.cache,
                layer_idx=layer,
            ),
            "position_embeddings": tuple(gather_slots(e, self.entered, -2) for e in kwargs["position_embeddings"]),
        }
        if kwargs.get("position_ids") is not None:
            fitted["position_ids"] = gather_slots(kwargs["position_ids"], self.entered, -1)
        return fitted

    def _to(self, device: torch.device) -> None:
        """Follow a model that is spread over devices."""
        if self.slots.device == device:
            return
        self.slots, self.layout = self.slots.to(device), self.layout.to(device)
        if self.entered is not None:
            self.entered = self.entered.to(device)


def _images_of_rows(observations: Sequence[Observation], counts: Sequence[int]) -> tuple[Observation, tuple[int, ...]]:
    """The observed images in the order of the prompts they stand in, and the row of the batch of each.

    `generate` repeats prompts, for beams or several answers, after their images were encoded: then each
    prompt's images stand in that many consecutive rows.

    Args:
        observations: made by the vision encoder for this batch, in order.
        counts: visual tokens that each row of the batch has.
    """
    if not observations:
        raise UnsupportedModelError(
            "The prompt has image placeholders, but its images did not come through the vision encoder of this pruned "
            "model: pass pixel_values, make encoder outputs while the pruning is on, and leave out prefill_chunk_size."
        )
    seen = Observation.concatenate(observations)
    total = sum(seen.lengths)
    repeats = sum(counts) // total
    spans: list[tuple[int, int]] = []
    rows: list[int] = []
    image = 0
    for row in range(0, len(counts), max(1, repeats)):
        first = image
        while image < len(seen.lengths) and sum(seen.lengths[first : image + 1]) <= counts[row]:
            image += 1
        for copy in range(row, row + repeats):
            if sum(seen.lengths[first:image]) != counts[copy]:
                break
            spans.append((first, image))
            rows += [copy] * (image - first)
    if len(spans) != len(counts) or image != len(seen.lengths):
        raise UnsupportedModelError(
            f"{sum(counts)} image placeholders do not match the {total} visual tokens of {len(seen.lengths)} images."
        )
    return (seen if repeats == 1 else seen.take(spans)), tuple(rows)


def _checked_budgets(method: Pruner, family: ModelFamily, num_tokens: int) -> dict[int, int]:
    """The method's schedule, in order of its layers, if the family can carry it out."""
    num_layers = len(family.layers)
    budgets = dict(sorted(method.budgets(num_tokens, num_layers).items()))
    for layer in budgets:
        if layer != 0 and not family.first_stage_layer <= layer < num_layers:
            raise BudgetError(
                f"{method.name} would prune before layer {layer}; this model can be pruned at 0 and from "
                f"{family.first_stage_layer} to {num_layers - 1}."
            )
    counts = [num_tokens, *budgets.values()]
    if not budgets or not all(isinstance(number, int) for number in (*budgets, *counts)):
        raise BudgetError(f"{method.name} must give whole numbers of tokens for whole layers, not {budgets}.")
    if min(counts) < 1 or any(after > before for before, after in pairwise(counts)):
        raise BudgetError(f"{method.name} gives an impossible schedule for {num_tokens} visual tokens: {budgets}.")
    return budgets
