"""PyramidDrop: half of what is left goes at every quarter of the depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..errors import BudgetError
from ..selection.bases import ScorePruner
from ..selection.pruner import Description, check_layer
from ..selection.schedule import average_retention, solve
from ..selection.stage_shape import StageShape
from ..selection.tokens import VisualTokens

SHARES = (0.5, 0.25, 0.125)


@dataclass(frozen=True)
class PyramidDrop(ScorePruner):
    """Keeps, at three layers, the tokens to which the last token of the prompt attends most in the layer to come.

    Based on "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction"
    (arXiv 2410.17247, CVPR 2025). Attention is that of the layer about to run, from its own norm, projections and
    rotary embedding, mean over heads.

    The paper leaves 1/2, 1/4 and 1/8 of the tokens from a quarter, half and three quarters of the depth on, which
    averages 0.47 and cannot come below 0.25. Smaller retentions move the first cut forward, with the other two
    evenly behind it, as far as layer 2; below that the three shares shrink together, and above the paper's average
    they grow together.

    Difference from the authors' code: tokens keep their positions, which are numbered anew there at every cut.

    Cost: at each cut one softmax row, and the key projection of all tokens in the layer to come.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        layers: the decoder layers before which tokens are dropped, at least 1; None as above.
    """

    described = Description(
        venue="CVPR", year=2025, arxiv="2410.17247", where="3 layers", signal="attention of last token", rows="3 rows"
    )
    presets = {"paper": {270: {8: 288, 16: 144, 24: 72}}}

    earliest = 1

    retention: float = 1 / 9
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            if len(self.layers) != len(SHARES) or list(self.layers) != sorted({*self.layers}):
                raise BudgetError(f"PyramidDrop cuts before {len(SHARES)} layers, which rise; got {self.layers}.")
            check_layer(self, min(self.layers))

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        # In a decoder of so few layers that three cuts need it, the first one is earlier.
        layers = self.layers or self._cuts(num_tokens, num_layers, max(first_layer, min(2, num_layers - 3)))
        return solve(self.name, self.retention, num_tokens, num_layers, layers, [SHARES])

    def _cuts(self, num_tokens: int, num_layers: int, earliest: int) -> tuple[int, int, int]:
        """The latest cuts at which the paper's shares, a token at least, do not exceed the retention."""
        shares = [max(share, 1 / num_tokens) for share in SHARES]

        def average(layers: tuple[int, int, int]) -> float:
            return average_retention(dict(zip(layers, shares, strict=True)), 1.0, num_layers)

        first = max(earliest, num_layers // 4)
        while first > earliest and average(_evenly(first, num_layers)) > self.retention:
            first -= 1
        return _evenly(first, num_layers)

    def selection_flops(self, stage: StageShape) -> int:
        return stage.row_ahead()

    def score(self, tokens: VisualTokens) -> Float[Tensor, " visual"]:
        return tokens.attention(ahead=True)


def _evenly(first: int, num_layers: int) -> tuple[int, int, int]:
    step = max(1, (num_layers - first) // 3)
    return first, first + step, first + 2 * step
