"""A method made of stages of other methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BudgetError, VitcopError
from .pruner import Pruner, Selector, check_layer
from .schedule import solve
from .settings import settle
from .stage_shape import StageShape
from .tokens import EncoderSignal, Selection, VisualTokens


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline.

    Attributes:
        selector: what chooses: a method that makes the same choice at every stage (`VisionZip()`, `KNorm()`), or a
            stage of another (`SalientClusters()`). A method's own retention, tokens, layers, positions and
            calibration do not count, but for a share that its choice itself depends on, as of `EarlyViTCoP`.
        layer: the decoder layer before which it runs; 0 is the entrance.
        share: tokens that it leaves, of all, as the pipeline's retention finds it in proportion to the other stages.

    What a selector reads as keys are those of the layer just before, as in `VisualTokens`.

    Raises:
        VitcopError: the method has several different stages, or looks at a layer that is not before this one.
    """

    selector: Selector
    layer: int
    share: float

    def __post_init__(self) -> None:
        settle(self)
        if hasattr(self.selector, "stages"):
            raise VitcopError(
                f"{type(self.selector).__name__} has several stages; take one of its `stages`, or use it alone."
            )
        check_layer(self.selector, self.layer)
        if not 0 < self.share <= 1:
            raise BudgetError(f"share is a part of the visual tokens, above 0 and at most 1; got {self.share:.4g}.")


@dataclass(frozen=True)
class Pipeline(Pruner):
    """Stages of different methods, one after another, on one schedule.

    The stages' shares say how they divide what is kept: all shrink, or grow, together until the average over decoder
    layers is `retention`.

    Attributes:
        stages: in order of their layers.
        retention: share of the visual tokens alive, averaged over the decoder layers.
        positions: "compact" numbers the tokens that enter the language model consecutively; "keep" leaves each at
            its place in the unpruned prompt.

    Example:
        VisionZip's choice at the entrance, then small key norms in the middle of 32 layers:

            Pipeline([Stage(VisionZip(), 0, 0.3), Stage(KNorm(), 16, 0.1)], retention=1 / 9)
    """

    stages: Sequence[Stage]
    retention: float = 1 / 9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages:
            raise VitcopError("A Pipeline needs at least one stage.")
        shares = [stage.share for stage in self.stages]
        if shares != sorted(shares, reverse=True):
            raise BudgetError(f"The shares of a Pipeline's stages cannot rise; got {shares}.")

    @property
    def encoder_signals(self) -> tuple[EncoderSignal, ...]:
        signals = (signal for stage in self.stages for signal in stage.selector.encoder_signals)
        return tuple(dict.fromkeys(signals))

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        layers, shares = [stage.layer for stage in self.stages], tuple(stage.share for stage in self.stages)
        return solve(self.name, self.retention, num_tokens, num_layers, layers, [shares])

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        return self.stages[tokens.stage].selector.select(tokens, budget)

    def selection_flops(self, stage: StageShape) -> int:
        return self.stages[stage.stage].selector.selection_flops(stage)

    def to_dict(self) -> dict[str, Any]:
        stages = [
            {"selector": stage.selector.to_dict(), "layer": stage.layer, "share": stage.share} for stage in self.stages
        ]
        return super().to_dict() | {"stages": stages}

    @classmethod
    def _made(cls, settings: Mapping[str, Any]) -> Pipeline:
        stages = settings.get("stages")
        read = {"stages": tuple(map(_read_stage, stages))} if isinstance(stages, Sequence) else {}
        return super()._made({**settings, **read})


def _read_stage(stage: Any) -> Stage:
    try:
        return Stage(**stage | {"selector": Selector.from_dict(stage["selector"])})
    except (TypeError, KeyError, AttributeError) as error:
        raise VitcopError(f"A stage in JSON has a selector, a layer and a share; got {stage!r}.") from error
