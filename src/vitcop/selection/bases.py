"""Kinds of methods that need one function more: those that drop once, and those that rank tokens."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..errors import VitcopError
from ..ops.segments import smallest_per_segment
from .pruner import Positions, Pruner, check_layer
from .schedule import solve
from .tokens import Selection, VisualTokens


@dataclass(frozen=True)
class EntrancePruner(Pruner):
    """A method that drops once, entering the decoder, where what is left is numbered anew by default.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
    """

    default_positions: ClassVar[Positions] = "compact"

    retention: float = 1 / 9

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        return solve(self.name, self.retention, num_tokens, num_layers, [0])


@dataclass(frozen=True)
class LayerPruner(Pruner):
    """A method that drops once, before a decoder layer, by what the layer before shows.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        layer: the decoder layer before which tokens are dropped; None is 2, or the earliest possible one after that.
    """

    earliest = 1

    retention: float = 1 / 9
    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layer(self, self.layer)

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        layer = max(2, first_layer) if self.layer is None else self.layer
        return solve(self.name, self.retention, num_tokens, num_layers, [layer])


class ScorePruner(Pruner):
    """A method that keeps the tokens of highest score and merges nothing."""

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Float[Tensor, " visual"]:
        """How much each token is worth keeping; only the order within an image counts."""

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        score, rows = self.score(tokens), len(tokens.rows)
        # What has no sign cannot be turned round to put the largest first.
        known = isinstance(score, Tensor) and score.dtype.is_signed and not score.dtype.is_complex
        if not known or score.shape != (rows,):
            got = f"{score.dtype} of {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
            raise VitcopError(
                f"The score of {self.name} must be a tensor of floats or signed integers of shape ({rows},); got {got}."
            )
        return Selection(smallest_per_segment(-score, tokens.lengths, budget))
