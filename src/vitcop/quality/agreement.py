"""How many answers are the dense model's, and how sure that is of other questions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch.distributions import Binomial

CONFIDENCE = 0.95
_STEPS = 60  # of bisection


@dataclass(frozen=True)
class Agreement:
    """Answers that are the dense model's.

    The bounds are exact (Clopper and Pearson, 1934): of many draws of pictures, they are wrong about all others in at
    most 5 %. Of questions that share pictures they are those of as many as these are worth (Korn and Graubard, 1998,
    with the largest design effect that there can be).

    Attributes:
        same: that are.
        asked: all.
        worth: as many questions about a picture of their own each as would say as much; see `own.worth`.
    """

    same: int
    asked: int
    worth: int

    @property
    def share(self) -> float:
        return self.same / self.asked

    @property
    def at_least(self) -> float:
        """What the share is at least, with a confidence of 95 %, of all pictures such as these."""
        return _lowest(self._of_worth(self.same), self.worth, 1 - CONFIDENCE)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share lies with a chance of 95 %, of all pictures such as these."""
        tail = (1 - CONFIDENCE) / 2
        lowest = _lowest(self._of_worth(self.same), self.worth, tail)
        return lowest, 1 - _lowest(self._of_worth(self.asked - self.same), self.worth, tail)

    def _of_worth(self, count: int) -> int:
        return count * self.worth // self.asked


def needed(target: float) -> int:
    """Questions about a picture of their own each from which on a share of `target` can be shown, if all agree."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(target))


@cache
def _lowest(successes: int, draws: int, tail: float) -> float:
    """The lowest chance under which as many successes, or more, come in a share `tail` of all times."""
    counts = torch.arange(successes, draws + 1, dtype=torch.float64)
    low, high = 0.0, 1.0
    for _ in range(_STEPS if successes else 0):
        middle = (low + high) / 2
        more = Binomial(draws, torch.tensor(middle, dtype=torch.float64)).log_prob(counts).exp().sum().item()
        low, high = (middle, high) if more < tail else (low, middle)
    return low
