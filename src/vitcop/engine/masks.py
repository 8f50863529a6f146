"""Attention masks of decoder layers that hold a part of the prompt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    blockwise_overlay,
    causal_mask_function,
    create_causal_mask,
    or_masks,
)

from ..models import ModelFamily
from ..models.decoder import STATES
from .calibration import Counts
from .layout import Layout


def entering_mask(
    family: ModelFamily, layout: Layout, real: Tensor | None, mask_of: Callable[[int], Any], *, both_ways: bool = False
) -> Any:
    """What the decoder takes as its mask: a 2-D one, of which it makes others, or one for each kind of layer.

    Args:
        layout: of what enters.
        real: the 2-D mask.
        mask_of: makes the mask of a layer.
        both_ways: whether some tokens see what follows them.
    """
    if not family.has_windows and not both_ways and layout.counts is None:
        return real
    if not family.has_windows and not family.has_states:
        return mask_of(0)
    kinds = family.layer_kinds
    return {kind: mask_of(kinds.index(kind)) for kind in set(kinds)}


def layer_mask(
    family: ModelFamily,
    layer: int,
    hidden_states: Float[Tensor, "batch new hidden"],
    cache: Cache | None,
    *,
    real: Bool[Tensor, "batch held"] | None,
    columns: Int[Tensor, "batch held"],
    seen: int,
    blocks: Int[Tensor, "batch held"] | None = None,
    counts: Counts | None = None,
) -> Any:
    """What a layer needs as its mask, made by transformers' own functions for any attention backend; one that keeps a
    state needs the 2-D mask of the new tokens.

    A sliding window is counted in the tokens of the unpruned prompt, so that a token sees what it would see in
    the dense model, less what was dropped.

    Args:
        real: where the layer holds a token and no padding; None when everywhere.
        columns: of the unpruned prompt and what came behind it, of all that the layer holds; new tokens come last.
        seen: how many there are of these columns, those of what was dropped included.
        blocks: tokens of the same block see each other both ways; -1 for none. See `ModelFamily.attention_blocks`.
        counts: how often each token that the layer holds counts.
    """
    if family.layer_kinds[layer] in STATES:
        # Padding in front adds nothing to a state, and a single new token is none.
        new = hidden_states.shape[1]
        return None if real is None or new == 1 else real[:, -new:]
    config = family.decoder.config
    if counts is not None:
        config = copy.copy(config)
        config._attn_implementation = "eager"  # whose masks are added to logits, which the others can do as well
    mask = _mask(config, layer, hidden_states, cache, real, _visible(family, layer, columns, seen, blocks))
    if counts is None:
        return mask
    new, held = mask.shape[-2:]  # a cache with a window holds the last ones alone
    last = counts.map(lambda part: part[:, -held:])
    logits = last.logits(family, layer, columns[:, -new:], columns[:, -held:])
    return mask + logits[:, None].to(mask)


def window_cuts(family: ModelFamily, seen: int) -> bool:
    """Whether a layer with a sliding window hides any of the first `seen` columns from the last of them."""
    return "sliding_attention" in family.layer_kinds and family.decoder.config.sliding_window < seen


def last_queries(mask: Any, count: int) -> Any:
    """The mask of the last tokens alone, in a layer that gets no others; only those of sdpa and eager have rows."""
    return mask[..., -count:, :] if isinstance(mask, Tensor) and mask.ndim == 4 else mask


def _visible(
    family: ModelFamily, layer: int, columns: Tensor, seen: int, blocks: Tensor | None
) -> Callable[..., Tensor] | None:
    """Which keys a query sees, by their indices; None where it is all that came before it."""
    windowed = family.layer_kinds[layer] == "sliding_attention" and window_cuts(family, seen)
    if blocks is None and not windowed:
        return None
    visible = causal_mask_function
    if blocks is not None and family.windows_cut_blocks:
        visible = or_masks(visible, blockwise_overlay(blocks))
    if windowed:
        visible = and_masks(visible, _window(family.decoder.config.sliding_window, columns))
    if blocks is not None and not family.windows_cut_blocks:
        visible = or_masks(visible, blockwise_overlay(blocks))
    return visible


def _mask(
    config: Any,
    layer: int,
    states: Tensor,
    cache: Cache | None,
    real: Tensor | None,
    visible: Callable[..., Any] | None,
) -> Any:
    """What a layer needs as its mask where new tokens see what is `visible`, and no padding."""
    if visible is None:
        return create_causal_mask(config, states, real, cache, layer_idx=layer)
    # Not by `create_causal_mask`, which runs what it is given under vmap: milliseconds for each token.
    batch, new = states.shape[:2]
    length, offset = (new, 0) if cache is None else cache.get_mask_sizes(new, layer)
    return ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation](
        batch_size=batch,
        q_length=new,
        kv_length=length,
        q_offset=0 if cache is None else cache.get_query_offset(layer),
        kv_offset=offset,
        mask_function=visible,
        attention_mask=None if real is None else real.to(states.device),
        allow_is_causal_skip=False,
        dtype=states.dtype,
        device=states.device,
        config=config,
    )


def _window(length: int, columns: Tensor) -> Callable[..., Any]:
    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return columns[batch, query] - columns[batch, key] < length

    return sees
