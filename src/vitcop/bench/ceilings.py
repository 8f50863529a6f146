"""The most that a device does: operations a second, and bytes moved a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .stopwatch import Stopwatch

_REPEATS = 8


@dataclass(frozen=True)
class Ceilings:
    """What bounds a forward from below.

    Attributes:
        flops_per_second: floating point operations of a large matrix product in the dtype, a multiply-add as two.
        bytes_per_second: read and written by a large copy.
    """

    flops_per_second: float
    bytes_per_second: float


def measure_ceilings(device: torch.device, dtype: torch.dtype, stopwatch: Stopwatch) -> Ceilings:
    """The best of several, since whatever else runs only ever takes away."""
    large = device.type == "cuda"
    side, count = (8192, 2**30) if large else (1024, 2**28)  # bytes beyond any cache
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.ones(count, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    matmul = _shortest(lambda: torch.matmul(left, right, out=product), stopwatch)
    move = _shortest(lambda: copy.copy_(source), stopwatch)
    return Ceilings(2 * side**3 / matmul, 2 * count / move)


def _shortest(work: Callable[[], object], stopwatch: Stopwatch) -> float:
    """Seconds, after a first time that warms up."""
    work()
    spans = []
    for _ in range(_REPEATS):
        stopwatch.settle()
        start = stopwatch.mark()
        work()
        spans.append((start, stopwatch.mark()))
    stopwatch.settle()
    return min(stopwatch.seconds(*span) for span in spans)
