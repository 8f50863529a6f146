"""A prompt timed from outside: what its first token takes, part by part, and what each further one does.

Nothing here knows what is inside of vitcop: its hooks stand between two of our own on the same modules, and its wrapper
of the image encoder between two of our wrappers.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..engine import prune
from ..engine.cache import cache_name
from ..selection.pruner import Pruner
from .prompt import Prompt
from .stopwatch import Stopwatch

PHASES = ("vision", "selection", "prefill", "first_token", "decode", "decode_hooks")
_ENCODE = "get_image_features"


def time_phases(
    model: PreTrainedModel, prompt: Prompt, method: Pruner | None, stopwatch: Stopwatch
) -> dict[str, float]:
    """Read a prompt and decode once, and, if it is pruned, with vitcop's own part timed.

    On a GPU that part is timed in a pass of its own, since marking every hook takes time there, and the dense model has
    no hooks: what speed-ups are made of is timed with nothing but the method on the model.

    Returns:
        Seconds of each of `PHASES`:
        * vision: the image encoder and the projector
        * selection: all that vitcop does in the first forward
        * prefill: the first forward without vision
        * first_token: the whole first forward, until the logits are there
        * decode: median of the forwards of one token each
        * decode_hooks: all that vitcop does in one of those, median
    """
    with ExitStack() as stack:
        vision, own = stack.enter_context(_vision_timed(model, stopwatch)), _Turns(stopwatch)
        if method is not None and stopwatch.is_free:
            own = stack.enter_context(_pruning_timed(model, method, stopwatch))
        elif method is not None:
            stack.enter_context(prune(model, method))
        (first, in_vision, selection), *steps = _forwards(model, prompt, stopwatch, vision, own)
    decode, hooks = (statistics.median(step[part] for step in steps) for part in (0, 2))
    if method is not None and not stopwatch.is_free:
        with _pruning_timed(model, method, stopwatch) as own:
            selection, *in_hooks = (in_own for _, in_own in _forwards(model, prompt, stopwatch, own))
        hooks = statistics.median(in_hooks)
    values = in_vision, selection, first - in_vision, first, decode, hooks
    return dict(zip(PHASES, values, strict=True))


def read_prompt(model: PreTrainedModel, prompt: Prompt) -> Any:
    """The first forward, on a fresh cache."""
    return model(**prompt.inputs, use_cache=True, logits_to_keep=1)


def cache_of(output: Any) -> Any:
    """The KV cache that a forward returns."""
    return output["cache"] if "cache" in output else output["past_key_values"]  # before transformers 5.24


def decode_token(model: PreTrainedModel, token: torch.Tensor, cache: Any) -> Any:
    """A later forward, of one token of each prompt."""
    return model(input_ids=token, **{cache_name(model): cache}, use_cache=True, logits_to_keep=1)


class _Turns:
    """Time that is ours and theirs by turns: every mark ends the one and begins the other."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch
        self.marks: list[Any] = []

    def mark(self, *ignored: object) -> None:
        self.marks.append(self.stopwatch.mark())

    def take(self) -> float:
        """Seconds between the first and the second mark, the third and the fourth, and so on, since the last time."""
        marks, self.marks = self.marks, []
        return math.fsum(self.stopwatch.seconds(*span) for span in zip(marks[::2], marks[1::2], strict=True))


def _forwards(
    model: PreTrainedModel, prompt: Prompt, stopwatch: Stopwatch, *parts: _Turns
) -> Iterator[tuple[float, ...]]:
    """Seconds of the first forward and of each later one, and how many of them are in each of `parts`.

    The device is waited for after each, as it is by whoever reads the tokens: else a GPU that is busy with a long
    prompt hides what launching the next forwards takes.
    """
    cache: Any = None
    for step in range(1 + prompt.continuation.shape[1]):
        stopwatch.settle()
        start = stopwatch.mark()
        if cache is None:
            output = read_prompt(model, prompt)
        else:
            output = decode_token(model, prompt.continuation[:, step - 1 : step], cache)
        end = stopwatch.mark()
        stopwatch.settle()
        cache = cache_of(output)
        yield stopwatch.seconds(start, end), *(turns.take() for turns in parts)


@contextmanager
def _vision_timed(model: PreTrainedModel, stopwatch: Stopwatch) -> Iterator[_Turns]:
    turns = _Turns(stopwatch)
    with _between(model.base_model, _ENCODE, turns.mark):
        yield turns


@contextmanager
def _pruning_timed(model: PreTrainedModel, method: Pruner, stopwatch: Stopwatch) -> Iterator[_Turns]:
    """Prune, with a mark wherever vitcop's code begins and ends."""
    turns, handles = _Turns(stopwatch), []
    with ExitStack() as stack:
        stack.enter_context(_between(model.base_model, _ENCODE, turns.mark))
        bare = {module: _hooks(module) for module in model.modules()}
        stack.enter_context(prune(model, method))
        stack.enter_context(_between(model.base_model, _ENCODE, turns.mark))
        for module, before in bare.items():
            pre, post = (now > then for now, then in zip(_hooks(module), before, strict=True))
            for first in (True, False):
                if pre:
                    handles.append(module.register_forward_pre_hook(turns.mark, prepend=first))
                if post:
                    handles.append(module.register_forward_hook(turns.mark, prepend=first))
        try:
            yield turns
        finally:
            for handle in handles:
                handle.remove()


def _hooks(module: nn.Module) -> tuple[int, int]:
    return len(module._forward_pre_hooks), len(module._forward_hooks)


@contextmanager
def _between(owner: nn.Module, name: str, mark: Callable[[], None]) -> Iterator[None]:
    """Mark the beginning and the end of every call of a method of one object."""
    original, own = getattr(owner, name), vars(owner).get(name)

    @functools.wraps(original)
    def marked(*args: Any, **kwargs: Any) -> Any:
        mark()
        try:
            return original(*args, **kwargs)
        finally:
            mark()

    setattr(owner, name, marked)
    try:
        yield
    finally:
        delattr(owner, name)
        if own is not None:
            setattr(owner, name, own)
