"""A part of the run as it sees itself: where it runs, how long it may, and what it has found so far."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .records import write_json

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass
class Task:
    """What a part's `run` gets.

    Attributes:
        file: that keeps what was found.
        folder: for files of its own.
        rehearsal: on a CPU, and with sizes that are soon done.
        seconds: that it may take.
        estimate: seconds that it was thought to take.
        found: what goes into the record; `lines` of it are printed.
    """

    file: Path
    folder: Path
    rehearsal: bool
    seconds: float
    estimate: float
    found: dict[str, Any] = field(default_factory=lambda: {"lines": []})
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        """The CPU of a rehearsal, or else the GPU.

        Raises:
            RuntimeError: there is none.
        """
        import torch

        if not self.rehearsal and not torch.cuda.is_available():
            raise RuntimeError("There is no GPU that torch can use; `make gpu-rehearsal` runs the same on a CPU.")
        return torch.device("cpu" if self.rehearsal else "cuda")

    def save(self) -> None:
        write_json(self.file, self.found)

    def in_time(self, items: Sequence[T]) -> Iterator[T]:
        """One after another, and what was found is saved behind each, while there is time for another.

        Raises:
            TimeoutError: there is none, and some are left.
        """
        slowest = 0.0
        for number, item in enumerate(items):
            before = time.monotonic()
            if self.started + self.seconds - before < 2 * slowest:
                raise TimeoutError(f"{len(items) - number} of {len(items)} not reached, from {item} on")
            yield item
            slowest = max(slowest, time.monotonic() - before)
            self.save()
