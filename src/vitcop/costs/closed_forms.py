"""Closed forms of what a prompt costs: vision tower, projector, decoder, selection and KV cache.

Floating point operations are those of matrix products, a multiply-add counted as two. Norms, activations, softmax,
rotary and position embeddings are left out everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from ..models.base import VisionModules
from ..models.decoder import attending, layer_kinds
from ..models.encoders import FUSED, KEYS, QUERIES, num_heads, projections
from ..models.geometry import Geometry

UNGATED = ("apertus", "arcee", "nemotron", "phi", "starcoder2")
"""`model_type` of decoders whose MLP is two products and no gate."""
GATED_ATTENTION = ("qwen3_5_moe_text", "qwen3_5_text")
"""`model_type` of decoders whose query projection makes a gate for each head as well."""
ALL_EXPERTS = ("llama4_text",)
"""`model_type` of decoders that run all experts on all tokens, on zeros where one is not theirs, and one besides."""
_CHUNK = 64  # tokens that a gated delta net reads at a time


@dataclass(frozen=True)
class VisionCost:
    """Floating point operations that become one image or video, before the decoder.

    Attributes:
        tower: the vision encoder.
        projector: from its features to rows of the decoder.
        key_width, head_dim: heads times head size of the layer that is observed, and the head size.
    """

    tower: int
    projector: int
    key_width: int
    head_dim: int


def vision_cost(modules: VisionModules, geometry: Geometry) -> VisionCost:
    """Count the modules of one modality for one image or video.

    With W weights of a module's products, n tokens in a stretch (of all layers, or a window), width h and N tokens
    in all stretches: patches `2 W p` for p patches, a layer `2 W N + 4 h sum n^2`, the projector `2 W` a row. All
    layers run, also those behind the one whose features are used. A pooling head, which SigLIP runs and no model
    here uses, adds `2 (2 h^2 (N + 1) + W_mlp) + 4 h n` a picture; pooling k x k patches by a product `2 h n^2 / k^2`.
    Where the projector pools k patches to a row by attention, keys and values are of all k: with U weights of their
    projections and width w, `2 U (k - 1) + 4 w k` more a row.
    Behind a merger among the layers, n and N are of what it makes, on which its products behind its attention run too.
    """
    width, key_width = (_width(modules.attention, name) for name in (QUERIES, KEYS))
    head_dim = width // num_heads(modules.attention)
    before = len(modules.layers) - modules.merged
    pairs = _pairs(geometry.stretches) * (before - modules.windowed) + _pairs(geometry.windows) * modules.windowed
    pairs += _pairs(geometry.merged) * modules.merged
    projecting = {module for part in modules.projector for module in part.modules()}
    convolutions = [
        module
        for module in modules.tower.modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module not in projecting
    ]
    tower = 2 * _weights([*convolutions, *modules.embedding]) * geometry.patches
    tower += 2 * _weights(modules.layers[:before]) * sum(geometry.stretches) + 4 * width * pairs
    tower += 2 * _weights([*modules.merging, *modules.layers[before:]]) * sum(geometry.merged)
    tower += sum(_pooling_flops(modules.tower, n) for n in geometry.stretches)
    projector = 2 * _weights(modules.projector) * geometry.projected
    if modules.pooling is not None:
        made: Any = modules.pooling
        projector += 2 * _weights([made.k_proj, made.v_proj]) * (geometry.pooled - geometry.projected)
        projector += 4 * _width(made, QUERIES) * geometry.pooled
    return VisionCost(tower, projector, key_width, head_dim)


def signal_flops(modules: VisionModules, geometry: Geometry, attention: nn.Module, *, received: bool) -> int:
    """Floating point operations of what an encoder layer shows: of queries and keys that are its own.

    With n tokens in a stretch, N in all and width h: the row of [CLS] `2 h N`, attention received `2 h sum n^2`.

    Args:
        attention: of that layer.
        received: count attention received, be there [CLS] or not.
    """
    behind = modules.layers[len(modules.layers) - modules.merged :]
    merged = any(attention is module for layer in behind for module in layer.modules())
    stretches = geometry.merged if merged else geometry.stretches
    seen = sum(stretches) if modules.has_cls and not received else _pairs(stretches)
    return 2 * _width(attention, QUERIES) * seen


def _pairs(stretches: Sequence[int]) -> int:
    """Pairs of tokens that attend to each other."""
    return sum(n * n for n in stretches)


def prefill_flops(config: PretrainedConfig, tokens_per_layer: Sequence[int]) -> int:
    """Floating point operations of the decoder layers until the first token of an answer: `layer_flops`, with full
    n x n attention.

    Of layers that use the keys and values of others, `generate` runs the last token alone. Leaves out the embedding and
    the output head.

    Args:
        config: of the language model.
        tokens_per_layer: tokens that enter each decoder layer that has keys and values, or a state, of its own.
    """
    return sum(layer_flops(config, *layer) for layer in layers_run(config, tokens_per_layer))


def layers_run(config: PretrainedConfig, tokens_per_layer: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Of each decoder layer the number, the tokens that it looks at, and those that run through it.

    Args:
        config, tokens_per_layer: as of `prefill_flops`.
    """
    own = len(tokens_per_layer)
    yield from ((layer, tokens, tokens) for layer, tokens in enumerate(tokens_per_layer))
    yield from ((layer, tokens_per_layer[-1], 1) for layer in range(own, own + _sharing_layers(config)))


