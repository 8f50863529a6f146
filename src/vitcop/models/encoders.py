"""The vision encoders, and what one attention layer of each shows of its patches.

Modules are called and no weight is read, so that adapters and quantised layers count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..ops.saliency import attention_received, cls_attention

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of each patch, (patches, head_dim)."""


@dataclass(frozen=True)
class Encoder:
    """Where an encoder has its attention.

    Attributes:
        layers: path of its layers from the encoder.
        attention: name of the attention in a layer.
        strategy: `vision_feature_select_strategy` that makes visual tokens of all patches and nothing else.
    """

    layers: str
    attention: str
    strategy: str

    def attention_at(self, encoder: nn.Module, layer: int) -> nn.Module:
        """The attention whose layer gives `hidden_states[layer]`.

        Raises:
            UnsupportedModelError: there is no such layer.
        """
        layers: Any = encoder.get_submodule(self.layers)
        if layer == 0 or not -len(layers) <= layer <= len(layers):
            raise UnsupportedModelError(f"vision_feature_layer={layer} is not one of the {len(layers)} encoder layers.")
        # hidden_states[0] is the embedding, so hidden_states[k] leaves layer k - 1, and [-1] the last one.
        return layers[layer if layer < 0 else layer - 1].get_submodule(self.attention)


ENCODERS = {
    "clip_vision_model": Encoder("encoder.layers", "self_attn", "default"),
    "siglip_vision_model": Encoder("encoder.layers", "self_attn", "full"),
    "idefics3_vision": Encoder("encoder.layers", "self_attn", "full"),
    "smolvlm_vision": Encoder("encoder.layers", "self_attn", "full"),
    "internvl_vision": Encoder("encoder.layer", "attention", "default"),
    "pixtral": Encoder("transformer.layers", "attention", "full"),
}
"""By `model_type` of the vision config."""


@dataclass(frozen=True)
class Patches:
    """One row per patch, grid after grid.

    Attributes:
        keys: as the key projection gives them, without norm and rotary embedding.
        saliency: attention that the patch received.
    """

    keys: Float[Tensor, "patches heads head_dim"]
    saliency: Float[Tensor, " patches"]

    def mean(self, index: Int[Tensor, "tokens patches_per_token"]) -> Patches:
        """Mean over the patches of each visual token."""
        index = index.to(self.saliency.device)
        if index.shape[1] == 1:
            return Patches(self.keys[index[:, 0]], self.saliency[index[:, 0]])
        return Patches(self.keys[index].mean(1), self.saliency[index].mean(1))


def with_cls(attention: Any, hidden_states: Float[Tensor, "grids tokens hidden"]) -> Patches:
    """Patches of an encoder whose first token is [CLS], by the attention of [CLS]: CLIP, InternVL's ViT."""
    heads = attention.num_heads, attention.head_dim
    keys = attention.k_proj(hidden_states)
    query = _normalise(attention, "q_norm", attention.q_proj(hidden_states[:, 0])).unflatten(-1, heads)
    attended = _normalise(attention, "k_norm", keys).unflatten(-1, heads)
    saliency = cls_attention(query, attended, attention.scale)
    return Patches(keys[:, 1:].flatten(0, 1).unflatten(-1, heads), saliency.flatten())


def without_cls(
    attention: Any, hidden_states: Float[Tensor, "grids tokens hidden"], mask: Tensor | None = None
) -> Patches:
    """Patches of an encoder without [CLS], by the attention they receive: SigLIP, Idefics3.

    Args:
        mask: the attention mask that the layer got.
    """
    heads = attention.num_heads, attention.head_dim
    queries = attention.q_proj(hidden_states).flatten(0, 1).unflatten(-1, heads)
    keys = attention.k_proj(hidden_states).flatten(0, 1).unflatten(-1, heads)
    grids, length = hidden_states.shape[:2]
    real = None if mask is None else _real_patches(mask, grids, length)
    return Patches(keys, attention_received(queries, keys, attention.scale, [length] * grids, real))


def pixtral(attention: Any, hidden_states: Tensor, position_embeddings: Rotary, lengths: Sequence[int]) -> Patches:
    """Patches of a Pixtral encoder, whose pictures of any size stand one after another in a batch of one."""
    heads = attention.num_heads, attention.head_dim
    queries = attention.q_proj(hidden_states[0]).unflatten(-1, heads)
    keys = attention.k_proj(hidden_states[0]).unflatten(-1, heads)
    return _with_rotary(attention, queries, keys, position_embeddings, lengths)


def qwen(attention: Any, hidden_states: Tensor, position_embeddings: Rotary, lengths: Sequence[int]) -> Patches:
    """Patches of Qwen's encoders, whose grids of any size stand one after another."""
    queries, keys, _ = attention.qkv(hidden_states).unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
    return _with_rotary(attention, queries, keys, position_embeddings, lengths)


def _with_rotary(
    attention: Any, queries: Tensor, keys: Tensor, position_embeddings: Rotary, lengths: Sequence[int]
) -> Patches:
    turned = [_rotate(states, *position_embeddings) for states in (queries, keys)]
    return Patches(keys, attention_received(turned[0], turned[1], attention.scaling, lengths))


def _normalise(attention: Any, name: str, states: Tensor) -> Tensor:
    return getattr(attention, name)(states) if hasattr(attention, name) else states


def _rotate(
    states: Shaped[Tensor, "patches heads head_dim"], cos: Tensor, sin: Tensor
) -> Float[Tensor, "patches heads head_dim"]:
    first, second = states.float().chunk(2, dim=-1)
    return states.float() * cos[:, None].float() + torch.cat([-second, first], -1) * sin[:, None].float()


def _real_patches(mask: Tensor, grids: int, length: int) -> Bool[Tensor, " patches"]:
    """Which patches a mask of any attention backend lets others attend to."""
    if mask.ndim == 4:
        mask = mask.expand(grids, -1, -1, -1)[:, 0].any(1) if mask.dtype == torch.bool else (mask == 0)[:, 0].any(1)
    return mask.bool().expand(grids, length).flatten()
