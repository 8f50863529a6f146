"""Runs a pruning method inside a stock transformers model. The only file with hooks.

    pixels -> vision layer -> observe(): keys, saliency, grid
                  |
                  v  VisualTokens(0) -> select -> gather
    inputs_embeds -------------------------------> layers 0..s-1
                  v  VisualTokens(s): fresh hidden states, keys of layer s-1 -> select -> gather, merge
                  `------------------------------> layers s..      -> report

State flows one way: what a forward needs while it runs is in a `Prefill` or a `Decode`, which belongs to
the thread; what outlives it is in the `Request` of its KV cache. Neither model nor method keeps any.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PreTrainedModel
from transformers.utils import ModelOutput

from .cache import PrunedCache, check_dense, check_prunable
from .decode import Decode
from .errors import UnsupportedModelError, VitcopError
from .models import Observation, family_of
from .prefill import Prefill
from .pruner import Pruner
from .report import Report

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
        if not isinstance(method, Pruner):
            raise VitcopError(f"The method must be one such as vitcop.ViTCoP(), not {method!r}.")
        if method.positions not in ("compact", "keep"):
            raise VitcopError(f"The positions of a method are 'compact' or 'keep', not {method.positions!r}.")
        self.method = method
        self.report: Report | None = None
        self._family = family_of(stock)
        if self._family.base is stock:
            raise UnsupportedModelError("Pass the whole model, with its language-model head, not its base model.")
        self._forward = threading.local()
        self._hooks: list[RemovableHandle] = []
        self._add_hooks(stock)

    def remove(self) -> None:
        """Take the hooks off the model. Caches of pruned prompts refuse to go on without them."""
        while self._hooks:
            self._hooks.pop().remove()
        self._release()
        # A handle is often kept for its report: it must not keep the model.
        vars(self).pop("_family", None)

    def __enter__(self) -> Pruning:
        if not self._hooks:
            raise VitcopError("This pruning has been removed; call vitcop.prune(...) again.")
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
        before(family.vision, self._encode)
        before(family.observed, self._observe)
        self._hooks.append(family.vision.register_forward_hook(self._publish, always_call=True))
        before(family.decoder, self._enter)
        for index, layer in enumerate(family.layers):
            before(layer, partial(self._layer, index))

    @property
    def _running(self) -> Prefill | Decode | None:
        return getattr(self._forward, "running", None)

    def _open(self, model: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> None:
        call = _bound(model, args, kwargs)
        aligned = call.get("labels") is not None or isinstance(call.get("logits_to_keep"), Tensor)
        if aligned and self._family.visual_mask(call.get("input_ids"), call.get("inputs_embeds")).any():
            raise UnsupportedModelError(
                "labels, and logits_to_keep as a tensor, cannot be used while visual tokens are pruned, since logits "
                "hold the survivors only: leave them out, and pick from the logits by pruning.report.positions."
            )
        # Read here, since accelerate's hooks hand a copy of the encoder's output on to the base model.
        self._forward.encoded = _observations_in(call)

    def _close(self, model: nn.Module, args: tuple[Any, ...], output: object) -> None:
        self._forward.encoded = []

    def _start(self, base: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> tuple[tuple[Any, ...], Kwargs]:
        call = _bound(base, args, kwargs)
        self._release()
        self._family.check_call(call)
        self._forward.running = self._request_of(call)
        return (), call

    def _request_of(self, call: Kwargs) -> Prefill | Decode | None:
        """What kind of forward this is: the prefill of a pruned prompt, a later step of one, or neither."""
        ids, embeds, cache = call.get("input_ids"), call.get("inputs_embeds"), call.get("past_key_values")
        tokens = ids if ids is not None else embeds
        if tokens is None:
            return None  # the model raises
        if cache is not None and not isinstance(cache, Cache):
            raise UnsupportedModelError(f"A {type(cache).__name__} cannot be pruned; use the default DynamicCache.")
        if cache is not None and cache.get_seq_length() > 0:
            if _brings_images(call):
                raise UnsupportedModelError(
                    "Images arrive at a cache that is not empty, but only a prompt's first forward is pruned: put all "
                    "images into the first turn, start again with a new cache, or leave out prefill_chunk_size."
                )
            if isinstance(cache, PrunedCache) and cache.request is not None:
                return Decode(self._family, cache, tokens.shape[0])
            check_dense(cache)
            return None

        visual = self._family.visual_mask(ids, embeds)
        mask = call.get("attention_mask")
        flat = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        real = torch.ones_like(visual) if flat is None else flat.bool()
        counts, lengths, hidden = torch.stack([visual.sum(1), real.sum(1), (visual & ~real).sum(1)]).tolist()
        if not any(counts):
            return None
        if cache is not None:
            check_prunable(cache)
        if mask is not None and flat is None:
            raise UnsupportedModelError("attention_mask must be 2-D (batch, seq) for a prompt to be pruned.")
        if any(hidden):
            raise UnsupportedModelError("attention_mask hides visual tokens; leave the image out of the prompt.")
        self.report = None
        prefill = Prefill(self._family, self.method, visual, counts, real, lengths)
        prefill.observations += _observations_in(call) or getattr(self._forward, "encoded", [])
        return prefill

    def _finish(self, base: nn.Module, args: tuple[Any, ...], output: object) -> None:
        running = self._release()
        if isinstance(running, Prefill) and output is not None:
            running.check_selections()
            self.report = running.report()
            logger.debug("%s", self.report)

    def _release(self) -> Prefill | Decode | None:
        """End this thread's forward, if one is running: torch skips `_finish` after a KeyboardInterrupt."""
        running, self._forward.running = self._running, None
        if running is not None:
            running.release()
        return running

    def _encode(self, vision: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> None:
        self._family.check_encoding(kwargs)

    def _observe(self, attention: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> None:
        with torch.no_grad():
            self._forward.observation = self._family.observe(args, kwargs)

    def _publish(self, vision: nn.Module, args: tuple[Any, ...], output: object) -> None:
        observation = getattr(self._forward, "observation", None)
        self._forward.observation = None
        if output is None or observation is None:
            return  # the encoder failed
        if isinstance(output, ModelOutput):
            setattr(output, _OBSERVATION, observation)
        if isinstance(self._running, Prefill):
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


def _stock_model(model: Any) -> PreTrainedModel:
    """The transformers model in `model`, if it can be pruned as it is."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"A {type(model).__name__} cannot be pruned; pass a loaded transformers model.")
    stock = getattr(model, "get_base_model", lambda: model)()  # of a PEFT wrapper
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
    if not args:
        return kwargs
    call = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    return call | call.pop("kwargs", {})


def _brings_images(call: Kwargs) -> bool:
    """Whether images come along with this call, as pixels or encoded."""
    pixels = any(value is not None for name, value in call.items() if name.startswith("pixel_values"))
    return pixels or any(output is not None for output in (call.get("mm_encoder_outputs") or {}).values())


def _observations_in(call: Kwargs) -> list[Observation]:
    """What was observed when the encoder outputs passed to this call were made."""
    outputs = (call.get("mm_encoder_outputs") or {}).values()
    return [getattr(output, _OBSERVATION) for output in outputs if hasattr(output, _OBSERVATION)]
