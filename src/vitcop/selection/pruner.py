"""What a pruning method is: immutable settings, a schedule, and a pure choice among visual tokens."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor

from ..errors import BudgetError, VitcopError, check_retention, unknown_name
from ..ops.segments import smallest_per_segment
from .schedule import average_retention, solve
from .stage_shape import StageShape
from .tokens import EncoderSignal, Selection, TextTokens, VisualTokens

Positions = Literal["compact", "keep"]
SmallImages = Literal["floor", "refuse"]
"""What becomes of images so small that one token in each stage is more than the retention: see `checked_budgets`."""
P = TypeVar("P", bound="Pruner")

LITERATURE_TOKENS, LITERATURE_LAYERS = 576, 32
"""Of LLaVA-1.5-7B, for which the literature gives its settings."""


@dataclass(frozen=True)
class Description:
    """A method in the words of the table of methods.

    Attributes:
        where: before which decoder layers it prunes; the entrance is layer 0.
        signal: what it chooses by.
        merges: whether dropped tokens leave something in others.
        rows: softmax rows of attention that are worked out for it, if any.
        venue, year, arxiv: of its paper, if there is one.
    """

    where: str
    signal: str
    merges: bool = False
    rows: str = ""
    venue: str = ""
    year: int | None = None
    arxiv: str = ""


class Selector(ABC):
    """A choice among visual tokens, as one stage makes it. Subclasses are frozen dataclasses."""

    name: ClassVar[str]
    """What the command line and JSON call it: its class in lower case, unless it says otherwise."""

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    @property
    def encoder_signals(self) -> tuple[EncoderSignal, ...]:
        """What `select` reads by `VisualTokens.encoder_signal`: these layers are watched while images are encoded."""
        return ()

    @abstractmethod
    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        """Choose exactly `budget[i]` tokens of every image `i`.

        An image whose budget equals its number of tokens must be left as it is, unmerged.
        """

    def selection_flops(self, stage: StageShape) -> int:
        """Floating point operations of the matrix products that `select` needs at one stage of one image.

        Norms, sums and sorting are none; what is read of the encoder or of a layer is, by what `StageShape` says of it.
        """
        return 0

    def to_dict(self) -> dict[str, Any]:
        """The method's name and settings as plain values; `from_dict` reads them back."""
        if not dataclasses.is_dataclass(self):
            raise VitcopError(f"{type(self).__name__} must be a dataclass, whose fields are its settings.")
        return {"method": self.name, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())


class Pruner(Selector):
    """A pruning method: a choice and its schedule. The fields of the dataclass are the method's configuration.

    `retention` means the same for every method: the share of an image's visual tokens that is alive,
    averaged over all decoder layers.
    """

    described: ClassVar[Description]
    presets: ClassVar[dict[str, dict[int, dict[int, int]]]] = {}
    """Settings of the literature: name -> the tokens that it speaks of -> the schedule that this means on
    LLaVA-1.5-7B, with 576 visual tokens and 32 layers: decoder layer -> tokens alive from that layer on."""

    retention: float
    """Share of the visual tokens alive, averaged over the decoder layers."""
    positions: Positions = "keep"
    """Whether the tokens that survive stage 0 keep their positions or are numbered anew, without gaps."""

    @classmethod
    def preset(cls: type[P], name: str, *, tokens: int, **settings: Any) -> P:
        """The method as the literature ran it, by the true average of the schedule that it means.

        Args:
            name: of a preset.
            tokens: visual tokens as the literature counts them, which often is not their average.
            settings: of the method, besides its retention.

        Raises:
            VitcopError: there is no such preset.
        """
        if name not in cls.presets:
            raise VitcopError(unknown_name(f"preset of {cls.name}", name, cls.presets))
        schedules = cls.presets[name]
        if tokens not in schedules:
            known = ", ".join(map(str, sorted(schedules)))
            raise VitcopError(f"Preset {name!r} of {cls.name} is for {known} tokens; got {tokens}.")
        return cls(**settings | {"retention": preset_retention(schedules[tokens])})

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

    @staticmethod
    def from_dict(settings: dict[str, Any]) -> Pruner:
        """The method that `to_dict` described.

        Raises:
            VitcopError: the method or one of its settings is not known, or a value is out of range.
        """
        from ..methods import METHODS
        from .pipeline import Pipeline

        method: Pruner = _made(settings, METHODS | {Pipeline.name: Pipeline})
        return method

    @staticmethod
    def from_json(text: str) -> Pruner:
        try:
            settings = json.loads(text)
        except json.JSONDecodeError as error:
            raise VitcopError(f"This is not JSON: {error}.") from error
        if not isinstance(settings, dict):
            raise VitcopError(f"A method in JSON is an object with its name and settings, not {text!r}.")
        return Pruner.from_dict(settings)


