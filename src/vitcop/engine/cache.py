"""The KV cache of a pruned prompt: it knows what it holds, and refuses to be used as if it held all."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int, Real
from torch import Tensor
from transformers import Cache, PreTrainedModel, cache_utils
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, LinearAttentionLayer, QuantizedLayer

from ..errors import UnsupportedModelError
from ..models import ModelFamily
from .layout import Layout
from .positions import RotaryPositions

# What stands in for layers that use the keys and values of another, which transformers 5.17 does not have.
_EMPTY: tuple[type, ...] = tuple(filter(None, [getattr(cache_utils, "DummyLayer", None)]))
# The common base of quantised layers, which it does not have either.
_QUANTISED: type = getattr(cache_utils, "BaseQuantizedLayer", QuantizedLayer)


@dataclass(frozen=True, eq=False)
class Request:
    """What decoding has to know about a pruned prompt.

    Attributes:
        prompt_length: columns of the unpruned prompt, padding included.
        num_layers: decoder layers that a complete prefill fills, from the first on.
        layouts: first decoder layer of each stretch -> the prompt tokens held from that layer on.
        positions: rotary positions of the tokens that entered the decoder, as in `layouts[0]`.
        ends: prompt column behind the last token of each prompt: less than `prompt_length` where it is padded there.
        text_after_images: prompt columns behind the last visual token of any prompt; a scalar.
    """

    prompt_length: int
    num_layers: int
    layouts: dict[int, Layout]
    positions: RotaryPositions
    ends: Int[Tensor, " batch"]
    text_after_images: Int[Tensor, ""]

    @functools.cached_property
    def next_position(self) -> Real[Tensor, " batch"]:
        """Rotary position of the first token after the prompt."""
        return self.positions.behind(self.layouts[0].alive)

    @functools.cached_property
    def padded_behind(self) -> bool:
        """Whether there is padding behind the last token of a prompt. Waits for the device."""
        return bool((self.ends < self.prompt_length).any())

    @functools.cached_property
    def widths(self) -> tuple[int, ...]:
        """Tokens of the prompt, padding included, that each decoder layer holds."""
        return tuple(self.layout_at(layer).width for layer in range(self.num_layers))

    @property
    def batch(self) -> int:
        """Prompts in the batch."""
        return len(self.layouts[0].columns)

    def layout_at(self, layer: int) -> Layout:
        """What decoder layer `layer` holds of the prompt."""
        return self.layouts[max(first for first in self.layouts if first <= layer)]

    def select_prompts(self, prompts: Int[Tensor, " prompts"]) -> Request:
        """The request of a batch made of these prompts."""
        return replace(
            self,
            layouts={first: layout.select_prompts(prompts) for first, layout in self.layouts.items()},
            positions=self.positions.select_prompts(prompts),
            ends=self.ends[prompts.to(self.ends.device)],
        )

    def crop(self, tokens: int) -> Request:
        """The request without the last `tokens` columns of the prompt.

        Raises:
            UnsupportedModelError: some of these columns are visual tokens or padding.
        """
        columns = torch.arange(self.prompt_length - tokens, self.prompt_length, device=self.layouts[0].columns.device)
        if tokens > self.text_after_images or not all(layout.ends_with(columns) for layout in self.layouts.values()):
            raise UnsupportedModelError(
                "Only the text at the end of a pruned prompt can be cropped, not its images; start again with a new "
                "cache."
            )
        return replace(
            self,
            prompt_length=self.prompt_length - tokens,
            layouts={first: layout.without_last(tokens) for first, layout in self.layouts.items()},
            positions=self.positions.without_last(tokens),
            ends=self.ends - tokens,
            text_after_images=self.text_after_images - tokens,
        )


class PrunedCache(Cache):
    """Mixed into the class of a cache that a pruned prompt fills, for as long as it holds that prompt.

    Being part of the cache, the request lives as long as it does, goes along with `copy.deepcopy`, and
    follows when prompts are reordered, repeated or dropped.

    Between forwards, `get_seq_length()` counts the tokens that the model has *seen*, so that code which
    slices a longer conversation by it slices at the right place. While one runs, it counts what a layer
    holds, which is what masks are made from.
    """

    request: Request | None = None
    running: bool = False
    """Whether a forward of a pruned model is using the cache now; only then may it be updated."""
    last_keys: Tensor | None = None
    """While running, keys of the layer updated last, as they were before any quantisation."""

    def tail_length(self) -> int:
        """Tokens seen since the prompt.

        Raises:
            UnsupportedModelError: the layers do not hold what the request left in them.
        """
        assert self.request is not None
        widths, layers = self.request.widths, [layer for layer in self.layers if not isinstance(layer, _EMPTY)]
        held = [pair for pair in zip(layers, widths, strict=False) if isinstance(pair[0], CacheLayerMixin)]
        tails = {layer.get_seq_length() - width for layer, width in held}
        if len(layers) != len(widths) or len(tails) != 1 or min(tails) < 0:
            raise UnsupportedModelError(
                "This KV cache no longer holds what pruning left in it (an interrupted prefill, or an edit of single "
                "layers); start again with a new cache."
            )
        return tails.pop()

    def release(self, *, interrupted: bool) -> None:
        """End the forward that uses the cache. Interrupted between layers, it leaves states that nothing can follow."""
        self.running, self.last_keys = False, None
        if interrupted and self.request is not None and any(map(_is_state, self.layers)):
            self.request = replace(self.request, num_layers=0)

    # A layer with a state asks one of these, by the version of transformers, before it folds a token in.

    def get_conv_state(self, *args: Any, **kwargs: Any) -> Tensor | None:
        self._check_running()
        return super().get_conv_state(*args, **kwargs)

    def has_previous_state(self, layer_idx: int | None = None, *args: Any, **kwargs: Any) -> bool:
        if layer_idx is not None:
            self._check_running()
        return super().has_previous_state(layer_idx, *args, **kwargs)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self._check_running()
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self.running:
            self.last_keys = keys
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        if self.request is None or self.running:
            return super().get_seq_length(layer_idx)
        return self.request.prompt_length + self.tail_length()

    def reset(self) -> None:
        super().reset()
        self.request = None

    def crop(self, tokens_to_remove: int | Tensor) -> None:
        tokens_to_remove = int(tokens_to_remove)
        request = self.request
        if tokens_to_remove:
            self._check_layers("crop")
        if request is not None and any(_is_state(layer) and not _takes_back(layer) for layer in self.layers):
            raise UnsupportedModelError(
                "Layers that fold tokens into a state cannot take them back, so that this cache cannot be cropped; "
                "start again with a new cache, or with a copy.deepcopy of an earlier one, and leave out assistants and "
                "prompt lookup."
            )
        # Drafts of assisted decoding come with the prompt's first forward: taking them back reaches into the prompt.
        if request is not None and (from_prompt := abs(tokens_to_remove) - self.tail_length()) > 0:
            request = request.crop(from_prompt)
        super().crop(tokens_to_remove)
        self.request = request

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._check_layers("reorder_cache")
        super().reorder_cache(beam_idx)
        self._select_prompts(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._check_layers("batch_select_indices")
        super().batch_select_indices(indices)
        self._select_prompts(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._check_layers("batch_repeat_interleave")
        super().batch_repeat_interleave(repeats)
        if self.request is not None:
            self._select_prompts(torch.arange(self.request.batch).repeat_interleave(repeats))

    def _select_prompts(self, prompts: Tensor) -> None:
        if self.request is not None:
            self.request = self.request.select_prompts(prompts)

    def _check_running(self) -> None:
        if self.request is not None and not self.running:
            raise UnsupportedModelError(
                "This KV cache holds a pruned prompt, and the model that is using it is not pruned (any more): keep "
                "vitcop.prune(...) on for as long as the cache is in use, or start again with a new cache."
            )

    def _check_layers(self, operation: str) -> None:
        """Raise if a layer lacks this, or is quantised and has it from layers that keep all in `keys`."""
        for layer in self.layers:
            if not hasattr(layer, operation):
                raise UnsupportedModelError(
                    f"{operation} is nothing that a {type(layer).__name__} of transformers can do; give the model as "
                    "many prompts as are needed, or use reorder_cache."
                )
            if isinstance(layer, _QUANTISED) and getattr(type(layer), operation) is getattr(DynamicLayer, operation):
                raise UnsupportedModelError(
                    f"{operation} would not reach what a {type(layer).__name__} has quantised; use a DynamicCache "
                    "that is not quantised, or start again with a new cache."
                )


def cache_in(call: dict[str, Any]) -> Any:
    """The cache among the arguments of a call, which transformers calls `cache` since 5.24."""
    return call["cache"] if call.get("cache") is not None else call.get("past_key_values")


def cache_name(model: PreTrainedModel) -> str:
    """By which name a model takes its cache: `cache`, or `past_key_values` before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _is_state(layer: Any) -> bool:
    """Whether a layer of a cache keeps a state of all tokens, and none of their keys."""
    return isinstance(layer, LinearAttentionLayer) and not isinstance(layer, CacheLayerMixin)


