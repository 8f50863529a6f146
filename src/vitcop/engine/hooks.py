"""Runs a pruning method inside a stock transformers model. The only file with hooks that stay.

    pixels -> get_image_features -> observe(): keys, saliency, grids
                  |
                  v  VisualTokens(0) -> select -> gather
    inputs_embeds -------------------------------> layers 0..s-1
                  v  VisualTokens(s): fresh hidden states, keys of layer s-1 -> select -> gather, merge
                  `------------------------------> layers s..      -> report

State flows one way: what a call needs while it runs is in a `Forward` and belongs to the thread; what outlives
it is in the `Request` of its KV cache. Neither model nor method keeps any.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PreTrainedModel
from transformers.utils import ModelOutput

from .. import floors
from ..errors import UnsupportedModelError, VitcopError
from ..models import Observation, family_of
from ..models.base import Call
from ..models.encoders import Watched, projections
from ..report import Report
from ..selection.pruner import Pruner, SmallImages
from .arguments import bound, encoder_outputs
from .cache import PrunedCache, cache_in, check_dense, check_prunable
from .decode import Decode
from .forward import Forward
from .placement import Placeholders, columns_behind
from .prefill import Prefill
from .refusals import (
    check_batch,
    check_cache,
    check_encoded,
    check_head,
    check_mask,
    check_no_chunks,
    check_no_drafts,
    check_no_images,
    check_shared,
)
from .skipping import REPEATS
from .stock import stock_model
from .wrapper import Wrapper

logger = logging.getLogger("vitcop")

# `generate` encodes images before it calls the model: the observation travels on the encoder's output.
_OBSERVATION = "_vitcop_observation"


def prune(model: nn.Module, method: Pruner, *, small_images: SmallImages = "floor") -> Pruning:
    """Prune the visual tokens of every prompt that `model` reads from now on.

    Logs a warning, once for each type of model, where the retention is below what others found reading and pointing to
    stand (`vitcop.floors`).

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


def pruning_of(model: nn.Module) -> Pruning | None:
    """The handle of the pruning that is on `model`, PEFT-wrapped or not; None if none is.

    For where the handle was lost: `vitcop.pruning_of(model).remove()`.
    """
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            pruning = getattr(hook, "__self__", None)
            if isinstance(pruning, Pruning):
                return pruning
    return None


@contextmanager
def reading_prefix(pruning: Pruning) -> Iterator[None]:
    """While this is on, what this thread has the model read is what prompts begin with, and methods that look at what
    stands behind images raise.
    """
    pruning._thread.prefix = True
    try:
        yield
    finally:
        pruning._thread.prefix = False


class _Thread(threading.local):
    """What one thread is doing in a pruned model.

    Attributes:
        calls: how many wrapped functions of the model it is in, one within the other.
        forward: what the base model is running; None where that is dense.
        report: of the last prompt that it read.
        asked: arguments of the whole model, whose base model is about to run.
        encoded: observations that came along with these.
        base_called: whether the base model has been called, and its forward is yet to come.
        watched: attentions of the encoder, while it runs.
        prompts: ids or embeddings that `generate` was given, while that runs.
        counted: whether it counts positions by itself.
        prefix: whether what it reads is what prompts begin with, and text that is not known yet comes behind it.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.forward: Forward | None = None
        self.report: Report | None = None
        self.asked: Call = {}
        self.encoded: dict[str, Observation] = {}
        self.base_called = False
        self.watched: dict[nn.Module, Watched] | None = None
        self.prompts: list[Tensor] = []
        self.counted = False
        self.prefix = False


class Pruning:
    """A pruned model. Follows the protocol of PyTorch's `RemovableHandle`.

    Attributes:
        method: the pruning method.
    """

    def __init__(self, model: nn.Module, method: Pruner, small_images: SmallImages = "floor") -> None:
        stock = _unpruned_model(model)
        if not isinstance(method, Pruner):
            raise VitcopError(f"The method must be one such as vitcop.ViTCoP(), not {method!r}.")
        if method.positions not in ("compact", "keep"):
            raise VitcopError(f"The positions of a method are 'compact' or 'keep', not {method.positions!r}.")
        if small_images not in ("floor", "refuse"):
            raise VitcopError(f"small_images is 'floor' or 'refuse', not {small_images!r}.")
        self.method = method
        self._small_images = small_images
        self._family = family_of(stock)
        self._model_type = stock.config.model_type
        if not stock.can_generate():
            raise UnsupportedModelError(
                "Pass the whole model, with its language-model head: not its base model, and none with a head that "
                "picks tokens by their columns in the unpruned prompt (classification, rewards)."
            )
        self._signals = method.encoder_signals
        self._watched = {modality: self._watched_modules(modality) for modality in self._family.modalities}
        self._thread = _Thread()
        self._calls, self._removed, self._changed = 0, False, threading.Condition()
        self._hooks: list[RemovableHandle | Wrapper] = []
        self._add_hooks(stock)
        if method.tokens is None:  # what share these are of a picture is not known before there is one
            floors.warn(stock, getattr(method, "retention", 1.0))

    def __repr__(self) -> str:
        state = "removed" if self._removed else "pruned"
        return f"<vitcop.Pruning: {self.method.name} on {self._model_type}, {state}>"

    @property
    def report(self) -> Report | None:
        """What the last prompt that this thread had the model read kept of its images; None before the first one.

        Each thread has its own. It stays after `remove()`.
        """
        return self._thread.report

    def remove(self) -> None:
        """Take the hooks off the model. Caches of pruned prompts refuse to go on without them.

        Prompts and steps that the model is just reading end as they began, and no other begins. Those of other threads
        are waited for; called within one, by a hook of one's own, the hooks go when that one is over.
        """
        with self._changed:
            self._removed = True
            if not self._calls:
                self._take_off()
            elif not self._thread.calls:
                self._changed.wait_for(lambda: not self._calls)

    def __enter__(self) -> Pruning:
        if self._removed:
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

        def around(owner: nn.Module, name: str, wrapper: Callable[..., Any]) -> None:
            self._hooks.append(Wrapper(owner, name, wrapper))

        for modality in family.modalities:
            around(family.base, f"get_{modality}_features", partial(self._encode, modality))
        for attention in {attention for attentions in self._watched.values() for attention in attentions}:
            before(attention, self._watch)
            for name, projection in projections(attention).items():
                hook = partial(self._keep_projected, attention, name)
                self._hooks.append(projection.register_forward_hook(hook))
        before(family.decoder, self._enter)
        for index, layer in enumerate(family.layers):
            before(layer, partial(self._layer, index))
        # Last, as another thread may call the model at any time: what begins here finds all of the above.
        around(stock, "generate", partial(self._generate, stock))
        # Hooks alone are passed by where `forward` is called by name, and torch runs none after a KeyboardInterrupt.
        # Where there is no base model, both are the same, and what stands around the whole model comes second.
        around(family.base, "forward", self._run_base)
        around(stock, "forward", self._run_model)
        before(stock, self._ask)
        before(family.base, self._expect)

    def _take_off(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        # A handle is often kept for its report: it must not keep the model.
        vars(self).pop("_family", None)
        self._watched = {}
        self._changed.notify_all()

    @contextmanager
    def _call(self) -> Iterator[bool]:
        """A call of the model, for as long as which the hooks stay on. Gives False if they are coming off already.

        A call within a call of the same thread is a part of that.
        """
        with self._changed:
            on = not self._removed or self._thread.calls > 0
            self._calls += on
            self._thread.calls += on
        try:
            yield on
        finally:
            with self._changed:
                self._calls -= on
                self._thread.calls -= on
                if self._removed and not self._calls:
                    self._take_off()

    def _watched_modules(self, modality: str) -> list[nn.Module]:
        """The vision attention whose layer makes the features, and those of the method's signals, in order."""
        main = self._family.observed[modality]
        depths = [signal.depth for signal in self._signals]
        return [main, *(main if d is None else self._family.encoder_attention(modality, d) for d in depths)]

    def _generate(
        self, stock: PreTrainedModel, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Call
    ) -> Any:
        """In place of the model's `generate`, which alone knows where a prompt ends and a drafted answer begins."""
        call, thread = bound(original, args, kwargs), self._thread
        check_no_drafts(call, stock.generation_config)
        check_no_chunks(call, stock.generation_config)
        given = [call.get(name) for name in ("inputs", "input_ids", "inputs_embeds")]
        outer = thread.prompts, thread.counted
        thread.prompts = [tokens for tokens in given if isinstance(tokens, Tensor)]
        thread.counted = call.get("position_ids") is None
        try:
            return original(*args, **kwargs)
        finally:
            thread.prompts, thread.counted = outer

    # Hooks have `kwargs` by default None: torch sets a hook, and removes it, before its mark that it takes them, and a
    # dense forward of another thread may call it in between.

    def _ask(self, model: nn.Module, args: tuple[Any, ...], kwargs: Call | None = None) -> None:
        # Read before the forward, where accelerate may hand on a copy of the encoder's output.
        if kwargs is not None:
            self._thread.asked = bound(model.forward, args, kwargs)
            self._thread.encoded = _observations_in(self._thread.asked)

    def _expect(self, base: nn.Module, args: tuple[Any, ...], kwargs: Call | None = None) -> None:
        self._thread.base_called = True

    def _run_model(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Call) -> Any:
        """In place of the forward of the whole model, around that of its base model."""
        with self._call() as on:
            if on and not self._thread.asked:
                self._ask(self._family.model, args, kwargs)
            try:
                return original(*args, **kwargs)
            finally:
                self._thread.asked, self._thread.encoded = {}, {}

    def _run_base(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Call) -> Any:
        """In place of the forward of the base model, around that of the decoder."""
        self._thread.base_called = False
        with self._call() as on:
            if not on:
                return original(*args, **kwargs)
            call = bound(original, args, kwargs)
            with self._running(self._forward_of(call)) as forward:
                if forward is None:
                    return original(*args, **kwargs)
                output = original(**forward.start(call))
                report = forward.finish()
            asked = self._thread.asked.get("logits_to_keep")
            if (
                isinstance(asked, int)
                and asked > 0
                and isinstance(output, ModelOutput)
                and "last_hidden_state" in output
            ):
                # The head would tell by its length whether this has been done.
                output.last_hidden_state = output.last_hidden_state[:, -asked:]
            if report is not None:
                self._thread.report = report
                logger.debug("%s", report)
            return output

    @contextmanager
    def _running(self, forward: Forward | None) -> Iterator[Forward | None]:
        outer, self._thread.forward = self._thread.forward, forward
        try:
            yield forward
        finally:
            self._thread.forward = outer
            if forward is not None:
                forward.release()

    def _forward_of(self, call: Call) -> Forward | None:
        """What a forward of the base model with these arguments is to us; None if it is left alone.

        Either something is in the cache already, and new tokens come behind it, or a prompt is read.
        """
        tokens, axes, cache = call.get("input_ids"), 2, cache_in(call)
        if tokens is None:
            tokens, axes = call.get("inputs_embeds"), 3
        if tokens is None:
            return None  # the model raises
        check_batch(tokens, axes)
        check_cache(cache)
        if cache is not None and cache.get_seq_length() > 0:
            return self._continued(call, tokens, cache)
        return self._begun(call, tokens, cache)

    def _continued(self, call: Call, tokens: Tensor, cache: Cache) -> Decode | None:
        """A later forward, behind what is in the cache."""
        check_no_images(call)
        if isinstance(cache, PrunedCache) and cache.request is not None:
            return Decode(self._family, cache, *tokens.shape[:2], counted=self._thread.counted)
        check_dense(cache)
        return None

    def _begun(self, call: Call, tokens: Tensor, cache: Cache | None) -> Prefill | None:
        """The first forward of a batch of prompts. Without images it is left alone."""
        mask, thread = call.get("attention_mask"), self._thread
        flat = mask if isinstance(mask, Tensor) and mask.shape == tokens.shape[:2] else None
        drafted = max((columns_behind(prompts, tokens) for prompts in thread.prompts), default=0)
        placeholders = Placeholders.of(self._family.placeholders(call), flat, drafted)
        if not placeholders.any:
            return None
        thread.report = None
        check_encoded(thread.asked | call, self._family.base.forward)
        if cache is not None:  # of which `generate` may have made masks
            check_prunable(cache, self._family)
        check_mask(mask, tokens, placeholders)
        check_shared(call)
        check_head(thread.asked, self._family.decoder.config, placeholders)
        prefill = Prefill(self._family, self.method, call, placeholders, self._small_images, prefix=thread.prefix)
        for modality, observation in (_observations_in(call) or thread.encoded).items():
            prefill.observations[modality].append(observation)
        return prefill

    def _watch(self, attention: nn.Module, args: tuple[Any, ...], kwargs: Call | None = None) -> None:
        if self._thread.watched is not None and kwargs is not None:
            self._thread.watched[attention] = Watched(attention, bound(attention.forward, args, kwargs), {})

    def _keep_projected(
        self, attention: nn.Module, name: str, projection: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> None:
        watched = (self._thread.watched or {}).get(attention)
        # Where an adapter has been put around the projection since, what it makes is not all.
        if watched is not None and projections(attention)[name] is projection:
            watched.projected[name] = output

    def _encode(self, modality: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Call) -> Any:
        """In place of the model's `get_image_features` or `get_video_features`, since some calls stand in the other."""
        thread = self._thread
        if thread.watched is not None:
            return original(*args, **kwargs)
        with self._call() as on:
            if not on:
                return original(*args, **kwargs)
            call = bound(original, args, kwargs)
            self._family.check_encoding(call)
            watched = thread.watched = {}
            try:
                output = original(*args, **kwargs)
            finally:
                thread.watched = None
            if not isinstance(output, ModelOutput) or not watched:
                return output
            repeats = getattr(output, REPEATS, None)
            watched = {module: replace(seen, repeats=repeats) for module, seen in watched.items()}
            observation = self._observe(modality, call, watched)
            _check_observation(observation, self._family.features_in(output))
            if isinstance(thread.forward, Prefill):
                thread.forward.observations[modality].append(observation)
            else:
                setattr(output, _OBSERVATION, observation)
            return output

    def _observe(self, modality: str, call: Call, watched: dict[nn.Module, Watched]) -> Observation:
        main, *others = self._watched[modality]
        observation = self._family.observe(modality, call, watched[main])
        signals = {}
        for signal, module in zip(self._signals, others, strict=True):
            seen = replace(watched[module], received=signal.received)
            signals[signal] = self._family.shown(modality, call, seen)
        return replace(observation, signals=signals)

    def _enter(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Call | None = None
    ) -> tuple[tuple[Any, ...], Call] | None:
        thread, forward = self._thread, self._thread.forward
        if thread.base_called:
            thread.base_called = False
            raise UnsupportedModelError(
                "The forward of the base model has been replaced since it was pruned, as accelerate does when it "
                "dispatches a model anew: remove() the pruning, and prune the model as it is now."
            )
        return None if forward is None or kwargs is None else (args, forward.enter(kwargs))

    def _layer(
        self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: Call | None = None
    ) -> tuple[tuple[Any, ...], Call] | None:
        forward = self._thread.forward
        if forward is None or kwargs is None or forward.leaves_alone(kwargs):
            return None
        hidden_states, *others = args
        if others:
            kwargs = bound(layer.forward, args, kwargs)
            hidden_states = kwargs.pop("hidden_states")
        hidden_states, kwargs = forward.before_layer(index, hidden_states, kwargs)
        return (hidden_states,), kwargs


def _unpruned_model(model: Any) -> PreTrainedModel:
    """The transformers model in `model`, if it can be pruned as it is."""
    stock = stock_model(model)
    if (pruning := pruning_of(stock)) is not None:
        raise UnsupportedModelError(
            f"This model is pruned already: {pruning}; remove() that first, by vitcop.pruning_of(model).remove() where "
            "the handle is lost."
        )
    return stock


def _observations_in(call: Call) -> dict[str, Observation]:
    """What was observed when the encoder outputs passed to this call were made, by modality."""
    outputs = encoder_outputs(call).items()
    return {modality: getattr(out, _OBSERVATION) for modality, out in outputs if hasattr(out, _OBSERVATION)}


def _check_observation(observation: Observation, features: Tensor | Sequence[Tensor]) -> None:
    """Raise unless there is one place for each of the features that the model will put into the prompt."""
    made = sum(feature.shape[:-1].numel() for feature in features)
    placeholders, tokens = sum(observation.placeholders), sum(observation.lengths)
    # Some models add separators only when they put the features into the prompt.
    if made not in (placeholders, tokens):
        raise UnsupportedModelError(
            f"The model made {made} visual tokens where {tokens} were expected from the sizes of its pictures; pass "
            "pictures as its processor makes them, and please report this if you did."
        )
