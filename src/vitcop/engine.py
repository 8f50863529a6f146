"""Runs a pruning method inside a stock transformers model. The only file with hooks.

    pixels -> vision layer -> observe(): keys, saliency, grid
                  |
                  v  VisualTokens(0) -> select -> gather
    inputs_embeds -------------------------------> layers 0..s-1
                  v  VisualTokens(s): fresh hidden states, keys of layer s-1 -> select -> gather, merge
                  `------------------------------> layers s..      -> report

State flows one way: what a forward needs while it runs is in a `_Prefill` or `_Decode`, which belongs to
the thread; what outlives it is in the `Request` of its KV cache. Neither model nor method keeps any.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.utils import ModelOutput

from .cache import PrunedCache, Request, adopt
from .errors import BudgetError, UnsupportedModelError
from .layout import Layout, gather_slots, positions_of
from .models import ModelFamily, Observation, family_of
from .ops.segments import indices_of
from .pruner import Pruner
from .report import Report, StageReport
from .tokens import VisualTokens, merge_hidden_states

logger = logging.getLogger("vitcop")

Kwargs = dict[str, Any]

# `generate` encodes images before it calls the model: the observation travels on the encoder's output.
_OBSERVATION = "_vitcop_observation"


def prune(model: nn.Module, method: Pruner) -> Pruning:
    """Prune the visual tokens of every prompt that `model` reads from now on.

    Args:
        model: a stock transformers vision-language model, PEFT-wrapped or not.
        method: what to prune, and how far.

    Returns:
        A handle. `remove()` it, or use it in a `with` block, to have the model as it was.

    Raises:
        UnsupportedModelError: the model is of an unknown type, is pruned already, or is compiled or
            sharded in a way that cannot be pruned.
    """
    return Pruning(model, method)


class Pruning:
    """A pruned model. Follows the protocol of PyTorch's `RemovableHandle`.

    Attributes:
        method: the pruning method.
        report: what the last prefill kept, or None before the first one.
    """

    def __init__(self, model: nn.Module, method: Pruner) -> None:
        stock = _stock_model(model)
        self.method = method
        self.report: Report | None = None
        self._family = family_of(stock)
        self._forward = threading.local()
        self._hooks: list[RemovableHandle] = []
        self._add_hooks(stock)

    def remove(self) -> None:
        """Take the hooks off the model. Caches of pruned prompts refuse to go on without them."""
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> Pruning:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UnsupportedModelError("A pruned model cannot be copied or pickled; remove() the pruning first.")

    def _add_hooks(self, stock: PreTrainedModel) -> None:
        family = self._family

        def before(module: nn.Module, hook: Callable[..., Any]) -> None:
            self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))

        before(stock, self._open)
        self._hooks.append(stock.register_forward_hook(self._close, always_call=True))
        before(family.base, self._start)
        self._hooks.append(family.base.register_forward_hook(self._finish, always_call=True))
        before(family.observed, self._observe)
        self._hooks.append(family.vision.register_forward_hook(self._publish))
        before(family.decoder, self._enter)
        for index, layer in enumerate(family.layers):
            before(layer, partial(self._layer, index))

    @property
    def _running(self) -> _Prefill | _Decode | None:
        return getattr(self._forward, "running", None)

    def _open(self, model: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> None:
        call = _bound(model, args, kwargs)
        ids, labels = call.get("input_ids"), call.get("labels")
        if labels is not None and ids is not None and self._family.visual_mask(ids, None).any():
            raise UnsupportedModelError(
                "labels cannot be used while visual tokens are pruned, since logits hold the survivors only: call the "
                "model without labels and compute the loss from logits and pruning.report.positions."
            )
        # Read here, since accelerate's hooks hand a copy of the encoder's output on to the base model.
        self._forward.encoded = _observations_in(call)

    def _close(self, model: nn.Module, args: tuple[Any, ...], output: object) -> None:
        self._forward.encoded = []

    def _start(self, base: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> tuple[tuple[Any, ...], Kwargs]:
        call = _bound(base, args, kwargs)
        self._forward.running = self._request_of(call)
        return (), call

    def _request_of(self, call: Kwargs) -> _Prefill | _Decode | None:
        """What kind of forward this is: the prefill of a pruned prompt, a later step of one, or neither."""
        ids, embeds, cache = call.get("input_ids"), call.get("inputs_embeds"), call.get("past_key_values")
        tokens = ids if ids is not None else embeds
        if tokens is None:
            return None  # the model raises
        if isinstance(cache, PrunedCache) and cache.request is not None:
            if tokens.shape[1] > 1 and ids is not None:
                self._refuse_images(ids)
            return _Decode(self._family, cache, tokens.shape[0])
        if cache is not None and not isinstance(cache, Cache):
            raise UnsupportedModelError(f"A {type(cache).__name__} cannot be pruned; use the default DynamicCache.")
        if cache is not None and cache.get_seq_length() > 0:
            if ids is not None:
                self._refuse_images(ids)
            return None
        visual = self._family.visual_mask(ids, embeds)
        mask = call.get("attention_mask")
        if mask is not None and mask.ndim != 2:
            mask = torch.ones_like(visual) if not visual.any() else _refuse_mask(mask)
        real = torch.ones_like(visual) if mask is None else mask.bool()
        counts, lengths = torch.stack([visual.sum(1), real.sum(1)]).tolist()
        if not any(counts):
            return None
        prefill = _Prefill(self._family, self.method, visual, counts, real, lengths)
        prefill.observations += _observations_in(call) or getattr(self._forward, "encoded", [])
        return prefill

    def _refuse_images(self, input_ids: Tensor) -> None:
        if self._family.visual_mask(input_ids, None).any():
            raise UnsupportedModelError(
                "Visual tokens arrive at a cache that is not empty, but only a prompt's first forward is pruned: put "
                "all images into the first turn, start again with a new cache, or leave out prefill_chunk_size."
            )

    def _finish(self, base: nn.Module, args: tuple[Any, ...], output: object) -> None:
        running, self._forward.running = self._running, None
        if running is None:
            return
        running.release()
        if isinstance(running, _Prefill) and output is not None:
            self.report = running.report()
            logger.debug("%s", self.report)

    def _observe(self, attention: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> None:
        with torch.no_grad():
            self._forward.observation = self._family.observe(args, kwargs)

    def _publish(self, vision: nn.Module, args: tuple[Any, ...], output: object) -> None:
        observation = self._forward.observation
        self._forward.observation = None
        if isinstance(output, ModelOutput):
            setattr(output, _OBSERVATION, observation)
        if isinstance(self._running, _Prefill):
            self._running.observations.append(observation)

    def _enter(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Kwargs
    ) -> tuple[tuple[Any, ...], Kwargs] | None:
        return None if self._running is None else (args, self._running.enter(kwargs))

    def _layer(
        self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: Kwargs
    ) -> tuple[tuple[Any, ...], Kwargs] | None:
        if self._running is None:
            return None
        hidden_states, kwargs = self._running.before_layer(index, args[0], kwargs)
        return (hidden_states, *args[1:]), kwargs


class _Prefill:
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
        self.cache: PrunedCache | None = None
        # What layers get instead of what the model passes on, since the last stage.
        self.fitted: Kwargs = {}
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

    def enter(self, kwargs: Kwargs) -> Kwargs:
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
            positions = self.layout.columns if self.layout.mask is None else positions_of(self.layout.mask)
        positions = positions.expand(*positions.shape[:-2], *hidden_states.shape[:2])
        if 0 in self.stage_layers:
            hidden_states, slots = self._stage(hidden_states)
            if slots is not None:
                positions = gather_slots(positions, slots, -1)
                if method.positions == "compact":
                    positions = _without_gaps(positions, self.layout.mask)
                kwargs |= {"inputs_embeds": hidden_states, "attention_mask": self.layout.mask}
        self.next_position = _last_position(positions, self.layout.mask) + 1
        return kwargs | {"position_ids": positions}

    def before_layer(self, layer: int, hidden_states: Tensor, kwargs: Kwargs) -> tuple[Tensor, Kwargs]:
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
                self.tokens,
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
            self.cache.running, self.cache.last_keys = False, None

    def report(self) -> Report:
        return Report(
            method=self.method.name,
            num_layers=len(self.family.layers),
            images=self.images,
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
        self.cache.request = Request(self.prompt_width, self.layouts, self.next_position, self.text_after_images)
        self.cache.running = True

    def _stage(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Select, merge and repack. Returns the new hidden states and the slots they gather, None if all stayed."""
        tokens, (batch, width) = self.tokens, hidden_states.shape[:2]
        budget = tuple(b.get(tokens.layer, n) for b, n in zip(self.schedule, tokens.lengths, strict=True))
        with torch.no_grad():
            selection = self.method.select(tokens, budget)
        if len(selection.keep) != sum(budget):
            raise BudgetError(
                f"{self.method.name} kept {len(selection.keep)} tokens where its schedule says {sum(budget)}."
            )
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

    def _fit(self, layer: int, hidden_states: Tensor, kwargs: Kwargs) -> Kwargs:
        """The keyword arguments that the model goes on passing at the length that entered, at the length now."""
        assert self.entered is not None
        fitted: Kwargs = {
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
            self.entered, self.tokens = self.entered.to(device), self.tokens.to(device)


class _Decode:
    """A later forward of a pruned prompt: decoding, or another turn. Runs no code of the method."""

    def __init__(self, family: ModelFamily, cache: PrunedCache, batch: int) -> None:
        assert cache.request is not None
        self.family, self.cache, self.request = family, cache, cache.request
        rows = len(self.request.next_position)
        if batch != rows:
            raise UnsupportedModelError(f"The KV cache holds {rows} prompts, and {batch} rows came with it.")
        self.tail = cache.tail_length()
        cache.running = True

    def enter(self, kwargs: Kwargs) -> Kwargs:
        new = kwargs["inputs_embeds"].shape[1]
        mask = kwargs.get("attention_mask")
        if mask is not None:
            seen = self.request.prompt_length + self.tail + new
            if mask.ndim != 2 or mask.shape[1] != seen:
                raise UnsupportedModelError(
                    f"attention_mask must be 2-D and cover the {seen} tokens of the conversation so far, dropped ones "
                    f"included; got shape {tuple(mask.shape)}."
                )
            mask = mask[:, self.request.prompt_length :].bool()
        self.tail_mask: Tensor | None = mask
        if mask is None:
            steps = torch.arange(self.tail, self.tail + new, device=self.request.next_position.device)[None]
        else:
            steps = positions_of(mask)[:, -new:]
        positions = self.request.next_position.to(steps.device)[:, None] + steps
        kwargs["position_ids"] = positions
        kwargs["attention_mask"] = self._padding_mask(self.request.layouts[0], new)
        return kwargs

    def before_layer(self, layer: int, hidden_states: Tensor, kwargs: Kwargs) -> tuple[Tensor, Kwargs]:
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
        self.cache.running, self.cache.last_keys = False, None

    def _padding_mask(self, layout: Layout, new: int) -> Tensor | None:
        """2-D mask over what a stretch of layers holds of the prompt and all that came after it."""
        if layout.mask is None and self.tail_mask is None:
            return None
        prompt = torch.ones_like(layout.columns, dtype=torch.bool) if layout.mask is None else layout.mask
        tail = self.tail_mask
        if tail is None:
            tail = prompt.new_ones(len(prompt), self.tail + new)
        return torch.cat([prompt.to(tail.device), tail], dim=1)


def _stock_model(model: Any) -> PreTrainedModel:
    """The transformers model in `model`, if it can be pruned as it is."""
    stock = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()):
        raise UnsupportedModelError("A compiled model cannot be pruned; prune the model without torch.compile.")
    if not isinstance(stock, PreTrainedModel):
        raise UnsupportedModelError(f"A {type(stock).__name__} cannot be pruned; pass a transformers model.")
    if (getattr(stock, "tp_size", None) or 1) > 1:
        raise UnsupportedModelError(
            "A tensor-parallel model cannot be pruned, since no process sees the keys of all heads; load it with "
            "device_map instead of tp_plan."
        )
    hooks = stock.base_model._forward_pre_hooks.values()
    if any(isinstance(getattr(hook, "__self__", None), Pruning) for hook in hooks):
        raise UnsupportedModelError("This model is pruned already; remove() that pruning first.")
    return stock