def layer_flops(
    config: PretrainedConfig, layer: int, tokens: int, running: int | None = None, *, causal: bool = False
) -> int:
    """Floating point operations of one decoder layer for one prompt.

    Counts the four attention projections, the MLP, and the two products of the full n x n attention. For layer input
    size h, head size d, H query and K key-value heads, MLP size m and n tokens:
    `2 n (2 h H d + 2 h K d + 3 h m) + 4 n^2 H d`, and `2 n h H d` more where attention is gated. With E experts of
    size e, k of which see a token, `3 h m` is `3 h k e + h E`, router included, and `3 h e` more for each expert that
    all see; transformers runs all of Llama 4's on all tokens, so that k is E. Without a gate it is `2 h m`. Values that
    are the keys save `h K d`, keys and values of another layer `2 h K d`; an input that a layer has of its own, of size
    p, takes `2 h p`. A sliding window counts as full attention.

    In the place of attention, a gated delta net has V heads with keys of size k and values of size v, widths P of all
    keys and R of all values that it projects, a convolution over w tokens, and reads c = 64 tokens at a time, for which
    the prompt is padded to N: `2 n h (2 P + 3 R + 2 V) + 2 (n + w - 1) w (2 P + R) + 2 N V (2 c k + c v + 3 k v)`. The
    two triangular systems of each chunk, which are solved and not multiplied, are left out. A short convolution over w
    tokens takes `8 n h^2 + 2 (n + w - 1) w h`.

    Args:
        config: of the language model.
        layer: number of the layer.
        tokens: that it looks at.
        running: of them, those that run through it, the last ones; None for all.
        causal: leave out the masked half of attention, `2 n (n + 1) H d`, as kernels do that get no explicit mask.
    """
    running = tokens if running is None else running
    if layer not in attending(config):
        return 2 * running * _mlp_weights(config, layer, 1) + _state_flops(config, layer, running)
    _, queries, _ = decoder_widths(config, layer)
    pairs = running * tokens - (running * (running - 1) // 2 if causal else 0)
    return 2 * running * _layer_weights(config, layer) + 4 * pairs * queries


def layer_bytes(
    config: PretrainedConfig, layer: int, tokens: int, bytes_per_value: int, running: int | None = None
) -> int:
    """Bytes that one decoder layer cannot help moving: its weights, and the keys and values, written and read once.

    Of experts, as many as the tokens can meet. Keys and values of another layer are read. Hidden states, and those that
    recurrent layers keep, are left out.

    Args:
        config: of the language model.
        layer: number of the layer.
        tokens: that it looks at, over the whole batch.
        bytes_per_value: of weights, keys and values.
        running: of them, those that run through it; None for all.
    """
    weights = _layer_weights(config, layer, tokens if running is None else running)
    moved = 1 if _uses_others(config, layer) else 2
    return (weights + moved * _kept_values(config, layer) * tokens) * bytes_per_value


def kv_cache_bytes(config: PretrainedConfig, tokens_per_layer: Sequence[int], bytes_per_value: int) -> int:
    """Bytes of the keys and values of one prompt: `2 K d` values per token and layer that has them of its own."""
    return sum(_kept_values(config, layer) * n for layer, n in enumerate(tokens_per_layer)) * bytes_per_value


def decoder_widths(config: PretrainedConfig, layer: int) -> tuple[int, int, int]:
    """Widths of hidden states, of all queries and of all keys of a token in a layer."""
    own = config.per_layer_config[layer]
    heads, key_heads = own.num_attention_heads, getattr(own, "num_key_value_heads", None)
    head_dim = getattr(own, "head_dim", None) or own.hidden_size // heads
    return own.hidden_size, heads * head_dim, (key_heads or heads) * head_dim


def query_channels(config: PretrainedConfig, layer: int) -> int:
    """Channels that the projection of queries makes of a token: those of all queries, and of their gates."""
    _, queries, _ = decoder_widths(config, layer)
    return 2 * queries if config.model_type in GATED_ATTENTION else queries


def _kept_values(config: PretrainedConfig, layer: int) -> int:
    """Values of the key and the value of a token that a layer looks at, none where it keeps a state in their place."""
    _, _, keys = decoder_widths(config, layer)
    return 2 * keys if layer in attending(config) else 0


def _sharing_layers(config: PretrainedConfig) -> int:
    """How many layers, the last ones, use the keys and values of others."""
    return getattr(config, "num_kv_shared_layers", None) or 0


def _uses_others(config: PretrainedConfig, layer: int) -> bool:
    return layer >= config.num_hidden_layers - _sharing_layers(config)


def _layer_weights(config: PretrainedConfig, layer: int, tokens: int = 1) -> int:
    """Weights of the products of a layer that so many tokens can meet."""
    attends = layer in attending(config)
    mixing = _attention_weights(config, layer) if attends else _state_weights(config, layer)
    own_input = getattr(config, "hidden_size_per_layer_input", None) or 0
    return mixing + _mlp_weights(config, layer, tokens) + 2 * config.hidden_size * own_input


def _attention_weights(config: PretrainedConfig, layer: int) -> int:
    """Weights of the projections of attention."""
    hidden, queries, keys = decoder_widths(config, layer)
    made = 0 if _uses_others(config, layer) else 2
    if made and getattr(config, "attention_k_eq_v", False) and config.layer_types[layer] == "full_attention":
        made = 1
    return hidden * (query_channels(config, layer) + made * keys + queries)


def _state_weights(config: PretrainedConfig, layer: int) -> int:
    """Weights of what folds tokens into a state in the place of attention."""
    if layer_kinds(config)[layer] != "conv":
        return _delta_net_weights(config)
    hidden: int = config.hidden_size
    return 4 * hidden**2 + hidden * config.conv_L_cache


def _state_flops(config: PretrainedConfig, layer: int, tokens: int) -> int:
    """Of what folds tokens into a state; see `layer_flops`."""
    if layer_kinds(config)[layer] != "conv":
        return _delta_net_flops(config, tokens)
    hidden, kernel = config.hidden_size, config.conv_L_cache
    # A prompt shorter than the convolution is padded to it.
    return 8 * tokens * hidden**2 + 2 * (max(tokens, kernel) + kernel - 1) * kernel * hidden


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


def _mlp_weights(config: PretrainedConfig, layer: int, tokens: int) -> int:
    """Weights of the MLP in a layer that so many tokens can meet; of experts, each token meets a few."""
    hidden, beside = config.hidden_size, getattr(config, "enable_moe_block", False)
    every = config.model_type in ALL_EXPERTS
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0
    leading = range(getattr(config, "first_k_dense_replace", None) or getattr(config, "num_dense_layers", None) or 0)
    dense_layers = getattr(config, "mlp_only_layers", None) or leading
    sparse = layer not in dense_layers and (layer + 1) % getattr(config, "decoder_sparse_step", 1) == 0
    if experts and (layer in config.moe_layers if every else sparse):
        width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
        shared = getattr(config, "shared_expert_intermediate_size", None)  # one that sees all, and its gate
        always = 3 * hidden * shared + hidden if shared else 0
        always += 3 * hidden * width * (getattr(config, "n_shared_experts", None) or int(every))
        always += _dense_mlp_weights(config, layer) if beside else 0
        each = config.top_k_experts if beside else config.num_experts_per_tok
        met = experts if every else min(experts, tokens * each)
        return 3 * hidden * met * width + hidden * experts + always
    return _dense_mlp_weights(config, layer)


def _dense_mlp_weights(config: PretrainedConfig, layer: int) -> int:
    """Weights of an MLP that all tokens meet."""
    wide = 2 if getattr(config, "use_double_wide_mlp", False) and _uses_others(config, layer) else 1
    products: int = 2 if config.model_type in UNGATED else 3
    return products * config.hidden_size * _dense_mlp_width(config) * wide


def _dense_mlp_width(config: PretrainedConfig) -> int:
    """Size of an MLP that all tokens meet, which LFM2 works out of the one in its config."""
    width: int = getattr(config, "intermediate_size_mlp", None) or config.intermediate_size
    if not getattr(config, "block_auto_adjust_ff_dim", False):
        return width
    width, multiple = int(config.block_ffn_dim_multiplier * (2 * width // 3)), config.block_multiple_of
    return -(-width // multiple) * multiple


def _weights(modules: Iterable[nn.Module]) -> int:
    """Weights of matrix products, which have two axes or more: norms, scales and biases have one."""
    return sum(weight.numel() for module in modules for weight in module.parameters() if weight.ndim > 1)


def _width(attention: Any, name: str) -> int:
    """Heads times head size of the queries, or of the keys, of an attention of the vision encoder."""
    made: dict[str, Any] = projections(attention)
    if FUSED in made:
        return made[FUSED].out_features // 3
    return getattr(made[name], "linear", made[name]).out_features  # Gemma 4's is in a module that clips


def _pooling_flops(tower: Any, tokens: int) -> int:
    """Pooling of one picture: Gemma 4's, a product, and SigLIP's attention, which runs although no model uses it."""
    head, side = getattr(tower, "head", None), getattr(tower.config, "pooling_kernel_size", 1)
    if side > 1:
        return 2 * tokens * (tokens // side**2) * tower.config.hidden_size
    if head is None:
        return 0
    width = head.attention.embed_dim
    return 2 * (2 * width**2 * (tokens + 1) + _weights([head.mlp])) + 4 * width * tokens
