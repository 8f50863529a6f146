"""The attention layers of a vision encoder at work, seen from outside, for as long as one call of it lasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

from ..engine.arguments import bound
from ..errors import UnsupportedModelError


@dataclass(eq=False)
class Seen:
    """One call of an attention.

    Attributes:
        inputs: its arguments, by name.
        projected: what its projections made, by their names.
    """

    inputs: dict[str, Any]
    projected: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def watching(attentions: Iterable[nn.Module], projections: Iterable[str]) -> Iterator[dict[nn.Module, Seen]]:
    """Gives what each attention does, once it has done it.

    Args:
        projections: names of the modules in each to be watched, as far as it has them.

    Raises:
        UnsupportedModelError: one did not run, or ran several times.
    """
    seen: dict[nn.Module, Seen] = {}
    names = list(projections)

    def begin(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if attention in seen:
            raise UnsupportedModelError("The vision encoder runs several times for one batch, which cannot be pruned.")
        seen[attention] = Seen(bound(attention.forward, args, kwargs))

    def keep(attention: nn.Module, name: str, projection: nn.Module, args: Any, output: Any) -> None:
        seen[attention].projected[name] = output[0] if isinstance(output, tuple) else output

    different, hooks = list(dict.fromkeys(attentions)), []
    try:
        for attention in different:
            hooks.append(attention.register_forward_pre_hook(begin, with_kwargs=True))
            for name in names:
                if hasattr(attention, name):
                    projection = attention.get_submodule(name)
                    hooks.append(projection.register_forward_hook(partial(keep, attention, name)))
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
    if len(seen) < len(different) or not all(call.projected for call in seen.values()):
        raise UnsupportedModelError(
            "The vision encoder ran unseen, which cannot be pruned: turn off its CUDA graphs and its compilation."
        )


def whole_heads(states: Tensor, channels: int) -> Tensor:
    """Projected states of all heads, where tensor parallelism shares these out, so that all processes choose alike.

    Args:
        states: (..., channels) of the heads that this process has.
        channels: of all heads together.
    """
    if states.shape[-1] == channels:
        return states
    whole = tensor_model_parallel_all_gather(states.contiguous(), -1)
    if whole.shape[-1] % channels:
        raise UnsupportedModelError(
            f"{get_tensor_model_parallel_world_size()} processes have {whole.shape[-1]} channels of a projection of "
            f"{channels}, so that its heads cannot be told apart: use another --tensor-parallel-size."
        )
    return whole


def repeated_heads(states: Tensor, heads: int) -> Tensor:
    """Each head once, (tokens, heads, head_dim), where several processes have the same."""
    return states[:, :: states.shape[1] // heads]


def split_fused(fused: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Queries and keys of all heads, from what a projection of queries, keys and values makes in this process.

    Args:
        fused: (..., channels), queries before keys before values.
        channels: of the queries of all heads.
    """
    queries, keys, _ = fused.chunk(3, -1)
    return whole_heads(queries, channels), whole_heads(keys, channels)
