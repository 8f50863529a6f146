"""What the hooks ask of a forward that reads or continues a pruned prompt, while it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ..models.base import Call
from ..report import Report


class Forward(ABC):
    """One forward of the base model. Its methods are called in the order in which they stand here.

    It is made for one call and in one thread, and is let go when the call is over, whether it succeeded or not.
    """

    def start(self, call: Call) -> Call:
        """What the base model gets in place of the arguments `call`."""
        return call

    @abstractmethod
    def enter(self, kwargs: Call) -> Call:
        """What the decoder gets in place of `kwargs`, which hold the embeddings of all that is new."""

    @abstractmethod
    def leaves_alone(self, kwargs: Call) -> bool:
        """Whether a decoder layer, whose keyword arguments these are, needs nothing from us."""

    @abstractmethod
    def before_layer(self, layer: int, hidden_states: Tensor, kwargs: Call) -> tuple[Tensor, Call]:
        """The hidden states and keyword arguments that a decoder layer gets in place of these."""

    def finish(self) -> Report | None:
        """Check what has been done. Returns what was kept, if a prompt was read.

        Raises:
            VitcopError: something was wrong that nobody waited for while the layers ran.
        """
        return None

    @abstractmethod
    def release(self) -> None:
        """Let go of the KV cache. Called at the end whatever happened, after an error in any of the above too."""
