"""Signals of how much a token matters, none of which needs an attention map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .precision import full_precision
from .segments import by_size, is_real, pad_segments, unpad_segments

# Largest temporary of `attention_received`, in values. On a CPU it has to stay in the cache: 64 MiB take more than
# twice as long as 4 MiB (benchmarks/NOTES.md). Elsewhere a launch costs more.
_BLOCK_VALUES, _LARGE_BLOCK_VALUES = 2**20, 2**24


def key_norm(keys: Float[Tensor, "tokens heads head_dim"]) -> Float[Tensor, " tokens"]:
    """L2 norm of the mean over heads of each token's key; small means important (ViTCoP section 3.3).

    A rotary embedding turns all heads by the same angles, so it does not change this norm.
    """
    return keys.float().mean(1).norm(dim=-1)


def cls_attention(
    query: Float[Tensor, "images heads head_dim"],
    keys: Float[Tensor, "images tokens heads head_dim"],
    scale: float,
    registers: int = 0,
) -> Float[Tensor, "images patches"]:
    """Softmax attention of the [CLS] query to the patches, summed over heads (ViTCoP section 3.2).

    Args:
        query: of the [CLS] token.
        keys: of [CLS], which comes first, of registers and of all patches; the softmax runs over all of them.
        scale: what the layer multiplies its logits with.
        registers: tokens between [CLS] and the patches.
    """
    with full_precision(keys.device):
        logits = scale * torch.einsum("ihd,ithd->ith", query.float(), keys.float())
    return logits.softmax(dim=1)[:, 1 + registers :].sum(-1)


def attention_rows(
    queries: Float[Tensor, "batch rows heads head_dim"],
    keys: Float[Tensor, "batch kv_heads tokens head_dim"],
    visible: Bool[Tensor, "batch rows tokens"],
    scale: float,
    bias: Float[Tensor, "batch #rows tokens"] | None = None,
) -> Float[Tensor, "batch rows tokens"]:
    """Softmax attention of some queries to all tokens, mean over heads; each key head serves a group of query heads.

    Args:
        visible: what each query may see.
        scale: what the layer multiplies its logits with.
        bias: what it then adds to them.
    """
    grouped = queries.float().transpose(1, 2).unflatten(1, (keys.shape[1], -1))  # (batch, kv_heads, group, rows, d)
    with full_precision(keys.device):
        logits = scale * (grouped @ keys.float()[:, :, None].transpose(-1, -2))
    if bias is not None:
        logits = logits + bias[:, None, None]
    weights = logits.masked_fill(~visible[:, None, None], -torch.inf).softmax(-1)
    return weights.flatten(1, 2).mean(1)


def attention_received(
    queries: Float[Tensor, "patches heads head_dim"],
    keys: Float[Tensor, "patches heads head_dim"],
    scale: float,
    lengths: Sequence[int],
    real: Bool[Tensor, " patches"] | None = None,
) -> Float[Tensor, " patches"]:
    """Mean over heads and queries of the softmax attention to each patch, for encoders without [CLS].

    Queries are streamed in blocks, so that memory grows with the number of patches, not with its square.

    Args:
        queries, keys: as the layer multiplies them, rotary embedding included.
        scale: what the layer multiplies its logits with.
        lengths: patches of each stretch that attends to itself only: a picture, a tile or a frame.
        real: where there is a patch and no padding, all if None. Padding neither attends nor is attended to.
    """
    if queries.dtype == torch.float16:  # whose products overflow before they are scaled
        queries, keys = queries.float(), keys.float()
    received = torch.empty(len(queries), device=queries.device)
    for rows, segments in by_size(lengths, queries.device):
        sizes = [lengths[i] for i in segments]
        real_rows = None if real is None else real[rows]
        received[rows] = _received(queries[rows], keys[rows], scale, sizes, real_rows)
    return received


def _received(queries: Tensor, keys: Tensor, scale: float, lengths: Sequence[int], real: Tensor | None) -> Tensor:
    """`attention_received` of stretches of about the same length."""
    longest, heads, segments, device = max(lengths), queries.shape[1], len(lengths), queries.device
    # Each head of each stretch by itself: (segments * heads, longest, head_dim), and keys the other way round.
    queries = pad_segments(queries, lengths).transpose(1, 2).flatten(0, 1)
    keys = pad_segments(keys, lengths).permute(0, 2, 3, 1).flatten(0, 1)
    seen = None
    if real is not None or min(lengths) < longest:
        seen = is_real(lengths, device) if real is None else pad_segments(real, lengths)
    hidden = None if seen is None else ~seen.repeat_interleave(heads, 0)

    block = _BLOCK_VALUES if device.type == "cpu" else _LARGE_BLOCK_VALUES
    asking = max(1, min(longest, block // longest))
    together = max(1, block // (asking * longest))
    received = torch.zeros(segments * heads, longest, device=device)
    nothing = keys.new_zeros(())
    for first in range(0, segments * heads, together):
        pairs = slice(first, first + together)
        for start in range(0, longest, asking):
            some = queries[pairs, start : start + asking]
            with full_precision(device):
                weights = torch.baddbmm(nothing, some, keys[pairs], beta=0, alpha=scale)
            if hidden is not None:
                weights = weights.masked_fill(hidden[pairs, None], -torch.inf)
            weights = weights.softmax(-1, dtype=torch.float32)
            if hidden is not None:  # a stretch that is all padding has no finite logit
                weights = weights.masked_fill(hidden[pairs, start : start + asking, None], 0)
            received[pairs] += weights.sum(1)
    received = received.unflatten(0, (segments, heads)).mean(1)
    count = longest if seen is None else seen.sum(1, keepdim=True).clamp(min=1)
    return unpad_segments(received / count, lengths)
