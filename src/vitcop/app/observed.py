"""A method that lets itself be watched at what it chooses by."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..ops.saliency import key_norm
from ..selection.pruner import Pruner
from ..selection.stage_shape import StageShape
from ..selection.tokens import EncoderSignal, Selection, VisualTokens


@dataclass(frozen=True)
class Seen:
    """What the model showed of each visual token that came to a stage.

    Attributes:
        layer: of the stage.
        signal: what it is.
        values: by number of the token among those of the one image.
    """

    layer: int
    signal: str
    values: dict[int, float]


@dataclass(frozen=True)
class Observed(Pruner):
    """Another method, of one prompt with one image; what its stages could see is kept beside what they choose.

    Attributes:
        retention: the method's own.
        method: that chooses.
        seen: what came to each stage: saliency at the entrance, later the key norms of the layer before.
    """

    retention: float
    method: Pruner
    seen: list[Seen] = field(default_factory=list, compare=False)

    @staticmethod
    def of(method: Pruner) -> Observed:
        return Observed(method.retention, method, positions=method.positions, calibrate=method.calibrate)

    @property
    def encoder_signals(self) -> tuple[EncoderSignal, ...]:
        return self.method.encoder_signals

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        return self.method.budgets(num_tokens, num_layers, first_layer)

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        signal, values = ("key norm", key_norm(tokens.keys)) if tokens.layer else ("saliency", tokens.saliency)
        self.seen.append(Seen(tokens.layer, signal, _by_number(tokens.index, values)))
        return self.method.select(tokens, budget)

    def selection_flops(self, stage: StageShape) -> int:
        return self.method.selection_flops(stage)


def _by_number(index: Tensor, values: Tensor) -> dict[int, float]:
    return dict(zip(index.tolist(), values.float().tolist(), strict=True))