def _takes_back(state: Any) -> bool:
    """Whether a state is of the last tokens alone, and those before them are kept, as for assisted decoding."""
    return bool(getattr(state, "record_past", False) and state.is_croppable)


def check_prunable(cache: Cache, family: ModelFamily) -> None:
    """Raise unless the layers of this cache can hold different numbers of tokens, as those of this decoder can."""
    layers = getattr(cache, "layers", None)
    kind = getattr(cache, "layer_class_to_replicate", None) or DynamicLayer
    growing = layers is not None and all(
        isinstance(layer, (DynamicLayer, *_EMPTY)) or (family.has_states and _is_state(layer)) for layer in layers
    )
    with_keys = [number for number, layer in enumerate(layers or ()) if not _is_state(layer)]
    if growing and family.has_states and with_keys != list(family.attending):
        raise UnsupportedModelError(
            "Some layers of this decoder fold tokens into states, for which this cache has no place; use "
            "DynamicCache(config=model.config)."
        )
    if not growing or not issubclass(kind, DynamicLayer) or (any(cache.is_sliding) and not family.has_windows):
        kinds = {type(layer).__name__ for layer in layers or ()} or {type(cache).__name__}
        raise UnsupportedModelError(
            f"A cache of {', '.join(sorted(kinds))} cannot be pruned, as its layers must all hold the same tokens; use "
            "a DynamicCache, without a sliding window that the model does not have."
        )
    if cache.offloading:
        raise UnsupportedModelError("An offloaded cache cannot be pruned; use a DynamicCache that is not.")


def check_dense(cache: Cache) -> None:
    """Raise if a cache that nothing is known about holds a pruned prompt all the same, such as one copied by hand."""
    if len({layer.get_seq_length() for layer in cache.layers if isinstance(layer, DynamicLayer)}) > 1:
        raise UnsupportedModelError(
            "The layers of this KV cache hold different numbers of tokens, and what they are is not known: continue "
            "with the cache that the pruned model returned, or a copy.deepcopy of it."
        )


def adopt(cache: Cache, family: ModelFamily) -> PrunedCache:
    """Turn an empty cache into one that a pruned prompt can fill.

    Raises:
        UnsupportedModelError: as `check_prunable`.
    """
    if isinstance(cache, PrunedCache):
        return cache
    check_prunable(cache, family)
    cache.__class__ = _pruned_class(type(cache))  # type: ignore[arg-type]
    assert isinstance(cache, PrunedCache)
    return cache


@functools.cache
def _pruned_class(cls: type) -> type[PrunedCache]:
    return type(f"Pruned{cls.__name__}", (PrunedCache, cls), {})
