"""Closed-form cost of a prompt in a decoder whose layers hold different numbers of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PretrainedConfig


def prefill_flops(config: PretrainedConfig, tokens_per_layer: Sequence[int]) -> int:
    """Floating point operations of the decoder layers for one prompt, a multiply-add counted as two.

    Counts the four attention projections, the gated MLP, and the two products of the full n x n
    attention; leaves out norms, activations, rotary embeddings, softmax, the embedding and the output
    head. For layer input size h, head size d, H query and K key-value heads, MLP size m and n tokens:
    `2 n (2 h H d + 2 h K d + 3 h m) + 4 n^2 H d`. With E experts of size e, k of which see a token, `3 h m` is
    `3 h k e + h E`, router included. A sliding window counts as full attention.

    Args:
        config: of the language model.
        tokens_per_layer: tokens that enter each decoder layer.
    """
    hidden = config.hidden_size
    queries = config.num_attention_heads * _head_dim(config)
    keys = _key_value_heads(config) * _head_dim(config)
    attention = 2 * hidden * queries + 2 * hidden * keys
    layers = enumerate(tokens_per_layer)
    return sum(2 * n * (attention + _mlp_weights(config, layer)) + 4 * n * n * queries for layer, n in layers)


def kv_cache_bytes(config: PretrainedConfig, tokens_per_layer: Sequence[int], bytes_per_value: int) -> int:
    """Bytes of the keys and values of one prompt: `2 K d` values per token and layer."""
    return sum(tokens_per_layer) * 2 * _key_value_heads(config) * _head_dim(config) * bytes_per_value


def _mlp_weights(config: PretrainedConfig, layer: int) -> int:
    """Weights of the MLP that each token meets in a layer."""
    hidden, experts = config.hidden_size, getattr(config, "num_experts", None) or 0
    dense_layers = getattr(config, "mlp_only_layers", None) or ()
    if experts and layer not in dense_layers and (layer + 1) % getattr(config, "decoder_sparse_step", 1) == 0:
        width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
        return 3 * hidden * config.num_experts_per_tok * width + hidden * experts
    return 3 * hidden * config.intermediate_size


def _head_dim(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _key_value_heads(config: PretrainedConfig) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads
