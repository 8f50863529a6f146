"""Signals of how much a token matters, none of which needs an attention map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .segments import by_size, indices_of, pad_segments

# Largest temporary of `attention_received`, in values: 64 MiB in float32.
_BLOCK_VALUES = 2**24


def key_norm(keys: Float[Tensor, "tokens heads head_dim"]) -> Float[Tensor, " tokens"]:
    """L2 norm of the mean over heads of each token's key; small means important (ViTCoP section 3.3).

    A rotary embedding turns all heads by the same angles, so it does not change this norm.
    """
    return keys.float().mean(1).norm(dim=-1)


def cls_attention(
    query: Float[Tensor, "images heads head_dim"],
    keys: Float[Tensor, "images tokens heads head_dim"],
    scale: float,
) -> Float[Tensor, "images patches"]:
    """Softmax attention of the [CLS] query to the patches, summed over heads (ViTCoP section 3.2).

    Args:
        query: of the [CLS] token.
        keys: of [CLS], which comes first, and of all patches; the softmax runs over all of them.
        scale: what the layer multiplies its logits with.
    """
    logits = scale * torch.einsum("ihd,ithd->ith", query.float(), keys.float())
    return logits.softmax(dim=1)[:, 1:].sum(-1)


def attention_rows(
    queries: Float[Tensor, "batch rows heads head_dim"],
    keys: Float[Tensor, "batch kv_heads tokens head_dim"],
    visible: Bool[Tensor, "batch rows tokens"],
    scale: float,
) -> Float[Tensor, "batch rows tokens"]:
    """Softmax attention of some queries to all tokens, mean over heads; each key head serves a group of query heads.

    Args:
        visible: what each query may see.
        scale: what the layer multiplies its logits with.
    """
    grouped = queries.float().transpose(1, 2).unflatten(1, (keys.shape[1], -1))  # (batch, kv_heads, group, rows, d)
    logits = scale * (grouped @ keys.float()[:, :, None].transpose(-1, -2))
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
    if real is None:
        real = torch.ones(len(queries), dtype=torch.bool, device=queries.device)
    if queries.dtype == torch.float16:  # whose products overflow before they are scaled
        queries, keys = queries.float(), keys.float()
    received = torch.empty(len(queries), device=queries.device)
    for rows, segments in by_size(lengths, queries.device):
        sizes = [lengths[i] for i in segments]
        received[rows] = _received(queries[rows], keys[rows], scale, sizes, real[rows])
    return received


def _received(queries: Tensor, keys: Tensor, scale: float, lengths: Sequence[int], real: Tensor) -> Tensor:
    """`attention_received` of stretches of about the same length."""
    padded_queries, valid = pad_segments(queries, lengths)
    padded_keys = pad_segments(keys, lengths)[0].permute(0, 2, 3, 1)  # (segments, heads, head_dim, longest)
    seen = pad_segments(real, lengths)[0]
    received = torch.zeros(seen.shape, device=queries.device)
    segments, longest, heads, _ = padded_queries.shape
    block = max(1, _BLOCK_VALUES // (segments * heads * longest))
    for start in range(0, longest, block):
        rows = padded_queries[:, start : start + block].transpose(1, 2)  # (segments, heads, block, head_dim)
        logits = scale * (rows @ padded_keys).float()
        weights = logits.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
        attending = seen[:, None, start : start + block, None]
        # A stretch that is all padding has no finite logit.
        received += weights.masked_fill(~attending, 0).mean(1).sum(1)
    received = received / seen.sum(1, keepdim=True).clamp(min=1)
    return received.flatten()[indices_of(valid.flatten(), sum(lengths))]
