"""What a pruning method is: immutable settings, a schedule, and a pure choice among visual tokens."""

from __future__ import annotations

import dataclasses
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor

from ..errors import BudgetError, VitcopError, check_retention, check_tokens, unknown_name
from ..ops.segments import upload
from . import registry
from .schedule import average_retention
from .settings import checked, given, settle
from .stage_shape import StageShape
from .tokens import EncoderSignal, Selection, TextTokens, VisualTokens

Positions = Literal["compact", "keep"]
Calibrate = Literal["none", "size", "distance"]
S = TypeVar("S", bound="Selector")
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
    """A choice among visual tokens, as one stage makes it. Subclasses are frozen dataclasses.

    To define one is enough: it is known by its `name` from then on. Its settings are checked when they are made: their
    types by their annotations, and their ranges in `__post_init__`, which first calls that of its base.
    """

    name: ClassVar[str]
    """What the command line and JSON call it: its class in lower case, unless it says otherwise."""
    earliest: ClassVar[int] = 0
    """The first decoder layer before which it sees what it chooses by; 0 is the entrance."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()
        registry.define(cls)

    def __post_init__(self) -> None:
        settle(self)

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

    @classmethod
    def named(cls: type[S], text: str) -> type[S]:
        """The class of this kind that a text names: `Pruner.named` finds any method, `ViTCoP.named` only ViTCoPs.

        Args:
            text: a known name, as "fastv", or a class of one's own as "file.py:Class" or "package.module:Class". The
                latter is looked for in the current folder, too. To read it is to run that code.

        Raises:
            VitcopError: there is none.
        """
        kind = registry.find(text, stages=not issubclass(cls, Pruner))
        if not (isinstance(kind, type) and issubclass(kind, Selector)):
            raise VitcopError(f"{text!r} is no method, since it does not derive from vitcop.{cls.__name__}.")
        if not issubclass(kind, cls):
            way_out = "put it into a Pipeline" if cls is Pruner else f"read it by {kind.__name__} or by Pruner"
            raise VitcopError(f"{text!r} is no {cls.__name__}; {way_out}.")
        if inspect.isabstract(kind):
            lacks = ", ".join(sorted(kind.__abstractmethods__))
            raise VitcopError(f"{text!r} is not complete: it does not define {lacks}.")
        if not dataclasses.is_dataclass(kind) or _undecorated(kind):
            raise VitcopError(f"{text!r} must be a dataclass, whose fields are its settings.")
        return kind

    def to_dict(self) -> dict[str, Any]:
        """The method and its settings as plain values; `from_dict` reads them back.

        The method is called by its name where that is known everywhere: in vitcop's own, and in packages that announce
        theirs. Others are called by where they stand, as "package.module:Class" or "/folder/file.py:Class".
        """
        if not dataclasses.is_dataclass(self) or _undecorated(type(self)):
            raise VitcopError(f"{type(self).__name__} must be a dataclass, whose fields are its settings.")
        values, plain = {name: getattr(self, name) for name in given(type(self))}, dataclasses.asdict(self)
        settings = {n: value.to_dict() if isinstance(value, Selector) else plain[n] for n, value in values.items()}
        return {"method": registry.written(type(self)), **settings}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls: type[S], settings: Mapping[str, Any]) -> S:
        """What `to_dict` described, if it is of this class: `Pruner.from_dict` takes any method.

        Its "method" is what `named` takes, and to read a class of one's own is to run its code.

        Raises:
            VitcopError: the method or one of its settings is not known or missing, or a value is of the wrong type or
                out of range.
        """
        name = settings.get("method")
        if not isinstance(name, str):
            raise VitcopError(f'A method is described by its name, as "method", and its settings; got {settings}.')
        return cls.named(name)._made({key: value for key, value in settings.items() if key != "method"})

    @classmethod
    def from_json(cls: type[S], text: str) -> S:
        """What `to_json` wrote; see `from_dict`."""
        try:
            settings = json.loads(text)
        except (ValueError, RecursionError) as error:  # of numbers too long and lists too deep for Python, too
            raise VitcopError(f"This is not JSON that can be read: {error}.") from error
        if not isinstance(settings, dict):
            raise VitcopError(f"A method in JSON is an object with its name and settings, not {text!r}.")
        return cls.from_dict(settings)

    @classmethod
    def _made(cls: type[S], settings: Mapping[str, Any]) -> S:
        fields = given(cls)
        for name in settings:
            if name == "retention" and name not in fields:
                raise VitcopError(
                    f"{cls.__name__} has no field `retention`, the average share of the tokens that a method is asked "
                    "to keep; give it one: `retention: float = 1 / 9`."
                )
            if name not in fields:
                raise VitcopError(unknown_name(f"setting of {cls.name}", name, fields))
        for name, field in fields.items():
            needed = field.default is field.default_factory is dataclasses.MISSING
            if needed and name not in settings:
                raise VitcopError(f"{cls.name} needs {name!r}, which was not given; Python and JSON can give it.")
        nested = {name for name, value in settings.items() if isinstance(value, Mapping) and "method" in value}
        read = {name: Selector.from_dict(settings[name]) for name in nested}
        return cls(**checked(cls, {**settings, **read}))


@dataclass(frozen=True)
class Pruner(Selector):
    """A pruning method: a choice and its schedule. The fields of the dataclass are the method's configuration.

    `retention` means the same for every method: the share of an image's visual tokens that is alive,
    averaged over all decoder layers.

    Attributes:
        tokens: at most so many of an image's visual tokens are alive, on average over the decoder layers and within one
            token, in the place of `retention`, which then does not count; an image that has no more is left as it is.
            `share_of` says what share of an image that is, which a choice that depends on it has to ask.
        positions: "keep" leaves each token that stage 0 keeps at its position in the unpruned prompt; "compact" numbers
            these tokens and the text anew, without gaps. None is the method's `default_positions`. The two are the same
            where nothing is dropped at the entrance, and where the family always keeps positions.
        calibrate: "size" lets a token that stands for s tokens, which were merged into it, count s times in the
            attention of all later layers: log s is added to its logits (RESTORE, arXiv 2606.01711). "distance" lets
            what is left of an image count more as well, up to twice, the further it stands from what looks at it, by
            rotary positions, which have to be kept. "none" does neither; None is the method's `default_calibrate`.

    Raises:
        VitcopError: a method that merges nothing is told to count what it merges, or one that numbers positions anew to
            count by distance.
        BudgetError: `tokens` is given beside a `retention` that is not the method's default.
    """

    described: ClassVar[Description]
    presets: ClassVar[dict[str, dict[int, dict[int, int]]]] = {}
    """Settings of the literature: name -> the tokens that it speaks of -> the schedule that this means on
    LLaVA-1.5-7B, with 576 visual tokens and 32 layers: decoder layer -> tokens alive from that layer on."""

    default_positions: ClassVar[Positions] = "keep"
    """What `positions` is unless it is given."""
    default_calibrate: ClassVar[Calibrate] = "none"
    """What `calibrate` is unless it is given."""

    tokens: int | None = dataclasses.field(default=None, kw_only=True)
    positions: Positions | None = dataclasses.field(default=None, kw_only=True)
    calibrate: Calibrate | None = dataclasses.field(default=None, kw_only=True)

    if TYPE_CHECKING:  # annotated in earnest, it would be a field without a default

        @property
        def retention(self) -> float:
            """Share of the visual tokens alive, averaged over the decoder layers."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        for name in ("positions", "calibrate"):
            if isinstance(vars(cls).get(name), str):
                raise VitcopError(f"`{name}` is a setting; the default of {cls.__name__} is its `default_{name}`.")
        if "tokens" in inspect.get_annotations(cls):
            raise VitcopError(
                f"`tokens` is a setting of every method, in the place of `retention`; call that of {cls.__name__} by "
                "another name."
            )
        super().__init_subclass__(**kwargs)  # what is refused has taken no name
        if "__repr__" not in vars(cls):  # or a dataclass would write its own, with all settings
            cls.__repr__ = Pruner.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """The method as one would write it: what is at its default is left out."""
        defaults = {name: field.default for name, field in given(type(self)).items()}
        defaults |= {"positions": self.default_positions, "calibrate": self.default_calibrate}
        settings = ((name, repr(getattr(self, name)), repr(default)) for name, default in defaults.items())
        changed = (f"{name}={value}" for name, value, default in settings if value != default)
        return f"{type(self).__qualname__}({', '.join(changed)})"

    def __post_init__(self) -> None:
        if self.positions is None:
            object.__setattr__(self, "positions", self.default_positions)
        if self.calibrate is None:
            object.__setattr__(self, "calibrate", self.default_calibrate)
        super().__post_init__()
        if self.tokens is not None:
            self._check_in_place_of_retention(self.tokens)
        described = getattr(self, "described", None)
        if self.calibrate != "none" and described is not None and not described.merges:
            raise VitcopError(
                f"{self.name} merges nothing that calibrate={self.calibrate!r} could count; leave it out, or say "
                "merges=True where the method is `described`."
            )
        if self.calibrate == "distance" and self.positions == "compact":
            raise VitcopError(
                "calibrate='distance' goes by the distances of the unpruned prompt, which positions='compact' changes; "
                "set positions='keep'."
            )
        if hasattr(self, "retention"):
            check_retention(self.retention)

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

    def to_dict(self) -> dict[str, Any]:
        settings = super().to_dict()
        del settings["tokens" if self.tokens is None else "retention"]  # what does not count
        return settings

    @classmethod
    def _made(cls: type[P], settings: Mapping[str, Any]) -> P:
        # Here it can be told, also of a retention that is the method's default.
        if settings.get("tokens") is not None and settings.get("retention") is not None:
            raise BudgetError(
                "retention is a share of the visual tokens of an image and tokens a number of them; give one."
            )
        return super()._made(settings)

    def share_of(self, num_tokens: int) -> float:
        """Share of the visual tokens of an image that is to be alive, averaged over the decoder layers.

        Args:
            num_tokens: that the image has.
        """
        if self.tokens is None:
            return self.retention
        return 1.0 if self.tokens >= num_tokens else self.tokens / num_tokens

    def of_image(self: P, num_tokens: int) -> P:
        """The method as it prunes images of so many visual tokens, by its `retention` alone."""
        if self.tokens is None:
            return self
        return dataclasses.replace(self, tokens=None, retention=self.share_of(num_tokens))  # type: ignore[call-arg]

    def _check_in_place_of_retention(self, tokens: int) -> None:
        """Raise unless a number of tokens can stand for the retention, and does so alone."""
        fields = given(type(self))
        if "retention" not in fields:
            raise BudgetError(f"{self.name} has no setting `retention` that tokens={tokens} could stand for.")
        check_tokens(tokens)
        retention = fields["retention"]
        default = retention.default if retention.default_factory is dataclasses.MISSING else retention.default_factory()
        if self.retention != default:
            raise BudgetError(
                f"retention={self.retention:.4g} is a share of the visual tokens of an image and tokens={tokens} a "
                "number of them; give one."
            )

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


