"""A prompt's first forward: stages between the layers of a stock decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ..errors import UnsupportedModelError, VitcopError
from ..models import ModelFamily, Observation
from ..models.base import Call
from ..models.decoder import Rotary, refuse_rows
from ..models.grids import Grids
from ..ops.gather import gather_slots
from ..report import Report, StageReport
from ..selection.pruner import Pruner, checked_budgets
from ..selection.tokens import Entrance, Selection, VisualTokens, merge_hidden_states
from .cache import PrunedCache, Request, adopt, cache_in
from .forward import Forward
from .layout import Layout
from .masks import entering_mask, layer_mask
from .placement import Placeholders, place_images
from .positions import RotaryPositions, position_behind
from .signals import LayerInput, Prompts, StageSource


class Prefill(Forward):
    """A batch of prompts on its way through the decoder for the first time."""

    def __init__(self, family: ModelFamily, method: Pruner, call: Call, placeholders: Placeholders) -> None:
        family.check_attention()
        self.family, self.method, self.placeholders = family, method, placeholders
        self.observations: dict[str, list[Observation]] = {modality: [] for modality in family.modalities}
        self.stages: list[StageReport] = []
        self.selections: list[tuple[Selection, tuple[int, ...], tuple[int, ...]]] = []
        self.doubts: list[Tensor] = []
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
        self.previous: LayerInput | None = None
        # Of the layout, in the one that entered: what the model keeps passing on at full length.
        self.entered: Tensor | None = None

    def enter(self, kwargs: Call) -> Call:
        """Apply stage 0 to what enters the language model."""
        hidden_states, method = kwargs["inputs_embeds"], self.method
        placed = place_images(self.family, self.prompts, self.placeholders, self.observations)
        self.observation, self.rows, self.modalities, slots_of_tokens = placed
        observation = self.observation
        self.images, self.lengths = observation.images, observation.lengths
        self.bytes_per_value = hidden_states.element_size()
        schedules = {
            n: checked_budgets(method, n, len(self.family.layers), self.family.first_stage_layer)
            for n in set(self.lengths)
        }
        self.schedule = [schedules[n] for n in self.lengths]
        self.stage_layers = sorted({layer for budgets in self.schedule for layer in budgets})
        if all(min(budgets.values()) == n for budgets, n in zip(self.schedule, self.lengths, strict=True)):
            self.stage_layers = []  # nothing is ever dropped: leave the forward alone
            return kwargs

        whole, device = Grids.join(self.images), hidden_states.device
        entrance = Entrance.of(
            segments=whole.segments[whole.visual],
            grid=whole.places[whole.visual],
            shapes=tuple(image.shapes for image in self.images),
            sizes=tuple(image.sizes for image in self.images),
            device=device,
        )
        self.layout = self.layout.to(device)
        self.text_after_images = self.layout.width - 1 - (slots_of_tokens % self.layout.width).max()
        self.prompt_signals = Prompts(
            embeddings=hidden_states,
            visual=slots_of_tokens.to(device),
            lengths=self.lengths,
            rows=self.rows,
            placeholders=self.placeholders,
        )
        self.tokens = VisualTokens(
            layer=0,
            stage=0,
            lengths=self.lengths,
            rows=torch.arange(len(slots_of_tokens), device=device),
            slots=slots_of_tokens.to(device),
            entrance=entrance,
            source=self._source(hidden_states),
            key_cutoff=self.family.key_cutoff,
            normalised_keys=self.family.normalises_keys,
        )
        entering, slots = self.layout, None
        if 0 in self.stage_layers:
            hidden_states, slots = self._stage(hidden_states)
        if slots is None and self.family.has_windows and entering.mask is not None:
            # A cache with a window keeps the last slots of a row, which must not be padding.
            hidden_states, slots = self._pack(0, hidden_states, entering.mask, self.tokens, self.row_lengths[0])
        if slots is not None:
            kwargs |= self.family.gather_features(kwargs, slots, self.layout.alive, sum(self.tokens.lengths))
            mask = entering_mask(self.family, self.layout.mask, lambda layer: self._mask(layer, hidden_states))
            kwargs |= {"inputs_embeds": hidden_states, "attention_mask": mask}
        self.positions = self._positions(kwargs.get("position_ids"), entering, slots)
        return kwargs | {"position_ids": self.positions.values}

    def _positions(self, given: Tensor | None, entering: Layout, slots: Tensor | None) -> RotaryPositions:
        """Positions of what enters the decoder, of which `slots` stood among `entering`; None if all did."""
        columns = entering.columns
        positions = columns if given is None else given.to(columns.device)
        positions = positions.expand(*positions.shape[:-2], *columns.shape)
        zero = torch.zeros_like(columns[:, 0])
        if slots is None:
            return RotaryPositions(positions, shift=zero, floor=zero)
        dropped = entering.alive & ~torch.zeros_like(entering.alive).scatter(1, slots, self.layout.alive)
        kept = gather_slots(positions, slots, -1)
        if self.method.positions == "keep" or self.family.keeps_positions:
            return RotaryPositions(kept, shift=zero, floor=position_behind(positions, dropped))
        kept = kept - (entering.ranks.gather(1, slots) - self.layout.ranks)
        return RotaryPositions(kept, shift=dropped.sum(1), floor=zero)

    def leaves_alone(self, kwargs: Call) -> bool:
        """Whether no layer needs anything from us, since nothing is dropped."""
        return not self.stage_layers

    def before_layer(self, layer: int, hidden_states: Tensor, kwargs: Call) -> tuple[Tensor, Call]:
        """Apply the stage that stands before `layer`, and give the layer what fits its tokens."""
        if layer == 0:
            self._take_cache(cache_in(kwargs))
        elif layer in self.stage_layers:
            self._to(hidden_states.device)
            self.tokens = replace(
                self.tokens,
                layer=layer,
                stage=self.stage_layers.index(layer),
                source=self._source(hidden_states, layer, kwargs["position_embeddings"]),
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
        self.previous = None
        if layer + 1 in self.stage_layers:
            self.previous = LayerInput(layer, hidden_states, kwargs["position_embeddings"])
        if "flash" in self.family.decoder.config._attn_implementation:
            # Flash attention would take gaps between positions for the borders of packed sequences.
            kwargs["position_ids"] = None
        return hidden_states, kwargs

    def _source(self, hidden_states: Tensor, layer: int = 0, rotary: Rotary | None = None) -> StageSource:
        """What methods may see before a layer.

        Args:
            rotary: what the model passes on to the layer; None at the entrance.
        """
        device = hidden_states.device
        source = StageSource(self.family, self.prompt_signals, self.observation, self.layout, hidden_states)
        if rotary is None:
            return source
        assert self.cache is not None and self.cache.last_keys is not None and self.previous is not None
        before = self.previous
        return replace(
            source,
            doubts=self.doubts,
            cached_keys=self.cache.last_keys.to(device),
            previous=LayerInput(before.layer, before.hidden_states.to(device), _on(device, before.rotary)),
            ahead=lambda: LayerInput(layer, hidden_states, self._rotary(rotary)),
        )

    def _rotary(self, given: Rotary) -> Rotary:
        """Rotary embeddings that the model passes on at the length that entered, at the length now."""
        if self.entered is None:
            return given
        cos, sin = (gather_slots(part, self.entered, -2) for part in given)
        return cos, sin

    def finish(self) -> Report:
        self.check_stages()
        return self.report()

    def release(self) -> None:
        if self.cache is not None:
            self.cache.release()

    def check_stages(self) -> None:
        """Raise if a stage saw or selected what it must not; all at once, so that none waits for the device."""
        known = all(map(bool, self.doubts))
        valid = all(selection.to("cpu").allows(lengths, budget) for selection, lengths, budget in self.selections)
        if not (known and valid) and self.cache is not None and self.cache.request is not None:
            self.cache.request = replace(self.cache.request, num_layers=0)  # never to be continued
        if not known:
            refuse_rows(self.family.decoder.config)
        if not valid:
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
            columns={first: layout.real_columns for first, layout in self.layouts.items()},
            row_lengths=self.row_lengths,
            prompt_lengths=self.placeholders.prompt_lengths,
            decoder_config=self.family.decoder.config,
            bytes_per_value=self.bytes_per_value,
        )

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
        if not isinstance(selection, Selection) or selection.reduction not in ("mean", "add_mean"):
            raise VitcopError("select must return a Selection, whose reduction is 'mean' or 'add_mean'.")
        selection.check_shapes(sum(tokens.lengths), sum(budget))
        self.selections.append((selection, tokens.lengths, budget))
        selection = selection.clamped(sum(tokens.lengths))  # what is wrong with it is told at the end
        labels = tokens.labels | selection.labels
        self.stages.append(StageReport.of(tokens, selection, budget, labels.get("cluster")))
        # Without its source, which holds activations.
        kept_tokens = replace(tokens, labels=labels, source=None).take(selection.keep, budget)
        if budget == tokens.lengths:
            self.tokens = kept_tokens
            return hidden_states, None

        alive = self.layout.alive.flatten().index_fill(0, tokens.slots, False).index_fill(0, kept_tokens.slots, True)
        lengths = list(self.row_lengths[max(self.row_lengths)])
        for row, before, after in zip(self.rows, tokens.lengths, budget, strict=True):
            lengths[row] -= before - after
        alive = alive.view_as(self.layout.columns)
        hidden_states, slots = self._pack(tokens.layer, hidden_states, alive, kept_tokens, tuple(lengths))
        if selection.merge is not None:
            merged = merge_hidden_states(tokens.hidden_states, selection)
            hidden_states = hidden_states.flatten(0, 1).index_copy(0, self.tokens.slots, merged).view_as(hidden_states)
        return hidden_states, slots

    def _pack(
        self, layer: int, hidden_states: Tensor, alive: Tensor, tokens: VisualTokens, lengths: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Go on with the slots in `alive`, and with `tokens` among them. Returns what `_stage` does."""
        self.layout, slots = self.layout.keep(alive, lengths)
        self.layouts[layer], self.row_lengths[layer] = self.layout, lengths
        new_slot = torch.arange(slots.numel(), device=slots.device).view_as(slots)
        moved_to = torch.zeros_like(alive, dtype=torch.long).scatter(1, slots, new_slot)
        self.tokens = replace(tokens, slots=moved_to.flatten()[tokens.slots])
        return gather_slots(hidden_states, slots, -2), slots

    def _fit(self, layer: int, hidden_states: Tensor, kwargs: Call) -> Call:
        """The keyword arguments that the model goes on passing at the length that entered, at the length now."""
        assert self.entered is not None
        fitted: Call = {
            "attention_mask": self._mask(layer, hidden_states),
            "position_embeddings": self._rotary(kwargs["position_embeddings"]),
        }
        if kwargs.get("position_ids") is not None:
            fitted["position_ids"] = gather_slots(kwargs["position_ids"], self.entered, -1)
        return fitted

    def _mask(self, layer: int, hidden_states: Tensor) -> Any:
        columns = self.layout.columns
        return layer_mask(
            self.family,
            layer,
            hidden_states,
            self.cache,
            real=self.layout.mask,
            columns=columns,
            blocks=None if self.blocks is None else self.blocks.to(columns.device).gather(1, columns),
        )

    def _to(self, device: torch.device) -> None:
        """Follow a model that is spread over devices."""
        if self.layout.columns.device == device:
            return
        self.tokens, self.layout = self.tokens.to(device), self.layout.to(device)
        if self.entered is not None:
            self.entered = self.entered.to(device)


def _on(device: torch.device, rotary: Rotary) -> Rotary:
    return rotary[0].to(device), rotary[1].to(device)