@dataclass(frozen=True)
class EntrancePruner(Pruner):
    """A method that drops once, entering the decoder, where what is left is numbered anew.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
    """

    positions = "compact"

    retention: float = 1 / 9

    def __post_init__(self) -> None:
        check_retention(self.retention)

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        return solve(self.name, self.retention, num_tokens, num_layers, [0])


@dataclass(frozen=True)
class LayerPruner(Pruner):
    """A method that drops once, before a decoder layer, by what the layer before shows.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        layer: the decoder layer before which tokens are dropped; None is 2, or the earliest possible one after that.
    """

    earliest: ClassVar[int] = 1
    """The first layer that `layer` may be."""

    retention: float = 1 / 9
    layer: int | None = None

    def __post_init__(self) -> None:
        check_retention(self.retention)
        check_layer(self, self.layer, self.earliest)

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        layer = max(2, first_layer) if self.layer is None else self.layer
        return solve(self.name, self.retention, num_tokens, num_layers, [layer])


class ScorePruner(Pruner):
    """A method that keeps the tokens of highest score and merges nothing."""

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Float[Tensor, " visual"]:
        """How much each token is worth keeping; only the order within an image counts."""

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        return Selection(smallest_per_segment(-self.score(tokens), tokens.lengths, budget))


def preset_retention(schedule: Mapping[int, int]) -> float:
    """True average retention of one of the `presets`."""
    return average_retention(schedule, LITERATURE_TOKENS, LITERATURE_LAYERS)


def checked_budgets(
    method: Pruner, num_tokens: int, num_layers: int, first_layer: int, small_images: SmallImages = "floor"
) -> dict[int, int]:
    """The method's schedule, in order of its layers, if a decoder can carry it out.

    Args:
        num_tokens, num_layers, first_layer: as of `budgets`.
        small_images: "refuse" raises where even one token in each stage averages more than the method's retention.

    Raises:
        BudgetError: it is none, or is refused.
    """
    budgets = dict(sorted(method.budgets(num_tokens, num_layers, first_layer).items()))
    for layer in budgets:
        if layer != 0 and not first_layer <= layer < num_layers:
            raise BudgetError(
                f"{method.name} would prune before layer {layer}; this model can be pruned at 0 and from {first_layer} "
                f"to {num_layers - 1}."
            )
    counts = [num_tokens, *budgets.values()]
    if not budgets or not all(isinstance(number, int) for number in (*budgets, *counts)):
        raise BudgetError(f"{method.name} must give whole numbers of tokens for whole layers, not {budgets}.")
    if min(counts) < 1 or any(after > before for before, after in pairwise(counts)):
        raise BudgetError(f"{method.name} gives an impossible schedule for {num_tokens} visual tokens: {budgets}.")
    least = average_retention(dict.fromkeys(budgets, 1), num_tokens, num_layers)
    if small_images == "refuse" and least > method.retention * (1 + 1e-9):
        raise BudgetError(
            f"retention={method.retention:.4g} is below {least:.4g}, what {method.name} averages over {num_layers} "
            f"layers with one of {num_tokens} visual tokens in each stage; raise it, leave out small images, or let "
            "them keep one token with small_images='floor'."
        )
    return budgets


def check_layer(method: Pruner, layer: int | None, earliest: int = 1) -> None:
    """Raise unless a decoder layer that the method can look at stands before `layer`, if one is given."""
    if layer is not None and layer < earliest:
        raise BudgetError(
            f"{type(method).__name__} looks at decoder layer {earliest - 1} or a later one, so that its layer is at "
            f"least {earliest}; got {layer}."
        )


def question(tokens: VisualTokens, method: type[Pruner]) -> TextTokens:
    """The text behind each image; raise where there is none, for a method that cannot do without."""
    if 0 in tokens.text.lengths:
        raise VitcopError(
            f"{method.__name__} looks at the text behind each image, and one has none; put the question there, or use "
            "a method that does not look at the text, such as ViTCoP by key norms."
        )
    return tokens.text


def _made(settings: dict[str, Any], kinds: Mapping[str, Any]) -> Any:
    """The selector that `to_dict` described, of one of some kinds, by name."""
    from ..methods import METHODS, STAGES
    from .pipeline import Pipeline, Stage

    name, values = settings.get("method"), {k: v for k, v in settings.items() if k != "method"}
    if not isinstance(name, str) or name not in kinds:
        raise VitcopError(unknown_name("method", name, kinds))
    kind = kinds[name]
    known = [f.name for f in dataclasses.fields(kind)]
    for value_name in values:
        if value_name not in known:
            raise VitcopError(unknown_name(f"setting of {name}", value_name, known))
    try:
        if kind is Pipeline:
            stages = [stage | {"selector": _made(stage["selector"], METHODS | STAGES)} for stage in values["stages"]]
            values["stages"] = tuple(Stage(**stage) for stage in stages)
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except (TypeError, KeyError, AttributeError) as error:
        raise VitcopError(f"A setting of {name} is missing or of the wrong type: {error}.") from error
