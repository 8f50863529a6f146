"""What a user calls the model, and the model of transformers that it is."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError


def stock_model(model: Any) -> PreTrainedModel:
    """The transformers model in `model`, if hooks can stand around it.

    Raises:
        UnsupportedModelError: it is none, or is compiled or sharded.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"A {type(model).__name__} cannot be pruned; pass a loaded transformers model.")
    stock = getattr(model, "get_base_model", lambda: model)()  # of a PEFT wrapper
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()):
        raise UnsupportedModelError("A compiled model cannot be pruned; prune the model without torch.compile.")
    if not isinstance(stock, PreTrainedModel):
        raise UnsupportedModelError(f"A {type(stock).__name__} cannot be pruned; pass a transformers model.")
    if (getattr(stock, "tp_size", None) or 1) > 1:
        raise UnsupportedModelError(
            "A tensor-parallel model cannot be pruned, since no process sees the keys of all heads; load it with "
            "device_map instead of tp_plan."
        )
    return stock
