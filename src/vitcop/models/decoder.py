"""Queries and keys of a decoder layer, worked out from its own modules for the rows that a method asks for."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig

from ..errors import UnsupportedModelError

QUERIES, KEYS = "q_proj", "k_proj"
"""Names of projections in the attention of a decoder layer."""

STATES = frozenset({"linear_attention", "conv"})
"""Kinds of decoder layers, as in `config.layer_types`, that fold tokens into a state in place of keeping their keys."""

WINDOWS = frozenset({"sliding_attention", "chunked_attention"})
"""Kinds of decoder layers whose tokens attend to some of those before them, and whose cache may hold no others."""

_NORMS = ("input_layernorm", "operator_norm")
"""Names of the norm in front of attention in a decoder layer; the second is LFM2's, as those of the next two."""
# Llama 4 has one norm for both and turns them first, which changes no norm: it has no weights.
_HEAD_NORMS = {QUERIES: ("q_norm", "q_layernorm", "qk_norm"), KEYS: ("k_norm", "k_layernorm", "qk_norm")}
_FINAL_NORMS = ("norm", "embedding_norm")
_TURN, _TURN_COMPLEX = "apply_rotary_pos_emb", "apply_rotary_emb"
"""What turns queries and keys, beside the attention of a decoder layer; the second by complex numbers."""

Rotary = tuple[Tensor, Tensor] | Tensor
"""Cosines and sines of each token, (batch, tokens, head_dim), or both as complex numbers, (batch, tokens, planes)."""


def layer_kinds(config: PretrainedConfig) -> tuple[str, ...]:
    """The kind of each decoder layer, as in `config.layer_types`."""
    count: int = config.num_hidden_layers
    return tuple(getattr(config, "layer_types", None) or ["full_attention"] * count)[:count]


def attending(config: PretrainedConfig) -> tuple[int, ...]:
    """Numbers of the decoder layers that attend, and so keep keys."""
    return tuple(number for number, kind in enumerate(layer_kinds(config)) if kind not in STATES)


def check_rows(layer: nn.Module, config: PretrainedConfig) -> None:
    """Raise unless softmax rows of this decoder layer can be worked out from outside."""
    attention: Any = getattr(layer, "self_attn", None)
    parts = (QUERIES, KEYS, "scaling", "head_dim")
    known = _named(layer, _NORMS) is not None and all(hasattr(attention, part) for part in parts)
    turns = (hasattr(inspect.getmodule(type(attention)), name) for name in (_TURN, _TURN_COMPLEX))
    known = known and any(turns)
    partial_rotary = hasattr(attention, "rotary_ndims")
    scales_queries = "llama_4_scaling_beta" in (getattr(config, "rope_parameters", None) or {})
    clips = getattr(config, "clip_qkv", None) is not None
    changes_softmax = getattr(attention, "attn_logit_softcapping", None) or hasattr(attention, "sinks")
    if not known or partial_rotary or scales_queries or clips or changes_softmax:
        refuse_rows(config)


def refuse_rows(config: PretrainedConfig) -> NoReturn:
    """Raise for a decoder whose rows cannot be worked out."""
    raise UnsupportedModelError(
        f"The attention of the {config.model_type!r} decoder is not a plain softmax of q_proj and k_proj with rotary "
        "embeddings, so that its rows cannot be worked out; use a method that needs none, such as ViTCoP by key norms."
    )


def final_norm(decoder: nn.Module, config: PretrainedConfig) -> nn.Module:
    """The norm that stands behind the last layer."""
    norm = _named(decoder, _FINAL_NORMS)
    if norm is None:
        raise UnsupportedModelError(
            f"The {config.model_type!r} decoder has no `norm` behind its last layer, so that hidden states cannot be "
            "compared as it would see them; use a method that does not, such as ViTCoP by key norms."
        )
    return norm


def keep_projected(layer: Any) -> tuple[dict[str, Tensor], list[RemovableHandle]]:
    """Have the query and key projections of a layer that is about to run keep what they make, if they draw dropout, as
    adapters do: they would not make it again.

    Returns:
        By their names, what those made that do; there once the layer has run in this thread. And the hooks on them,
        which go by themselves then, and must be taken off where the layer does not come to run.
    """
    made: dict[str, Tensor] = {}
    hooks: list[RemovableHandle] = []
    for name in (QUERIES, KEYS):
        projection = getattr(layer.self_attn, name, None)
        if any(isinstance(part, nn.Dropout) and part.training and part.p for part in _modules_of(projection)):
            hooks.append(_keep_once(projection, name, made))
    return made, hooks


