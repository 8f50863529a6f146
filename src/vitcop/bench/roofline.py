"""How fast a decoder could read a prompt: bounded by operations or by bytes, whichever takes longer."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PretrainedConfig

from ..costs.closed_forms import layer_bytes, layer_flops, layers_run
from .ceilings import Ceilings


def prefill_seconds(
    config: PretrainedConfig,
    tokens_per_layer: Sequence[int],
    batch: int,
    bytes_per_value: int,
    ceilings: Ceilings,
    *,
    causal: bool,
) -> float:
    """Least time of the decoder layers: a sum over layers, each of which takes the longer of its two bounds.

    At batch 1 and few tokens that is reading the weights, which pruning does not make fewer.

    Args:
        config: of the language model.
        tokens_per_layer: as of `prefill_flops`, of each prompt.
        batch: prompts.
        bytes_per_value: of weights, keys and values.
        ceilings: of the device.
        causal: whether attention skips its masked half.
    """
    return sum(
        max(
            batch * layer_flops(config, layer, tokens, running, causal=causal) / ceilings.flops_per_second,
            layer_bytes(config, layer, batch * tokens, bytes_per_value, batch * running) / ceilings.bytes_per_second,
        )
        for layer, tokens, running in layers_run(config, tokens_per_layer)
    )
