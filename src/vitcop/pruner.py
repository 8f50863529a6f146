"""What a pruning method is: immutable settings, a schedule, and a pure choice among visual tokens."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor

from .errors import BudgetError, VitcopError, unknown_name
from .ops.segments import smallest_per_segment
from .tokens import Selection, VisualTokens

Positions = Literal["compact", "keep"]
P = TypeVar("P", bound="Pruner")

# The visual tokens and decoder layers of LLaVA-1.5-7B, for which the literature gives its settings.
LITERATURE_TOKENS, LITERATURE_LAYERS = 576, 32


@dataclass(frozen=True)
class Description:
    """A row of the table of methods.

    Attributes:
        paper: its short title or name, with the venue.
        year: in which it was published; None where there is no paper.
        where: the stages.
        signal: what tokens are ranked or grouped by.
        merges: whether tokens are merged, and not only dropped.
        rows: softmax rows that are recomputed, since no method may ask for attention maps.
    """

    paper: str
    year: int | None
    where: str
    signal: str
    merges: bool
    rows: str = "none"


class Pruner(ABC):
    """A pruning method. Subclasses are frozen dataclasses: the fields are the method's configuration.

    `retention` means the same for every method: the share of an image's visual tokens that is alive,
    averaged over all decoder layers.
    """

    name: ClassVar[str]
    """What the command line and JSON call the method: its class in lower case, unless it says otherwise."""

    described: ClassVar[Description]
    """The method in the words of the table of methods."""

    presets: ClassVar[dict[str, dict[int, dict[int, int]]]] = {}
    """Name -> what the literature calls the setting by, in tokens -> decoder layer -> tokens alive from it on, on
    LLaVA-1.5-7B."""

    positions: Positions = "keep"
    """Whether the tokens that survive stage 0 keep their positions or are numbered anew, without gaps."""

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    @abstractmethod
    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        """Decoder layer -> tokens of an image of `num_tokens` alive from that layer on.

        Layer 0 is the entrance of the language model. Counts never rise with the layer.

        Args:
            num_tokens: visual tokens of one image.
            num_layers: decoder layers.
            first_layer: the earliest layer, besides 0, before which this decoder lets tokens be dropped.

        Raises:
            BudgetError: the settings leave no valid schedule for an image and a decoder of this size.
        """

    @abstractmethod
    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        """Choose exactly `budget[i]` tokens of every image `i`.

        An image whose budget equals its number of tokens must be left as it is, unmerged.
        """

    @classmethod
    def preset(cls: type[P], name: str, *, tokens: int, **settings: Any) -> P:
        """The method at the retention that a setting of the literature really averages.

        Args:
            name: one of `presets`.
            tokens: what the literature calls the setting by, on LLaVA-1.5-7B.
            settings: of the method, besides its retention.

        Raises:
            VitcopError: the method has no such preset.
        """
        if name not in cls.presets:
            raise VitcopError(unknown_name(f"preset of {cls.name}", name, cls.presets))
        schedules = cls.presets[name]
        if tokens not in schedules:
            known = ", ".join(map(str, sorted(schedules)))
            raise VitcopError(f"Preset {name!r} of {cls.name} is for {known} tokens; got {tokens}.")
        return cls(retention=preset_retention(schedules[tokens]), **settings)  # type: ignore[call-arg]

    def to_dict(self) -> dict[str, Any]:
        """The method's name and settings as plain values; `from_dict` reads them back."""
        if not dataclasses.is_dataclass(self):
            raise VitcopError(f"{type(self).__name__} must be a dataclass, whose fields are its settings.")
        return {"method": self.name, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @staticmethod
    def from_dict(settings: dict[str, Any]) -> Pruner:
        """The method that `to_dict` described.

        Raises:
            VitcopError: the method or one of its settings is not known, or a value is out of range.
        """
        from .methods import METHODS

        name, values = settings.get("method"), {k: v for k, v in settings.items() if k != "method"}
        if not isinstance(name, str) or name not in METHODS:
            raise VitcopError(unknown_name("method", name, METHODS))
        method = METHODS[name]
        known = [f.name for f in dataclasses.fields(method)]  # type: ignore[arg-type]
        for value_name in values:
            if value_name not in known:
                raise VitcopError(unknown_name(f"setting of {name}", value_name, known))
        try:
            return method(**values)
        except TypeError as error:
            raise VitcopError(f"A setting of {name} is of the wrong type: {error}.") from error

    @staticmethod
    def from_json(text: str) -> Pruner:
        try:
            settings = json.loads(text)
        except json.JSONDecodeError as error:
            raise VitcopError(f"This is not JSON: {error}.") from error
        if not isinstance(settings, dict):
            raise VitcopError(f"A method in JSON is an object with its name and settings, not {text!r}.")
        return Pruner.from_dict(settings)


class ScorePruner(Pruner):
    """A method that keeps the tokens of highest score and merges nothing."""

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Float[Tensor, " visual"]:
        """How much each token is worth keeping; only the order within an image counts."""

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        return Selection(smallest_per_segment(-self.score(tokens), tokens.lengths, budget))


def preset_retention(schedule: Mapping[int, int]) -> float:
    """The share of visual tokens that a schedule of `Pruner.presets` averages over the decoder layers."""
    layers = sorted(schedule)
    alive = LITERATURE_TOKENS * layers[0]
    for layer, following in zip(layers, [*layers[1:], LITERATURE_LAYERS], strict=True):
        alive += schedule[layer] * (following - layer)
    return alive / (LITERATURE_TOKENS * LITERATURE_LAYERS)


def check_retention(retention: float) -> None:
    """Raise unless `retention` is a share of tokens that can be kept."""
    if not 0 < retention <= 1:
        raise BudgetError(f"retention is a share of the visual tokens, above 0 and at most 1; got {retention:.4g}.")


def one_stage_budget(retention: float, layer: int, num_tokens: int, num_layers: int) -> dict[int, int]:
    """The schedule that drops once, before `layer`, and averages `retention` over all layers.

    Solves `layer * N + (L - layer) * k = retention * N * L` for k.

    Raises:
        BudgetError: the decoder has no such layer, or the layers before it alone exceed the retention.
    """
    if not 0 <= layer < num_layers:
        raise BudgetError(f"layer={layer} is not one of the {num_layers} decoder layers; use 0 to {num_layers - 1}.")
    kept = (retention * num_layers - layer) * num_tokens / (num_layers - layer)
    smallest = (layer * num_tokens + num_layers - layer) / (num_layers * num_tokens)
    if retention < smallest * (1 - 1e-9):
        raise BudgetError(
            f"retention={retention:.4g} is below {smallest:.4g}, the smallest that dropping once before layer "
            f"{layer} of {num_layers} can average with {num_tokens} visual tokens; raise it or prune earlier."
        )
    return {layer: max(1, round(kept))}