def _bound(module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> Kwargs:
    """The arguments of a call of `module`, all by name."""
    call = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    return call | call.pop("kwargs", {})


def _observations_in(call: Kwargs) -> list[Observation]:
    """What was observed when the encoder outputs passed to this call were made."""
    outputs = (call.get("mm_encoder_outputs") or {}).values()
    return [getattr(output, _OBSERVATION) for output in outputs if hasattr(output, _OBSERVATION)]


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
    if min(counts) < 1 or any(after > before for before, after in pairwise(counts)):
        raise BudgetError(f"{method.name} gives an impossible schedule for {num_tokens} visual tokens: {budgets}.")
    return budgets


def _without_gaps(positions: Tensor, mask: Tensor | None) -> Tensor:
    """Consecutive positions for the tokens of each row, from where its first token stands."""
    if mask is None:
        return positions[:, :1] + torch.arange(positions.shape[1], device=positions.device)
    first = positions.masked_fill(~mask, torch.iinfo(positions.dtype).max).amin(-1, keepdim=True)
    return (first + positions_of(mask)) * mask


def _last_position(positions: Tensor, mask: Tensor | None) -> Tensor:
    return (positions if mask is None else positions.masked_fill(~mask, -1)).amax(-1)


def _refuse_mask(mask: Tensor) -> NoReturn:
    raise UnsupportedModelError(
        f"attention_mask must be 2-D (batch, seq) for a prompt to be pruned; got shape {tuple(mask.shape)}."
    )
