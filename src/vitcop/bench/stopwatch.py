"""Points in time on a device, and what lies between them."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Marks points in time: on a GPU in its own stream, so that the work counts and not its launch.

    Args:
        device: what the work runs on.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None

    @property
    def is_free(self) -> bool:
        """Whether a mark takes no time to speak of: an event on a GPU is a launch, and takes some."""
        return self._cuda is None

    def mark(self) -> Any:
        """This point in time, which the host does not wait for."""
        if self._cuda is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._cuda))
        return event

    def settle(self) -> None:
        """Wait until the device has done all it was given; marks can be read from then on."""
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)

    def seconds(self, start: Any, end: Any) -> float:
        """Between two marks."""
        return end - start if self._cuda is None else start.elapsed_time(end) / 1000
