"""Closed-form cost of a prompt in a decoder whose layers hold different numbers of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PretrainedConfig


def prefill_flops(config: PretrainedConfig, tokens_per_layer: Sequence[int]) -> int:
    """Floating point operations of the decoder layers for one prompt, a multiply-add counted as two.

    Counts the four attention projections, the gated MLP, and the two products of the full n x n
    attention; leaves out norms, activations, rotary embeddings, softmax, the embedding and the output
    head. For layer input size h, head size d, H query and K key-value heads, MLP size m and n tokens:
    `2 n (2 h H d + 2 h K d + 3 h m) + 4 n^2 H d`.

    Args:
        config: of the language model.
        tokens_per_layer: tokens that enter each decoder layer.
    """
    hidden, mlp = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * _head_dim(config)
    keys = _key_value_heads(config) * _head_dim(config)
    weights = 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * mlp
    return sum(2 * n * weights + 4 * n * n * queries for n in tokens_per_layer)


def kv_cache_bytes(config: PretrainedConfig, tokens_per_layer: Sequence[int], bytes_per_value: int) -> int:
    """Bytes of the keys and values of one prompt: `2 K d` values per token and layer."""
    return sum(tokens_per_layer) * 2 * _key_value_heads(config) * _head_dim(config) * bytes_per_value


def _head_dim(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _key_value_heads(config: PretrainedConfig) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads
