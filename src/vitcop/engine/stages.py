"""Stages of pruning between the layers of a stock decoder, while it reads a batch of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from ..entrance import entering_tokens
from ..errors import UnsupportedModelError
from ..models import ModelFamily
from ..models.base import Call
from ..models.decoder import Rotary, keep_projected, map_rotary, refuse_rows
from ..ops.gather import gather_slots
from ..ops.segments import upload
from ..report import Report, StageReport
from ..selection.choice import choose, refuse_choice
from ..selection.pruner import Pruner
from ..selection.tokens import Selection, VisualTokens, merge_counts, merge_hidden_states
from .cache import PrunedCache, Request, adopt, cache_in
from .calibration import Counts
from .layout import Layout
from .masks import entering_mask, last_queries, layer_mask
from .placement import Placed
from .positions import RotaryPositions, position_behind
from .signals import Attended, LayerInput, Prompts, StageSource


class Stages:
    """A batch of prompts on its way through the decoder, and what is left of it.

    Attributes:
        prompts, placed: as they came to the decoder.
        schedule: decoder layer -> tokens alive from that layer on, of each image.
        layers: before which a stage stands; none if nothing is ever dropped, except of a prefix.
        tokens: the visual tokens that are left.
        layout: which prompt columns are left; `layouts` and `row_lengths` have it since each layer that changed it.
        entered: slots of `layout` in what entered the layers, which is what the model keeps passing on; None while that
            is the same.
        fitted: by kind of layer and rotary embedding, what layers get in place of that since the last stage.
        shown: layers whose keys and attention stages see, and before which layer the last one stands that does.
        attended: the one of these that the next stage sees; None elsewhere.
        hooks: what has been put on that layer until it has run.
        request: what decoding has to know; None until stage 0 is over.
        cache: that of the prompt, once the first layer was reached.
        done, selections, doubts: what happened at each stage, and what has to be true of it, to be looked at when
            nothing waits for it any more.
        shifts: by how much positions are ahead of prompt columns, and where there is a token; None if it is all one.
        interrupted: whether some layers have run, and not all.
    """

    def __init__(
        self,
        family: ModelFamily,
        method: Pruner,
        prompts: Prompts,
        placed: Placed,
        schedule: Sequence[dict[int, int]],
    ) -> None:
        self.family, self.method, self.prompts, self.placed = family, method, prompts, placed
        self.schedule, lengths = schedule, prompts.lengths
        dropping = any(min(budgets.values()) < n for budgets, n in zip(schedule, lengths, strict=True))
        # What a prefix keeps is asked about later: it needs a request, which knows its positions, also if it keeps all.
        watched = dropping or prompts.prefix
        self.layers = sorted({layer for budgets in schedule for layer in budgets}) if watched else []
        self.tokens = entering_tokens(
            placed.observation.images,
            prompts.visual,
            key_cutoff=family.key_cutoff,
            normalised_keys=family.normalises_keys,
        )
        self.layout = _whole(prompts)
        self.layouts, self.row_lengths = {0: self.layout}, {0: prompts.placeholders.prompt_lengths}
        self.entered: Tensor | None = None
        self.fitted: dict[tuple[str, nn.Module | None], Call] = {}
        self.shown = {family.keys_before(layer): layer for layer in self.layers if layer}
        self.attended: Attended | None = None
        self.hooks: list[RemovableHandle] = []
        self.request: Request | None = None
        self.cache: PrunedCache | None = None
        self.done: list[StageReport] = []
        self.selections: list[tuple[Selection, tuple[int, ...], tuple[int, ...]]] = []
        self.doubts: list[Tensor] = []
        self.shifts: tuple[Tensor, Tensor] | None = None
        self.interrupted = False

    def enter(self, kwargs: Call) -> Call:
        """Apply stage 0 to what enters the language model."""
        if not self.layers:
            return kwargs
        hidden_states, entering, slots = kwargs["inputs_embeds"], self.layout, None
        if 0 in self.layers:
            hidden_states, slots = self._stage(0, hidden_states, self._source(hidden_states))
        keeps_last = self.family.has_windows or self.family.has_states
        if slots is None and keeps_last and entering.mask is not None:
            # A cache with a window, or a state, keeps the last slots of a row, which must not be padding.
            hidden_states, slots = self._pack(0, hidden_states, entering.mask, self.tokens, self.row_lengths[0])
        if slots is not None:
            kwargs |= self.family.gather_features(kwargs, slots, self.layout.alive, sum(self.tokens.lengths))
            mask = entering_mask(
                self.family,
                self.layout,
                self.layout.mask,
                lambda n: self._mask(n, hidden_states),
                both_ways=bool(self.prompts.blocks),
            )
            kwargs |= {"inputs_embeds": hidden_states, "attention_mask": mask}
        positions = self._positions(kwargs.get("position_ids"), entering, slots)
        if self.method.calibrate == "distance":
            self.shifts = positions.values - self.layout.columns, self.layout.alive
        width, real = entering.width, self.prompts.placeholders.real
        self.request = Request(
            prompt_length=width,
            num_layers=self.family.num_layers,
            layouts=self.layouts,
            positions=positions,
            ends=(real * torch.arange(1, width + 1, device=real.device)).amax(1),
            text_after_images=width - 1 - (self.placed.slots % width).max(),
        )
        asked = kwargs.get("logits_to_keep")
        if self.layers[-1] and isinstance(asked, int) and asked and not self.prompts.placeholders.end_in_text(asked):
            # Where a model lets the last tokens alone through its last layers, a stage may have dropped these before.
            kwargs |= {"logits_to_keep": 0}
        return kwargs | {"position_ids": positions.values}

    def before_layer(self, layer: int, hidden_states: Tensor, kwargs: Call) -> tuple[Tensor, Call]:
        """Apply the stage that stands before `layer`, and give the layer what fits its tokens."""
        if layer == 0:
            self._take_cache(cache_in(kwargs))
        elif layer in self.layers:
            self._to(hidden_states.device)
            source = self._source_between(layer, hidden_states, kwargs["position_embeddings"])
            hidden_states, slots = self._stage(layer, hidden_states, source)
            if slots is not None:
                self.entered = slots if self.entered is None else self.entered.gather(1, slots)
                self.attended = self.attended and self.attended.followed(slots)
                self.fitted = {}
        if self.entered is not None:
            like = self.family.layer_kinds[layer], self.family.rotary(layer)
            if like not in self.fitted:
                self.fitted[like] = self._fit(layer, hidden_states, kwargs)
            kwargs = kwargs | self.fitted[like] | self._inputs(hidden_states.shape[1], kwargs)
            if hidden_states.shape[1] < self.layout.width:
                kwargs |= _last(hidden_states.shape[1], kwargs)
        if self.attended is not None and self.shown[self.attended.got.layer] <= layer:
            self.attended = None
        if layer in self.shown:
            projected, self.hooks = keep_projected(self.family.layers[layer])
            rotary = kwargs["position_embeddings"] if self.family.turns(layer) else None
            got = LayerInput(layer, hidden_states, rotary, projected)
            self.attended = Attended(got, self.layout)
        if "flash" in self.family.decoder.config._attn_implementation:
            # Flash attention would take gaps between positions for the borders of packed sequences.
            kwargs["position_ids"] = None
        return hidden_states, kwargs

    def release(self) -> None:
        for hook in self.hooks:
            hook.remove()
        if self.cache is not None:
            self.cache.release(interrupted=self.interrupted)

    def check(self) -> None:
        """Raise if a stage saw or selected what it must not; all at once, so that none waits for the device."""
        self.interrupted = False
        known = all(_agree(*doubt.cpu()) for doubt in self.doubts)
        valid = all(selection.to("cpu").allows(lengths, budget) for selection, lengths, budget in self.selections)
        even = self.shifts is None or _even(*self.shifts)
        if not (known and valid and even) and self.cache is not None and self.cache.request is not None:
            self.cache.request = replace(self.cache.request, num_layers=0)  # never to be continued
        if not known:
            refuse_rows(self.family.decoder.config)
        if not even:
            raise UnsupportedModelError(
                "calibrate='distance' takes tokens to be as far apart as they stand in the prompt, and position_ids "
                "say something else; use calibrate='size'."
            )
        if not valid:
            embeddings = self.prompts.embeddings.flatten(0, 1)
            refuse_choice(self.method, embeddings[self.prompts.visual], self.prompts.lengths)

    def report(self) -> Report:
        return Report(
            method=self.method.name,
            num_layers=self.family.num_layers,
            images=self.placed.observation.images,
            modalities=self.placed.modalities,
            rows=self.placed.rows,
            stages=tuple(self.done),
            columns={first: layout.real_columns for first, layout in self.layouts.items()},
            row_lengths=self.row_lengths,
            prompt_lengths=self.prompts.placeholders.prompt_lengths,
            decoder_config=self.family.decoder.config,
            bytes_per_value=self.prompts.embeddings.element_size(),
        )

    def _source(self, hidden_states: Tensor) -> StageSource:
        """What methods may see at the entrance."""
        return StageSource(self.family, self.prompts, self.placed.observation, self.layout, hidden_states)

    def _source_between(self, layer: int, hidden_states: Tensor, rotary: Rotary) -> StageSource:
        """What methods may see before a layer, to which the model passes on these rotary embeddings."""
        device = hidden_states.device
        assert self.cache is not None and self.cache.last_keys is not None and self.attended is not None
        self.attended = replace(self.attended, keys=self.cache.last_keys).to(device)
        return replace(
            self._source(hidden_states),
            doubts=self.doubts,
            attended=self.attended,
            ahead=lambda: LayerInput(layer, hidden_states, self._rotary(rotary) if self.family.turns(layer) else None),
        )

    def _take_cache(self, cache: Cache | None) -> None:
        if cache is None:
            raise UnsupportedModelError(
                "Pruning needs the KV cache, whose keys it selects by: leave use_cache on, gradient checkpointing off."
            )
        self.cache = adopt(cache, self.family)
        self.cache.request = self.request
        self.cache.running = self.interrupted = True

    def _stage(self, layer: int, entering: Tensor, source: StageSource) -> tuple[Tensor, Tensor | None]:
        """Select, merge and repack. Returns the new hidden states and the slots they gather, None if all stayed."""
        tokens = replace(self.tokens, layer=layer, stage=self.layers.index(layer), source=source)
        budget = tuple(b.get(layer, n) for b, n in zip(self.schedule, tokens.lengths, strict=True))
        selection = choose(self.method, tokens, budget)
        self.selections.append((selection, tokens.lengths, budget))
        selection = selection.clamped(sum(tokens.lengths))  # what is wrong with it is told at the end
        labels = tokens.labels | selection.labels
        self.done.append(StageReport.of(tokens, selection, budget, labels.get("cluster")))
        # Without its source, which holds activations.
        kept_tokens = replace(tokens, labels=labels, source=None).take(selection.keep, budget)
        if budget == tokens.lengths:
            self.tokens = kept_tokens
            return entering, None

        alive = self.layout.alive.flatten().index_fill(0, tokens.slots, False).index_fill(0, kept_tokens.slots, True)
        lengths = list(self.row_lengths[max(self.row_lengths)])
        for row, before, after in zip(self.placed.rows, tokens.lengths, budget, strict=True):
            lengths[row] -= before - after
        alive = alive.view_as(self.layout.columns)
        packed, slots = self._pack(layer, entering, alive, kept_tokens, tuple(lengths))
        if selection.merge is not None:
            # From the forward's own states: what the method has looked at carries no gradient.
            merged = merge_hidden_states(entering.flatten(0, 1)[tokens.slots], selection)
            packed = packed.flatten(0, 1).index_copy(0, self.tokens.slots, merged).view_as(packed)
        self._count(layer, tokens.counts, selection)
        return packed, slots

    def _count(self, layer: int, counts: Tensor | None, selection: Selection) -> None:
        """Let each visual token count for all that it stands for in the attention of `layer` and all behind it.

        Args:
            counts: of the tokens that `selection` was made among.
        """
        by_distance = self.method.calibrate == "distance"
        if self.method.calibrate == "none" or (selection.merge is None and not by_distance):
            return  # those that are dropped here are gone from the layout's counts already
        counts = merge_counts(counts, selection)
        shown = counts * self._pruned_by(layer)[self.tokens.images] if by_distance else counts
        stands_for = torch.zeros_like(self.layout.columns, dtype=counts.dtype)
        stands_for = stands_for.flatten().index_copy(0, self.tokens.slots, shown).view_as(stands_for)
        self.tokens = replace(self.tokens, counts=counts)
        self.layout = self.layouts[layer] = replace(self.layout, counts=Counts(stands_for, by_distance))

    def _pruned_by(self, layer: int) -> Tensor:
        """Of each image, 1 if its prompt has lost a token up to `layer`, and 0 if it is left alone until then."""
        pruned = {
            row
            for row, budgets, n in zip(self.placed.rows, self.schedule, self.prompts.lengths, strict=True)
            if min(left for first, left in budgets.items() if first <= layer) < n
        }
        return upload([float(row in pruned) for row in self.placed.rows], self.layout.columns.device)

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

    def _rotary(self, given: Rotary) -> Rotary:
        """Rotary embeddings that the model passes on at the length that entered, at the length now."""
        entered = self.entered
        return given if entered is None else map_rotary(given, lambda part: gather_slots(part, entered, -2))

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

    def _inputs(self, count: int, kwargs: Call) -> Call:
        """What the model goes on passing of each token that entered, or of the last of these, for the last `count`."""
        assert self.entered is not None
        given = {name: kwargs[name] for name in self.family.layer_inputs if kwargs.get(name) is not None}
        slots, width = self.entered[:, -count:], self.layouts[0].width
        return {
            name: gather_slots(part, slots - (width - part.shape[1]), 1 - part.ndim) for name, part in given.items()
        }

    def _mask(self, layer: int, hidden_states: Tensor) -> Any:
        columns = self.layout.columns
        return layer_mask(
            self.family,
            layer,
            hidden_states,
            self.cache,
            real=self.layout.mask,
            columns=columns,
            seen=self.prompts.embeddings.shape[1],
            blocks=self.prompts.blocks_of(self.family.layer_kinds[layer], columns),
            counts=self.layout.counts,
        )

    def _to(self, device: torch.device) -> None:
        """Follow a model that is spread over devices."""
        if self.layout.columns.device == device:
            return
        self.tokens, self.layout = self.tokens.to(device), self.layout.to(device)
        if self.entered is not None:
            self.entered = self.entered.to(device)


def _whole(prompts: Prompts) -> Layout:
    """The layout of prompts of which nothing was dropped."""
    (batch, width), device = prompts.embeddings.shape[:2], prompts.embeddings.device
    real, lengths = prompts.placeholders.real, prompts.placeholders.prompt_lengths
    columns = torch.arange(width, device=device).expand(batch, width)
    return Layout(columns, None if min(lengths) == width else real.to(device))


def _last(count: int, kwargs: Call) -> Call:
    """Mask and rotary embeddings of the last tokens, where the model lets no others on."""
    rotary = map_rotary(kwargs["position_embeddings"], lambda part: part[:, -count:])
    return {"attention_mask": last_queries(kwargs["attention_mask"], count), "position_embeddings": rotary}


def _even(shifts: Tensor, alive: Tensor) -> bool:
    """Whether all tokens of a prompt are shifted by the same."""
    lowest, highest = (shifts.masked_fill(~alive, bound) for bound in (2**40, -(2**40)))
    return bool((lowest.amin(1) >= highest.amax(1)).all())


def _agree(distance: Tensor, norm: Tensor) -> bool:
    """Whether keys are what the layer made; see `StageSource.doubts`. Rows that are not finite cannot show it."""
    return bool(((distance <= 0.1 * norm) | ~norm.isfinite()).all())  # rounding of half precision is far below