def _modules_of(module: nn.Module | None) -> Iterable[nn.Module]:
    return () if module is None else module.modules()


def _keep_once(projection: Any, name: str, made: dict[str, Tensor]) -> RemovableHandle:
    thread = threading.get_ident()

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if threading.get_ident() == thread:
            made[name] = output.detach()
            handle.remove()

    handle: RemovableHandle = projection.register_forward_hook(keep)
    return handle


def layer_queries(
    layer: Any,
    hidden_states: Float[Tensor, "batch rows hidden"],
    rotary: Rotary | None,
    made: Mapping[str, Float[Tensor, "batch rows channels"]],
) -> Float[Tensor, "batch rows heads head_dim"]:
    """Queries of some of the tokens that enter a layer, as it multiplies them.

    Args:
        rotary: of these tokens; None leaves the rotary embedding out.
        made: what `keep_projected` has kept of these tokens.
    """
    return _projected(layer, QUERIES, hidden_states, rotary, made)


def layer_keys(
    layer: Any,
    hidden_states: Float[Tensor, "batch rows hidden"],
    rotary: Rotary | None,
    made: Mapping[str, Float[Tensor, "batch rows channels"]],
) -> Float[Tensor, "batch rows kv_heads head_dim"]:
    """Keys of some of the tokens that enter a layer, as it would write them to the cache.

    Args:
        rotary: of these tokens; None leaves the rotary embedding out.
        made: what `keep_projected` has kept of these tokens.
    """
    return _projected(layer, KEYS, hidden_states, rotary, made)


def _projected(
    layer: Any, name: str, hidden_states: Tensor, rotary: Rotary | None, made: Mapping[str, Tensor]
) -> Tensor:
    attention = layer.self_attn
    states = made[name] if name in made else getattr(attention, name)(_entering(layer, hidden_states))
    norm = _named(attention, _HEAD_NORMS[name])
    if norm is not None and _width(norm) == states.shape[-1]:  # over all heads, as in OLMoE
        states, norm = norm(states), None
    states = states.unflatten(-1, (-1, attention.head_dim))
    if name == QUERIES and states.shape[-2] == 2 * _num_heads(attention):
        states = states[..., ::2, :]  # behind the query of each head stands its gate
    states = states if norm is None else norm(states)
    return states if rotary is None else rotated(layer, states.transpose(1, 2), rotary)


def _entering(layer: Any, hidden_states: Tensor) -> Tensor:
    """What the attention of a layer gets; in Molmo 2 with OLMo's decoder, what comes out is normalised instead."""
    if getattr(layer, "norm_after", False):
        return hidden_states
    normalised: Tensor = _named(layer, _NORMS)(hidden_states)
    return normalised


def _named(module: nn.Module, names: Iterable[str]) -> Any:
    """The first of these that a module has; None if it has none."""
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def _num_heads(attention: Any) -> int:
    heads: int = attention.config.num_attention_heads
    return heads


def _width(norm: nn.Module) -> int | None:
    """Channels that a norm normalises; None where it has no weight for each, and takes as many as it gets."""
    weight = getattr(norm, "weight", None)
    return None if weight is None else weight.shape[-1]


def map_rotary(rotary: Rotary, change: Callable[[Tensor], Tensor]) -> Rotary:
    """The rotary embedding with each of its tensors changed."""
    return change(rotary) if isinstance(rotary, Tensor) else (change(rotary[0]), change(rotary[1]))


def turned_back(rotary: Rotary) -> Rotary:
    """The rotary embedding by the opposite angles."""
    return rotary.conj() if isinstance(rotary, Tensor) else (rotary[0], -rotary[1])


def rotated(
    layer: Any, states: Float[Tensor, "batch heads rows head_dim"], rotary: Rotary
) -> Float[Tensor, "batch rows heads head_dim"]:
    """Queries or keys after the layer's own rotary embedding, which turns both at once or either by itself."""
    module: Any = inspect.getmodule(type(layer.self_attn))
    if isinstance(rotary, Tensor):
        states = states.transpose(1, 2)
        turned: Tensor = getattr(module, _TURN_COMPLEX)(states, states, rotary)[0]
        return turned
    turn = getattr(module, _TURN)
    both = "k" in inspect.signature(turn).parameters
    turned = turn(states, states, *rotary)[0] if both else turn(states, *rotary)
    return turned.transpose(1, 2)