def _undecorated(kind: type[Selector]) -> bool:
    """Whether what a class annotates itself is no field, also where its base is a dataclass."""
    return "__dataclass_params__" not in vars(kind) and bool(inspect.get_annotations(kind))


def preset_retention(schedule: Mapping[int, int]) -> float:
    """True average retention of one of the `presets`."""
    return average_retention(schedule, LITERATURE_TOKENS, LITERATURE_LAYERS)


def checked_budgets(
    method: Pruner, num_tokens: int, num_layers: int, stage_layers: range, small_images: SmallImages = "floor"
) -> dict[int, int]:
    """The method's schedule, in order of its layers, if a decoder can carry it out.

    Args:
        num_tokens, num_layers: as of `budgets`.
        stage_layers: layers, besides 0, before which this decoder lets tokens be dropped.
        small_images: "refuse" raises where even one token in each stage averages more than the method's retention.

    Raises:
        BudgetError: it is none, or is refused.
    """
    tokens, method = method.tokens, method.of_image(num_tokens)
    try:
        budgets = dict(sorted(method.budgets(num_tokens, num_layers, stage_layers.start).items()))
    except BudgetError as error:
        if tokens is None:
            raise
        raise BudgetError(f"With tokens={tokens}, of {num_tokens} visual tokens: {error}") from error
    for layer in budgets:
        if layer != 0 and layer not in stage_layers:
            others = f" and from {stage_layers.start} to {stage_layers.stop - 1}" if stage_layers else " alone"
            raise BudgetError(f"{method.name} would prune before layer {layer}; this model can be pruned at 0{others}.")
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


def check_layer(selector: Selector, layer: int | None) -> None:
    """Raise unless a decoder layer that the selector can look at stands before `layer`, if one is given."""
    if layer is None or layer >= selector.earliest:
        return
    name, earliest = type(selector).__name__, selector.earliest
    looks = f"{name} looks at decoder layer {earliest - 1} or a later one, so that" if earliest else f"Of {name},"
    raise BudgetError(f"{looks} the layer is at least {earliest}; got {layer}.")


def question(tokens: VisualTokens, method: type[Selector]) -> TextTokens:
    """The text behind each image; raise where there is none, for a method that cannot do without."""
    if 0 in tokens.text.lengths:
        raise VitcopError(
            f"{method.__name__} looks at the text behind each image, and one has none; put the question there, or use "
            "a method that does not look at the text, such as ViTCoP by key norms."
        )
    return tokens.text


def attention_of_text(tokens: VisualTokens, method: type[Selector]) -> Float[Tensor, " visual"]:
    """Attention to each token from the text behind its image, mean over that text; raise where there is none."""
    text = question(tokens, method)
    share = upload([1 / count for count in text.lengths], text.slots.device)
    return tokens.attention(share[text.images])
