"""Attention masks of decoder layers that hold a part of the prompt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache
from transformers.masking_utils import blockwise_overlay, create_causal_mask

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
    overlays: dict[str, Any] = {}
    if blocks is not None and family.windows_cut_blocks:
        overlays["or_mask_function"] = blockwise_overlay(blocks)
    elif blocks is not None:
        overlays["block_sequence_ids"] = blocks  # added behind the window
    if family.layer_kinds[layer] == "sliding_attention":
        overlays["and_mask_function"] = _window(config.sliding_window, columns)
    mask = create_causal_mask(config, hidden_states, real, cache, layer_idx=layer, **overlays)
    if counts is None:
        return mask
    new, held = mask.shape[-2:]  # a cache with a window holds the last ones alone
    last = counts.map(lambda part: part[:, -held:])
    logits = last.logits(family, layer, columns[:, -new:], columns[:, -held:])
    return mask + logits[:, None].to(mask)


def last_queries(mask: Any, count: int) -> Any:
    """The mask of the last tokens alone, in a layer that gets no others; only those of sdpa and eager have rows."""
    return mask[..., -count:, :] if isinstance(mask, Tensor) and mask.ndim == 4 else mask


def _window(length: int, columns: Tensor) -> Callable[..., Any]:
    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return columns[batch, query] - columns[batch, key] < length

    return sees
