"""The vision encoders, and what one attention layer of each shows of its patches.

Modules are called and no weight is read, so that adapters and quantised layers count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        has_cls: whether its first token is [CLS].
    """

    layers: str
    attention: str
    has_cls: bool

    @property
    def strategy(self) -> str:
        """The `vision_feature_select_strategy` that makes visual tokens of all patches and nothing else."""
        return "default" if self.has_cls else "full"

    def attention_at(self, encoder: nn.Module, layer: int) -> nn.Module:
        """The attention whose layer gives `hidden_states[layer]`.

        Raises:
            UnsupportedModelError: there is no such layer.
        """
        layers: Any = encoder.get_submodule(self.layers)
        if layer == 0 or not -len(layers) <= layer <= len(layers):
            raise UnsupportedModelError(
                f"vision_feature_layer={layer} is not one of the {len(layers)} encoder layers: set 1 to "
                f"{len(layers)}, or -1 for the last one."
            )
        # hidden_states[0] is the embedding, so hidden_states[k] leaves layer k - 1, and [-1] the last one.
        return layers[layer if layer < 0 else layer - 1].get_submodule(self.attention)


CLIP = Encoder("encoder.layers", "self_attn", has_cls=True)
SIGLIP = Encoder("encoder.layers", "self_attn", has_cls=False)


@dataclass(frozen=True)
class Patches:
    """One row per patch, grid after grid, or per visual token.

    Attributes:
        keys: as the key projection gives them, without norm and rotary embedding.
        saliency: attention received.
    """

    keys: Float[Tensor, "patches heads head_dim"]
    saliency: Float[Tensor, " patches"]

    def through(self, change: Callable[[Tensor], Tensor]) -> Patches:
        """Keys and saliency after what the model does to features: (patches, channels) -> (tokens, channels)."""
        channels = change(torch.cat([self.saliency[:, None], self.keys.flatten(1)], 1))
        keys = channels[:, 1:].unflatten(1, self.keys.shape[1:]).to(self.keys.dtype)
        return Patches(keys, channels[:, 0].to(self.saliency.dtype))

    def mean(self, index: Int[Tensor, "tokens patches_per_token"]) -> Patches:
        """Mean over the patches of each visual token."""
        return self.through(lambda channels: channels[index.to(channels.device)].mean(1))


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


def with_rotary(
    attention: Any,
    queries: Float[Tensor, "patches heads head_dim"],
    keys: Float[Tensor, "patches heads head_dim"],
    position_embeddings: Rotary,
    lengths: Sequence[int],
) -> Patches:
    """Patches of an encoder with rotary positions, by the attention they receive: Pixtral, Qwen's.

    Args:
        lengths: patches of each grid; the grids stand one after another.
    """
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
    """Which patches a mask lets others attend to."""
    if not isinstance(mask, Tensor):
        raise UnsupportedModelError(
            f"The padding of pictures cannot be read from a {type(mask).__name__}; use attn_implementation='sdpa'."
        )
    if mask.ndim == 4:
        mask = mask.expand(grids, -1, -1, -1)[:, 0].any(1) if mask.dtype == torch.bool else (mask == 0)[:, 0].any(1)
    return mask.bool().expand(grids, length).flatten()
