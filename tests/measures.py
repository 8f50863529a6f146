"""What a computation takes, counted."""

import inspect

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Values in the largest tensor that any operator makes."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.values = max(self.values, tensor.numel())
        return result


def skip_where_all_tokens_run(model):
    """Costs are those of transformers that let the last token alone through layers that use the keys of others."""
    decoder = model.get_decoder()
    sharing = getattr(decoder.config, "num_kv_shared_layers", 0)
    if sharing and not hasattr(decoder, "_maybe_slice_kv_shared_inputs"):
        pytest.skip("this transformers runs all tokens of a prompt through all layers")


def skip_where_padding_is_left_out(model):
    """Costs are those of transformers whose LFM2-VL projects the padding of its pictures as well."""
    if model.config.model_type == "lfm2_vl" and "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this transformers projects each picture by itself")


def bytes_held(cache):
    """Of keys and values, over all layers that have any."""
    layers = [layer for layer in cache.layers if hasattr(layer, "keys")]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers if layer.keys is not None)
