"""Signals of how much a token matters, none of which needs an attention map."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


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
    logits = scale * (query[:, None].float() * keys.float()).sum(-1)
    return logits.softmax(dim=1)[:, 1:].sum(-1)
