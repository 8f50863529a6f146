"""What requests leave behind: hooks and attributes on a model, tensors and memory."""

from __future__ import annotations

import gc
import os
import statistics
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Traces:
    """What is on a model, and in the process."""

    hooks: int
    attributes: int
    tensors: int
    threads: int

    @staticmethod
    def of(model: Any) -> Traces:
        gc.collect()
        modules = list(model.modules())
        return Traces(
            sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules),
            sum(len(vars(module)) for module in modules),
            sum(type(each) in (torch.Tensor, torch.nn.Parameter) for each in gc.get_objects()),
            threading.active_count(),
        )


@dataclass
class Memory:
    """Megabytes that the process holds, looked at again and again."""

    seen: list[float] = field(default_factory=list)

    def look(self) -> None:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.seen.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)

    @property
    def quarters(self) -> list[float]:
        """Medians of the four quarters of the run."""
        size = max(1, len(self.seen) // 4)
        return [round(statistics.median(self.seen[first : first + size])) for first in range(0, 4 * size, size)]


@dataclass
class Outcome:
    """What became of the requests of one part.

    Attributes:
        right, mixed: answers as they were alone, and others.
        failed, cancelled, refused: those that ended by an injected failure, by whoever asked, or by a full queue.
        before, after: traces, of which all but `threads` have to be the same.
        megabytes: held in each quarter.
    """

    part: str
    right: int = 0
    mixed: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    seconds: float = 0.0
    before: Traces | None = None
    after: Traces | None = None
    megabytes: list[float] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing got mixed up or was left behind."""
        assert self.before is not None and self.after is not None
        same = all(getattr(self.before, name) == getattr(self.after, name) for name in ("hooks", "attributes"))
        return not self.mixed and bool(self.right) and same and self.after.tensors <= self.before.tensors

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sound": self.sound}
