"""Runs a pruning method inside a stock transformers model. The only file with hooks that stay.

    pixels -> get_image_features -> observe(): keys, saliency, grids
                  |
                  v  VisualTokens(0) -> select -> gather
    inputs_embeds -------------------------------> layers 0..s-1
                  v  VisualTokens(s): fresh hidden states, keys of layer s-1 -> select -> gather, merge
                  `------------------------------> layers s..      -> report

State flows one way: what a forward needs while it runs is in a `Prefill` or a `Decode`, which belongs to
the thread; what outlives it is in the `Request` of its KV cache. Neither model nor method keeps any.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PreTrainedModel
from transformers.utils import ModelOutput

from ..errors import UnsupportedModelError, VitcopError
from ..models import Observation, family_of
from ..models.base import Call
from ..models.encoders import FUSED, KEYS, QUERIES, Watched
from ..report import Report
from ..selection.pruner import Pruner, SmallImages
from .cache import PrunedCache, cache_in, check_dense, check_prunable
from .decode import Decode
from .placement import Placeholders
from .prefill import Prefill

logger = logging.getLogger("vitcop")

# `generate` encodes images before it calls the model: the observation travels on the encoder's output.
_OBSERVATION = "_vitcop_observation"


def prune(model: nn.Module, method: Pruner, *, small_images: SmallImages = "floor") -> Pruning:
    """Prune the visual tokens of every prompt that `model` reads from now on.

    Args:
        model: a stock transformers vision-language model, PEFT-wrapped or not.
        method: what to prune, and how far.
        small_images: what becomes of an image of so few visual tokens that one of them in each stage is more than
            the retention of the method: "floor" lets it keep that one, which is less than one more than asked for;
            "refuse" raises `BudgetError`, and with it refuses the batch.

    Returns:
        A handle. `remove()` it, or use it in a `with` block, to have the model as it was.

    Raises:
        UnsupportedModelError: the model is of an unknown type, is pruned already, or is compiled or
            sharded in a way that cannot be pruned.
    """
    return Pruning(model, method, small_images)


class Pruning:
    """A pruned model. Follows the protocol of PyTorch's `RemovableHandle`.

    Attributes:
        method: the pruning method.
        report: what the last prefill kept, or None before the first one.
    """

    def __init__(self, model: nn.Module, method: Pruner, small_images: SmallImages = "floor") -> None:
        stock = _stock_model(model)
        if not isinstance(method, Pruner):
            raise VitcopError(f"The method must be one such as vitcop.ViTCoP(), not {method!r}.")
        if method.positions not in ("compact", "keep"):
            raise VitcopError(f"The positions of a method are 'compact' or 'keep', not {method.positions!r}.")
        if small_images not in ("floor", "refuse"):
            raise VitcopError(f"small_images is 'floor' or 'refuse', not {small_images!r}.")
        self.method = method
        self._small_images = small_images
        self.report: Report | None = None
        self._family = family_of(stock)
        if self._family.base is stock:
            raise UnsupportedModelError("Pass the whole model, with its language-model head, not its base model.")
        self._signals = method.encoder_signals
        self._watched = {modality: self._watched_modules(modality) for modality in self._family.modalities}
        self._forward = threading.local()
        self._hooks: list[RemovableHandle | _Wrapper] = []
        self._add_hooks(stock)

    def remove(self) -> None:
        """Take the hooks off the model. Caches of pruned prompts refuse to go on without them."""
        while self._hooks:
            self._hooks.pop().remove()
        self._release()
        # A handle is often kept for its report: it must not keep the model.
        vars(self).pop("_family", None)
        self._watched = {}
        self._forward = threading.local()

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
        for modality in family.modalities:
            self._hooks.append(_Wrapper(family.base, f"get_{modality}_features", partial(self._encode, modality)))
        for attention, names in self._projections_to_keep().items():
            before(attention, self._watch)
            for name in names:
                hook = partial(self._keep_projected, attention, name)
                self._hooks.append(attention.get_submodule(name).register_forward_hook(hook))
        before(family.decoder, self._enter)
        for index, layer in enumerate(family.layers):
            before(layer, partial(self._layer, index))

    def _watched_modules(self, modality: str) -> list[nn.Module]:
        """The vision attention whose layer makes the features, and those of the method's signals, in order."""
        main = self._family.observed[modality]
        depths = [signal.depth for signal in self._signals]
        return [main, *(main if d is None else self._family.encoder_attention(modality, d) for d in depths)]

    def _projections_to_keep(self) -> dict[nn.Module, list[str]]:
        """Of the attentions that are watched the projections of queries and keys."""
        watched = {attention for attentions in self._watched.values() for attention in attentions}
        return {attention: [n for n in (QUERIES, KEYS, FUSED) if hasattr(attention, n)] for attention in watched}

    @property
    def _running(self) -> Prefill | Decode | None:
        return getattr(self._forward, "running", None)

    def _open(self, model: nn.Module, args: tuple[Any, ...], kwargs: Call) -> None:
        call = _bound(model.forward, args, kwargs)
        aligned = call.get("labels") is not None or isinstance(call.get("logits_to_keep"), Tensor)
        if aligned and self._placeholders(call).any:
            raise UnsupportedModelError(
                "labels, and logits_to_keep as a tensor, cannot be used while visual tokens are pruned, since logits "
                "hold the survivors only: leave them out, and pick from the logits by pruning.report.positions."
            )
        # Read here, since accelerate's hooks hand a copy of the encoder's output on to the base model.
        self._forward.encoded = _observations_in(call)

    def _close(self, model: nn.Module, args: tuple[Any, ...], output: object) -> None:
        self._forward.encoded = {}

    def _start(self, base: nn.Module, args: tuple[Any, ...], kwargs: Call) -> tuple[tuple[Any, ...], Call]:
        call = _bound(base.forward, args, kwargs)
        self._release()
        self._forward.running = running = self._request_of(call)
        return (), running.start(call) if isinstance(running, Decode) else call

    def _request_of(self, call: Call) -> Prefill | Decode | None:
        """What kind of forward this is: the prefill of a pruned prompt, a later step of one, or neither."""
        ids, embeds, cache = call.get("input_ids"), call.get("inputs_embeds"), cache_in(call)
        tokens = ids if ids is not None else embeds
        if tokens is None:
            return None  # the model raises
        if cache is not None and not isinstance(cache, Cache):
            raise UnsupportedModelError(f"A {type(cache).__name__} cannot be pruned; use the default DynamicCache.")
        pruned = cache if isinstance(cache, PrunedCache) and cache.request is not None else None
        if pruned is not None or (cache is not None and cache.get_seq_length() > 0):
            if _brings_images(call):
                raise UnsupportedModelError(
                    "Images or videos arrive at a cache that is not empty, but only a prompt's first forward can be "
                    "pruned: put them all into the first turn, start again with a new cache, or leave out "
                    "prefill_chunk_size."
                )
            if pruned is not None:
                return Decode(self._family, pruned, *tokens.shape[:2])
            check_dense(cache)
            return None

        placeholders = self._placeholders(call)
        if not placeholders.any:
            return None
        if cache is not None:
            check_prunable(cache, self._family.has_windows)
        mask = call.get("attention_mask")
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            raise UnsupportedModelError("attention_mask must be 2-D (batch, seq) for a prompt to be pruned.")
        if placeholders.hidden:
            raise UnsupportedModelError("attention_mask hides visual tokens; leave them out of the prompt.")
        self.report = None
        prefill = Prefill(self._family, self.method, call, placeholders, self._small_images)
        # Taken, not read: an interrupted call leaves what it has encoded behind.
        encoded, self._forward.encoded = getattr(self._forward, "encoded", {}), {}
        for modality, observation in (_observations_in(call) or encoded).items():
            prefill.observations[modality].append(observation)
        return prefill

    def _placeholders(self, call: Call) -> Placeholders:
        mask = call.get("attention_mask")
        flat = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        return Placeholders.of(self._family.placeholders(call.get("input_ids"), call.get("inputs_embeds")), flat)

    def _finish(self, base: nn.Module, args: tuple[Any, ...], output: object) -> None:
        running = self._release()
        if isinstance(running, Prefill) and output is not None:
            running.check_stages()
            self.report = running.report()
            logger.debug("%s", self.report)

    def _release(self) -> Prefill | Decode | None:
        """End this thread's forward, if one is running: torch skips `_finish` after a KeyboardInterrupt."""
        running, self._forward.running = self._running, None
        if running is not None:
            running.release()
        return running

    def _watch(self, attention: nn.Module, args: tuple[Any, ...], kwargs: Call) -> None:
        if getattr(self._forward, "encoding", False):
            self._forward.watched[attention] = Watched(attention, _bound(attention.forward, args, kwargs), {})

    def _keep_projected(
        self, attention: nn.Module, name: str, projection: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> None:
        watched = getattr(self._forward, "watched", {}).get(attention)
        # Where an adapter has been put around the projection since, what it makes is not all.
        if watched is not None and attention.get_submodule(name) is projection:
            watched.projected[name] = output

    def _encode(self, modality: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Call) -> Any:
        """In place of the model's `get_image_features` or `get_video_features`, since some calls stand in the other."""
        if getattr(self._forward, "encoding", False):
            return original(*args, **kwargs)
        call = _bound(original, args, kwargs)
        self._family.check_encoding(call)
        self._forward.encoding, self._forward.watched = True, {}
        try:
            output = original(*args, **kwargs)
            watched = self._forward.watched
        finally:
            self._forward.encoding, self._forward.watched = False, {}
        if not isinstance(output, ModelOutput) or not watched:
            return output
        observation = self._observe(modality, call, watched)
        _check_observation(observation, output)
        if isinstance(self._running, Prefill):
            self._running.observations[modality].append(observation)
        else:
            setattr(output, _OBSERVATION, observation)
        return output

    def _observe(self, modality: str, call: Call, watched: dict[nn.Module, Watched]) -> Observation:
        main, *others = self._watched[modality]
        observation = self._family.observe(modality, call, watched[main])
        signals = {}
        for signal, module in zip(self._signals, others, strict=True):
            seen = replace(watched[module], received=signal.received)
            signals[signal] = self._family.observe(modality, call, seen).patches
        return replace(observation, signals=signals)

    def _enter(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Call) -> tuple[tuple[Any, ...], Call] | None:
        return None if self._running is None else (args, self._running.enter(kwargs))

    def _layer(
        self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: Call
    ) -> tuple[tuple[Any, ...], Call] | None:
        running = self._running
        if running is None or running.leaves_alone(kwargs):
            return None
        hidden_states, kwargs = running.before_layer(index, args[0], kwargs)
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


class _Wrapper:
    """A method of one object wrapped by another, until it is removed.

    Not a forward hook, since how features are packed into tokens is said to no module: `image_sizes` and the
    like end at `get_image_features`, which `generate` calls before the first forward.
    """

    def __init__(self, owner: nn.Module, name: str, wrapper: Callable[..., Any]) -> None:
        self.owner: nn.Module | None = owner
        self.name = name
        self.before = vars(owner).get(name)
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, args, kwargs) if self.owner is not None else original(*args, **kwargs)

        self.wrapped = wrapped
        setattr(owner, name, wrapped)

    def remove(self) -> None:
        owner, self.owner = self.owner, None
        # Where somebody has wrapped it again, it stays, and does nothing.
        if owner is not None and vars(owner).get(self.name) is self.wrapped:
            delattr(owner, self.name)
            if self.before is not None:
                setattr(owner, self.name, self.before)


