"""A prompt's first forward: stages between the layers of a stock decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from .cache import PrunedCache, Request, adopt, cache_in
from .errors import BudgetError, UnsupportedModelError, VitcopError
from .layout import Layout, gather_slots
from .masks import layer_mask
from .models import ModelFamily, Observation
from .models.base import Call
from .models.grids import Grids
from .ops.segments import indices_of
from .positions import Positions
from .pruner import Pruner
from .report import Report, StageReport
from .tokens import VisualTokens, merge_hidden_states


@dataclass(frozen=True)
class Placeholders:
    """Where a batch of prompts has placeholders, and how many, read from the device once.

    Attributes:
        masks: of each modality, (batch, seq).
        counts: of each modality, per row.
        real: where there is a token and no padding, (batch, seq).
        prompt_lengths: tokens per row.
        hidden: placeholders that the attention mask hides.
    """

    masks: dict[str, Tensor]
    counts: dict[str, list[int]]
    real: Tensor
    prompt_lengths: tuple[int, ...]
    hidden: int

    @staticmethod
    def of(masks: dict[str, Tensor], attention_mask: Tensor | None) -> Placeholders:
        stacked = torch.stack(list(masks.values()))
        real = torch.ones_like(stacked[0]) if attention_mask is None else attention_mask.bool()
        read = torch.cat([stacked.sum(-1), real.sum(-1)[None], (stacked & ~real).sum((0, -1))[None]]).tolist()
        counts = dict(zip(masks, read, strict=False))
        return Placeholders(masks, counts, real, tuple(read[-2]), sum(read[-1]))

    @property
    def any(self) -> bool:
        return any(any(counts) for counts in self.counts.values())


class Prefill:
    """A batch of prompts on its way through the decoder for the first time."""

    def __init__(self, family: ModelFamily, method: Pruner, call: Call, placeholders: Placeholders) -> None:
        self.family, self.method, self.placeholders = family, method, placeholders
        self.observations: dict[str, list[Observation]] = {modality: [] for modality in family.modalities}
        self.stages: list[StageReport] = []
        self.checks: list[Tensor] = []
        self.cache: PrunedCache | None = None
        # By kind of layer, what layers get instead of what the model passes on, since the last stage.
        self.fitted: dict[str, Call] = {}
        ids = call.get("input_ids")
        self.prompts: Tensor = ids if ids is not None else call["inputs_embeds"]
        self.blocks = family.attention_blocks(call)
        batch, width = self.prompts.shape[:2]
        columns = torch.arange(width, device=self.prompts.device).expand(batch, width)
        lengths = placeholders.prompt_lengths
        self.layout = Layout(columns, None if min(lengths) == width else placeholders.real)
        self.layouts, self.row_lengths = {0: self.layout}, {0: lengths}
        # Of the layout, in the one that entered: what the model keeps passing on at full length.
        self.entered: Tensor | None = None

    def enter(self, kwargs: Call) -> Call:
        """Apply stage 0 to what enters the language model."""
        hidden_states, method = kwargs["inputs_embeds"], self.method
        observation, self.rows, self.modalities, self.slots = self._take_images()
        self.images, self.lengths = observation.images, observation.lengths
        self.bytes_per_value = hidden_states.element_size()
        schedules = {n: _checked_budgets(method, self.family, n) for n in set(self.lengths)}
        self.schedule = [schedules[n] for n in self.lengths]
        self.stage_layers = sorted({layer for budgets in self.schedule for layer in budgets})
        if all(min(budgets.values()) == n for budgets, n in zip(self.schedule, self.lengths, strict=True)):
            self.stage_layers = []  # nothing is ever dropped: leave the forward alone
            return kwargs

        self._to(hidden_states.device)
        self.text_after_images = self.layout.width - 1 - (self.slots % self.layout.width).max()
        sizes = tuple(image.sizes for image in self.images)
        self.tokens = VisualTokens(
            layer=0,
            stage=0,
            lengths=self.lengths,
            hidden_states=hidden_states.flatten(0, 1)[self.slots],
            keys=observation.keys,
            index=torch.cat([torch.arange(n, device=self.slots.device) for n in self.lengths]),
            grid=torch.cat([image.places[image.visual] for image in self.images]),
            saliency=observation.saliency,
            segments=Grids.join(self.images).segments[torch.cat([image.visual for image in self.images])],
            segment_sizes=sizes,
            key_cutoff=self.family.key_cutoff,
            normalised_keys=self.family.normalises_keys,
        ).to(hidden_states.device)
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = self.layout.columns
        positions = positions.expand(*positions.shape[:-2], *hidden_states.shape[:2])
        shift = torch.zeros_like(self.layout.columns[:, 0])
        entering, slots = self.layout, None
        if 0 in self.stage_layers:
            hidden_states, slots = self._stage(hidden_states)
        if slots is None and self.family.has_windows and entering.mask is not None:
            # A cache with a window keeps the last slots of a row, which must not be padding.
            hidden_states, slots = self._pack(0, hidden_states, entering.mask, self.slots, self.row_lengths[0])
        if slots is not None:
            dropped = entering.ranks.gather(1, slots) - self.layout.ranks
            positions = gather_slots(positions, slots, -1)
            if method.positions == "compact" and not self.family.keeps_positions:
                positions = positions - dropped
                shift = dropped[:, -1]
            kwargs |= self.family.gather_features(kwargs, slots, self.layout.alive, sum(self.tokens.lengths))
            kwargs |= {"inputs_embeds": hidden_states, "attention_mask": self._entering_mask(hidden_states)}
        self.positions = Positions(positions, shift)
        return kwargs | {"position_ids": positions}

    def before_layer(self, layer: int, hidden_states: Tensor, kwargs: Call) -> tuple[Tensor, Call]:
        """Apply the stage that stands before `layer`, and give the layer what fits its tokens."""
        if not self.stage_layers:
            return hidden_states, kwargs
        if layer == 0:
            self._take_cache(cache_in(kwargs))
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
                self.fitted = {}
        if self.entered is not None:
            kind = self.family.layer_kinds[layer]
            if kind not in self.fitted:
                self.fitted[kind] = self._fit(layer, hidden_states, kwargs)
            kwargs = kwargs | self.fitted[kind]
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
            images=self.images,
            modalities=self.modalities,
            rows=self.rows,
            stages=tuple(self.stages),
            layouts=self.layouts,
            row_lengths=self.row_lengths,
            prompt_lengths=self.placeholders.prompt_lengths,
            decoder_config=self.family.decoder.config,
            bytes_per_value=self.bytes_per_value,
        )

    def _take_images(self) -> tuple[Observation, tuple[int, ...], tuple[str, ...], Tensor]:
        """All images, then all videos, in the order of their prompts.

        Returns:
            What was observed, the row and the modality of each, and where the visual tokens stand in the
            flattened prompts.
        """
        observations: list[Observation] = []
        rows: list[int] = []
        modalities: list[str] = []
        slots: list[Tensor] = []
        for modality, mask in self.placeholders.masks.items():
            counts = self.placeholders.counts[modality]
            if not any(counts):
                continue
            observation, row_of = _images_of_rows(modality, self.observations[modality], counts)
            places = indices_of(mask.flatten(), sum(counts))
            visual = torch.cat([image.visual for image in observation.images])
            observation, row_of = self._join_tiles(observation, row_of, places)
            slots.append(places if visual.all() else places[visual.nonzero()[:, 0].to(places.device)])
            observations.append(observation)
            rows += row_of
            modalities += [modality] * len(row_of)
        return Observation.concatenate(observations), tuple(rows), tuple(modalities), torch.cat(slots)

    def _join_tiles(
        self, observation: Observation, rows: tuple[int, ...], places: Tensor
    ) -> tuple[Observation, tuple[int, ...]]:
        """Make one image of tiles that the encoder got as images of their own."""
        if not self.family.tiles_are_images:
            return observation, rows
        lengths = observation.placeholders
        firsts = places[torch.tensor([0, *accumulate(lengths)][:-1], device=places.device)].tolist()
        starts = [divmod(first, self.layout.width) for first in firsts]
        images: list[list[Grids]] = []
        joined_rows: list[int] = []
        joined = self.family.joined(self.prompts, starts, lengths)
        for image, row, further in zip(observation.images, rows, joined, strict=True):
            if further:
                images[-1].append(image)
            else:
                images.append([image])
                joined_rows.append(row)
        return replace(observation, images=tuple(Grids.join(tiles) for tiles in images)), tuple(joined_rows)

    def _take_cache(self, cache: Cache | None) -> None:
        if cache is None:
            raise UnsupportedModelError(
                "Pruning needs the KV cache, whose keys it selects by: leave use_cache on, gradient checkpointing off."
            )
        width = self.prompts.shape[1]
        self.cache = adopt(cache, self.family.has_windows)
        self.cache.request = Request(
            prompt_length=width,
            num_layers=len(self.family.layers),
            layouts=self.layouts,
            positions=self.positions,
            ends=(self.placeholders.real * torch.arange(1, width + 1, device=self.prompts.device)).amax(1),
            text_after_images=self.text_after_images,
        )
        self.cache.running = True

    def _stage(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Select, merge and repack. Returns the new hidden states and the slots they gather, None if all stayed."""
        tokens = self.tokens
        budget = tuple(b.get(tokens.layer, n) for b, n in zip(self.schedule, tokens.lengths, strict=True))
        with torch.no_grad():
            selection = self.method.select(tokens, budget)
            self.checks.append(tokens.allows(selection, budget))
        labels = tokens.labels | selection.labels
        self.stages.append(StageReport.of(tokens, selection, budget, labels.get("cluster")))
        self.tokens = replace(tokens, labels=labels).take(selection.keep, budget)
        if budget == tokens.lengths:
            return hidden_states, None

        kept = self.slots[selection.keep]
        if selection.merge is not None:
            merged = merge_hidden_states(tokens.hidden_states, selection)
            hidden_states = hidden_states.flatten(0, 1).index_copy(0, kept, merged).view_as(hidden_states)
        alive = self.layout.alive.flatten().scatter(0, self.slots, False).scatter(0, kept, True)
        lengths = list(self.row_lengths[max(self.row_lengths)])
        for row, before, after in zip(self.rows, tokens.lengths, budget, strict=True):
            lengths[row] -= before - after
        return self._pack(tokens.layer, hidden_states, alive.view_as(self.layout.columns), kept, tuple(lengths))

    def _pack(
        self, layer: int, hidden_states: Tensor, alive: Tensor, visual: Tensor, lengths: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Go on with the slots in `alive`, in which visual tokens stand at `visual`. Returns what `_stage` does."""
        width = self.layout.width
        self.layout, slots = self.layout.keep(alive, lengths)
        self.layouts[layer], self.row_lengths[layer] = self.layout, lengths
        new_slot = torch.arange(self.layout.width, device=slots.device).expand_as(slots)
        moved_to = torch.zeros_like(alive, dtype=torch.long).scatter(1, slots, new_slot)
        self.slots = visual // width * self.layout.width + moved_to.flatten()[visual]
        return gather_slots(hidden_states, slots, -2), slots

    def _fit(self, layer: int, hidden_states: Tensor, kwargs: Call) -> Call:
        """The keyword arguments that the model goes on passing at the length that entered, at the length now."""
        assert self.entered is not None
        fitted: Call = {
            "attention_mask": self._mask(layer, hidden_states),
            "position_embeddings": tuple(gather_slots(e, self.entered, -2) for e in kwargs["position_embeddings"]),
        }
        if kwargs.get("position_ids") is not None:
            fitted["position_ids"] = gather_slots(kwargs["position_ids"], self.entered, -1)
        return fitted

    def _entering_mask(self, hidden_states: Tensor) -> Any:
        """For decoders that make one mask from a 2-D one, or take one for each kind of layer."""
        if not self.family.has_windows:
            return self.layout.mask
        kinds = self.family.layer_kinds
        return {kind: self._mask(kinds.index(kind), hidden_states) for kind in set(kinds)}

    def _mask(self, layer: int, hidden_states: Tensor) -> Any:
        columns = self.layout.columns
        return layer_mask(
            self.family.decoder.config,
            self.family.layer_kinds[layer],
            layer,
            hidden_states,
            self.cache,
            real=self.layout.mask,
            columns=columns,
            blocks=None if self.blocks is None else self.blocks.to(columns.device).gather(1, columns),
        )

    def _to(self, device: torch.device) -> None:
        """Follow a model that is spread over devices."""
        if self.slots.device == device:
            return
        self.slots, self.layout = self.slots.to(device), self.layout.to(device)
        if self.entered is not None:
            self.entered = self.entered.to(device)


def _images_of_rows(
    modality: str, observations: Sequence[Observation], counts: Sequence[int]
) -> tuple[Observation, tuple[int, ...]]:
    """The observed images in the order of the prompts they stand in, and the row of the batch of each.

    `generate` repeats prompts, for beams or several answers, after their images were encoded: then each
    prompt's images stand in that many consecutive rows.

    Args:
        modality: what they are.
        observations: made by the vision encoder for this batch, in order.
        counts: placeholders that each row of the batch has.
    """
    if not observations:
        raise UnsupportedModelError(
            f"The prompt has {modality} placeholders, but its {modality}s did not come through the vision encoder of "
            "this pruned model: pass pixel_values, make encoder outputs while the pruning is on, and leave out "
            "prefill_chunk_size."
        )
    seen = Observation.concatenate(observations)
    lengths = seen.placeholders
    repeats = sum(counts) // sum(lengths)
    spans: list[tuple[int, int]] = []
    rows: list[int] = []
    image = 0
    for row in range(0, len(counts), max(1, repeats)):
        first = image
        while image < len(lengths) and sum(lengths[first : image + 1]) <= counts[row]:
            image += 1
        for copy in range(row, row + repeats):
            if sum(lengths[first:image]) != counts[copy]:
                break
            spans.append((first, image))
            rows += [copy] * (image - first)
    if len(spans) != len(counts) or image != len(lengths):
        raise UnsupportedModelError(
            f"{sum(counts)} {modality} placeholders do not match the {sum(lengths)} of {len(lengths)} {modality}s."
        )
    return (seen if repeats == 1 else seen.take(spans)), tuple(rows)


def _checked_budgets(method: Pruner, family: ModelFamily, num_tokens: int) -> dict[int, int]:
    """The method's schedule, in order of its layers, if the family can carry it out."""
    num_layers = len(family.layers)
    budgets = dict(sorted(method.budgets(num_tokens, num_layers, family.first_stage_layer).items()))
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
