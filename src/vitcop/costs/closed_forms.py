"""Closed forms of what a prompt costs: vision tower, projector, decoder, selection and KV cache.

Floating point operations are those of matrix products, a multiply-add counted as two. Norms, activations, softmax,
rotary and position embeddings are left out everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from ..models.base import VisionModules
from ..models.decoder import attending
from ..models.encoders import FUSED, KEYS, num_heads, projections
from ..models.geometry import Geometry

UNGATED = ("apertus", "arcee", "nemotron", "phi", "starcoder2")
"""`model_type` of decoders whose MLP is two products and no gate."""
GATED_ATTENTION = ("qwen3_5_moe_text", "qwen3_5_text")
"""`model_type` of decoders whose query projection makes a gate for each head as well."""
_CHUNK = 64  # tokens that a gated delta net reads at a time


@dataclass(frozen=True)
class VisionCost:
    """Floating point operations that become one image or video, before the decoder.

    Attributes:
        tower: the vision encoder.
        projector: from its features to rows of the decoder.
        saliency: what a method that reads saliency or keys at the entrance adds: the row of [CLS] in one encoder layer
            or, without [CLS], the attention that patches receive.
        received: attention that patches receive in one encoder layer, be there [CLS] or not.
        key_width, head_dim: heads times head size of that layer, and the head size.
    """

    tower: int
    projector: int
    saliency: int
    received: int
    key_width: int
    head_dim: int


def vision_cost(modules: VisionModules, geometry: Geometry) -> VisionCost:
    """Count the modules of one modality for one image or video.

    With W weights of a module's products, n tokens in a stretch (of all layers, or a window), width h and N tokens
    in all stretches: patches `2 W p` for p patches, a layer `2 W N + 4 h sum n^2`, the projector `2 W` a row. All
    layers run, also those behind the one whose features are used. A pooling head, which SigLIP runs and no model
    here uses, adds `2 (2 h^2 (N + 1) + W_mlp) + 4 h n` a picture.
    [CLS] adds `2 h N`, attention received `2 h sum n^2`: queries and keys are the layer's own.
    """
    width = _width(modules.attention)
    head_dim = width // num_heads(modules.attention)
    stretches, windows = geometry.stretches, geometry.windows
    tokens, pairs = sum(stretches), sum(n * n for n in stretches)
    windowed = sum(n * n for n in windows) * modules.windowed
    full = len(modules.layers) - modules.windowed
    projecting = {module for part in modules.projector for module in part.modules()}
    convolutions = [
        module
        for module in modules.tower.modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module not in projecting
    ]
    tower = 2 * _weights(convolutions) * geometry.patches
    tower += 2 * _weights(modules.layers) * tokens + 4 * width * (pairs * full + windowed)
    tower += sum(_pooling_flops(modules.tower, n) for n in stretches)

    received = 2 * width * pairs
    saliency = 2 * width * tokens if modules.has_cls else received
    return VisionCost(tower, 2 * _weights(modules.projector) * geometry.projected, saliency, received, width, head_dim)


def prefill_flops(config: PretrainedConfig, tokens_per_layer: Sequence[int]) -> int:
    """Floating point operations of the decoder layers for one prompt: `layer_flops`, with full n x n attention.

    Leaves out the embedding and the output head.

    Args:
        config: of the language model.
        tokens_per_layer: tokens that enter each decoder layer.
    """
    return sum(layer_flops(config, layer, n) for layer, n in enumerate(tokens_per_layer))


def layer_flops(config: PretrainedConfig, layer: int, tokens: int, *, causal: bool = False) -> int:
    """Floating point operations of one decoder layer for one prompt.

    Counts the four attention projections, the MLP, and the two products of the full n x n attention. For layer input
    size h, head size d, H query and K key-value heads, MLP size m and n tokens:
    `2 n (2 h H d + 2 h K d + 3 h m) + 4 n^2 H d`, and `2 n h H d` more where attention is gated. With E experts of
    size e, k of which see a token, `3 h m` is `3 h k e + h E`, router included, and `3 h e` more for each expert that
    all see; without a gate it is `2 h m`. A sliding window counts as full attention.

    In the place of attention, a gated delta net has V heads with keys of size k and values of size v, widths P of all
    keys and R of all values that it projects, a convolution over w tokens, and reads c = 64 tokens at a time, for which
    the prompt is padded to N: `2 n h (2 P + 3 R + 2 V) + 2 (n + w - 1) w (2 P + R) + 2 N V (2 c k + c v + 3 k v)`. The
    two triangular systems of each chunk, which are solved and not multiplied, are left out.

    Args:
        config: of the language model.
        layer: number of the layer.
        tokens: that enter it.
        causal: leave out the masked half of attention, `2 n (n + 1) H d`, as kernels do that get no explicit mask.
    """
    mlp = 2 * tokens * _mlp_weights(config, layer)
    if layer not in attending(config):
        return mlp + _delta_net_flops(config, tokens)
    _, queries, _ = decoder_widths(config)
    pairs = tokens * (tokens + 1) // 2 if causal else tokens * tokens
    return mlp + 2 * tokens * _attention_weights(config) + 4 * pairs * queries


def layer_bytes(config: PretrainedConfig, layer: int, tokens: int, bytes_per_value: int) -> int:
    """Bytes that one decoder layer cannot help moving: its weights, and the keys and values, written and read once.

    Of experts, as many as the tokens can meet. Hidden states, and those that recurrent layers keep, are left out.

    Args:
        config: of the language model.
        layer: number of the layer.
        tokens: that enter it, over the whole batch.
        bytes_per_value: of weights, keys and values.
    """
    mlp = _mlp_weights(config, layer, tokens)
    if layer not in attending(config):
        return (mlp + _delta_net_weights(config)) * bytes_per_value
    _, _, keys = decoder_widths(config)
    return (mlp + _attention_weights(config) + 2 * tokens * 2 * keys) * bytes_per_value


def kv_cache_bytes(config: PretrainedConfig, tokens_per_layer: Sequence[int], bytes_per_value: int) -> int:
    """Bytes of the keys and values of one prompt: `2 K d` values per token and layer that attends."""
    _, _, keys = decoder_widths(config)
    kept = attending(config)
    return sum(n for layer, n in enumerate(tokens_per_layer) if layer in kept) * 2 * keys * bytes_per_value


def decoder_widths(config: PretrainedConfig) -> tuple[int, int, int]:
    """Widths of hidden states, of all queries and of all keys of a token."""
    heads, key_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.hidden_size, heads * head_dim, (key_heads or heads) * head_dim


def query_channels(config: PretrainedConfig) -> int:
    """Channels that the projection of queries makes of a token: those of all queries, and of their gates."""
    _, queries, _ = decoder_widths(config)
    return 2 * queries if config.model_type in GATED_ATTENTION else queries


def _attention_weights(config: PretrainedConfig) -> int:
    """Weights of the four projections of attention."""
    hidden, queries, keys = decoder_widths(config)
    return hidden * (query_channels(config) + 2 * keys + queries)


def _delta_net_weights(config: PretrainedConfig) -> int:
    """Weights of the projections and the convolution of a gated delta net."""
    keys, values = _delta_net_widths(config)
    projected = 2 * keys + 2 * values + 2 * config.linear_num_value_heads
    return config.hidden_size * (projected + values) + (2 * keys + values) * config.linear_conv_kernel_dim


def _delta_net_flops(config: PretrainedConfig, tokens: int) -> int:
    """Of one gated delta net; see `layer_flops`."""
    keys, values = _delta_net_widths(config)
    kernel, heads = config.linear_conv_kernel_dim, config.linear_num_value_heads
    key, value = config.linear_key_head_dim, config.linear_value_head_dim
    projections = _delta_net_weights(config) - (2 * keys + values) * kernel
    # A prompt shorter than the convolution is padded to it.
    convolution = (max(tokens, kernel) + kernel - 1) * kernel * (2 * keys + values)
    padded = -(-tokens // _CHUNK) * _CHUNK
    rule = padded * heads * (2 * _CHUNK * key + _CHUNK * value + 3 * key * value)
    return 2 * (tokens * projections + convolution + rule)


def _delta_net_widths(config: PretrainedConfig) -> tuple[int, int]:
    """Widths of all keys and of all values of a token."""
    keys: int = config.linear_num_key_heads * config.linear_key_head_dim
    values: int = config.linear_num_value_heads * config.linear_value_head_dim
    return keys, values


def _mlp_weights(config: PretrainedConfig, layer: int, tokens: int = 1) -> int:
    """Weights of the MLP in a layer that so many tokens can meet; of experts, each token meets a few."""
    hidden = config.hidden_size
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0
    leading = range(getattr(config, "first_k_dense_replace", None) or 0)
    dense_layers = getattr(config, "mlp_only_layers", None) or leading
    if experts and layer not in dense_layers and (layer + 1) % getattr(config, "decoder_sparse_step", 1) == 0:
        width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
        shared = getattr(config, "shared_expert_intermediate_size", None)  # one that sees all, and its gate
        always = 3 * hidden * shared + hidden if shared else 0
        always += 3 * hidden * width * (getattr(config, "n_shared_experts", None) or 0)
        met = min(experts, tokens * config.num_experts_per_tok)
        return 3 * hidden * met * width + hidden * experts + always
    return (2 if config.model_type in UNGATED else 3) * hidden * config.intermediate_size


def _weights(modules: Iterable[nn.Module]) -> int:
    """Weights of matrix products, which have two axes or more: norms, scales and biases have one."""
    return sum(weight.numel() for module in modules for weight in module.parameters() if weight.ndim > 1)


def _width(attention: Any) -> int:
    """Heads times head size of an attention of the vision encoder."""
    made: dict[str, Any] = projections(attention)
    return made[KEYS].out_features if KEYS in made else made[FUSED].out_features // 3


def _pooling_flops(tower: nn.Module, tokens: int) -> int:
    """SigLIP's attention pooling of one picture, which runs although no model here uses what it gives."""
    head = getattr(tower, "head", None)
    if head is None:
        return 0
    width = head.attention.embed_dim
    return 2 * (2 * width**2 * (tokens + 1) + _weights([head.mlp])) + 4 * width * tokens