def _bound(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Call) -> Call:
    """The arguments of a call, all by name."""
    if not args:
        return kwargs
    call = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    return call | call.pop("kwargs", {})


def _brings_images(call: Call) -> bool:
    """Whether images come along with this call, as pixels or encoded."""
    pixels = any(value is not None for name, value in call.items() if name.startswith("pixel_values"))
    return pixels or any(output is not None for output in _encoded(call).values())


def _observations_in(call: Call) -> dict[str, Observation]:
    """What was observed when the encoder outputs passed to this call were made, by modality."""
    outputs = _encoded(call).items()
    return {modality: getattr(out, _OBSERVATION) for modality, out in outputs if hasattr(out, _OBSERVATION)}


def _encoded(call: Call) -> dict[str, Any]:
    """Encoder outputs passed to this call, by modality; Idefics3 also takes a bare tensor of images."""
    outputs = call.get("mm_encoder_outputs")
    if outputs is None:
        return {}
    return outputs if isinstance(outputs, dict) else {"image": outputs}


def _check_observation(observation: Observation, output: ModelOutput) -> None:
    """Raise unless there is one place for each of the features that the model will put into the prompt."""
    features = output.pooler_output
    made = sum(feature.shape[:-1].numel() for feature in features)
    placeholders, tokens = sum(observation.placeholders), sum(observation.lengths)
    # Some models add separators only when they put the features into the prompt.
    if made not in (placeholders, tokens):
        raise UnsupportedModelError(
            f"The model made {made} visual tokens where {tokens} were expected from the sizes of its pictures; pass "
            "pictures as its processor makes them, and please report this if you did."
        )
