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

NOISE = 4.0  # megabytes; by up to 2 the quarters of a run differ where nothing is left behind (NOTES, entry 16)
LEAVES = 5.0  # kilobytes


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
        before, after: traces.
        megabytes: held in each quarter, of which the first fills what is kept for all that come.
        noise: megabytes by which these may grow whatever the number of requests.
        leaves: kilobytes that each may leave beside.
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
    noise: float = NOISE
    leaves: float = LEAVES

    @property
    def sound(self) -> bool:
        """Whether it is clean, and memory has not grown by more than is allowed."""
        return self.clean and self._grown <= self._allowed

    @property
    def clean(self) -> bool:
        """Whether nothing got mixed up, and no hook, attribute, tensor or thread was left behind.

        Of runs that are too short for memory to be told from what the process holds on to by itself.
        """
        assert self.before is not None and self.after is not None
        same = all(getattr(self.before, name) == getattr(self.after, name) for name in ("hooks", "attributes"))
        fewer = all(getattr(self.before, name) >= getattr(self.after, name) for name in ("tensors", "threads"))
        return not self.mixed and bool(self.right) and same and fewer

    @property
    def _grown(self) -> float:
        """Megabytes from the second quarter to the last."""
        return self.megabytes[-1] - self.megabytes[1]

    @property
    def _allowed(self) -> float:
        """Megabytes that these may grow by."""
        requests = self.right + self.mixed + self.failed + self.cancelled + self.refused
        return self.noise + self.leaves / 1000 * requests / 2

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sound": self.sound}
