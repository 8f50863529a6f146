"""What came along with a call of the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..models.base import Call


def bound(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Call) -> Call:
    """The arguments of a call, all by name."""
    if not args:
        return kwargs
    call = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    return call | call.pop("kwargs", {})


def setting(name: str, call: Call, defaults: Any) -> Any:
    """What a setting of `generate` is with these arguments; None if nothing says.

    Args:
        defaults: the model's own generation config.
    """
    if name in call:
        return call[name]
    given = (getattr(config, name, None) for config in (call.get("generation_config"), defaults))
    return next((value for value in given if value is not None), None)


def encoder_outputs(call: Call) -> dict[str, Any]:
    """Encoder outputs passed to this call, by modality; Idefics3 also takes a bare tensor of images."""
    outputs = call.get("mm_encoder_outputs")
    if outputs is None:
        return {}
    return outputs if isinstance(outputs, dict) else {"image": outputs}


def brings_images(call: Call) -> bool:
    """Whether images come along with this call, as pixels or encoded."""
    pixels = any(value is not None for name, value in call.items() if name.startswith("pixel_values"))
    return pixels or any(output is not None for output in encoder_outputs(call).values())
