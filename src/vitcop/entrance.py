"""The entrance of the decoder: what a method leaves of images before any layer runs.

The engine's first stage is made of this. It is all that is needed where images are encoded by themselves, without a
prompt, a decoder or a KV cache, as by a server: `prune_features`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import UnsupportedModelError, VitcopError
from .models import Grids, ModelFamily, Observation, Patches
from .ops.segments import indices_of, segment_ids, starts_of, upload
from .selection.choice import choose, refuse_choice
from .selection.pruner import LITERATURE_LAYERS, Pruner, SmallImages, checked_budgets
from .selection.tokens import EncoderSignal, Entrance, Source, TextTokens, VisualTokens, merge_hidden_states

REHEARSED = (24, 24)
"""Rows and columns of the picture that `check_entrance` makes up."""
REHEARSED_SHARES = (1 / 9, 1 / 2, 8 / 9)
"""What is kept of it where that goes by the number of its tokens: what a method looks at can depend on the share."""


def entering_tokens(
    images: Sequence[Grids],
    slots: Int[Tensor, " entered"],
    *,
    source: Source | None = None,
    key_cutoff: float | None = None,
    normalised_keys: bool = False,
) -> VisualTokens:
    """The table of all visual tokens of some images.

    Args:
        images: the grids of each.
        slots: where `source` has each token.
        source, key_cutoff, normalised_keys: as of `VisualTokens`.
    """
    whole, device = Grids.join(images), slots.device
    return VisualTokens(
        layer=0,
        stage=0,
        lengths=tuple(image.num_tokens for image in images),
        rows=torch.arange(len(slots), device=device),
        slots=slots,
        entrance=Entrance.of(
            segments=whole.segments[whole.visual],
            grid=whole.places[whole.visual],
            shapes=tuple(image.shapes for image in images),
            sizes=tuple(image.sizes for image in images),
            device=device,
        ),
        source=source,
        key_cutoff=key_cutoff,
        normalised_keys=normalised_keys,
    )


def schedules(
    method: Pruner, family: ModelFamily, lengths: Sequence[int], small_images: SmallImages = "floor"
) -> list[dict[int, int]]:
    """Decoder layer -> tokens alive from that layer on, of each image.

    Args:
        lengths: visual tokens of each.
        small_images: as of `checked_budgets`.

    Raises:
        BudgetError: the decoder cannot carry one out, or it is refused.
    """
    layers, between = family.num_layers, family.stage_layers
    found = {n: checked_budgets(method, n, layers, between, small_images) for n in set(lengths)}
    return [found[n] for n in lengths]


Probe = Callable[[VisualTokens, Float[Tensor, "visual hidden"], int], Float[Tensor, "visual heads head_dim"]]
"""What `VisualTokens.probed_keys` gives, from a table, what enters the decoder of its tokens, and the layer."""


@dataclass(frozen=True, eq=False)
class EntranceSource(Source):
    """Images by themselves; see `selection.tokens.Source`. What is not there raises when it is read.

    Attributes:
        observation: what the vision encoder showed of them.
        features: one row per placeholder, image after image.
        visual: which of these are visual tokens.
        probe: runs decoder layers over images by themselves; None where there is no decoder at hand.
    """

    observation: Observation
    features: Float[Tensor, "placeholders hidden"]
    visual: Int[Tensor, " entered"]
    probe: Probe | None = None

    def hidden_states(self, slots: Tensor) -> Tensor:
        return self.features[slots]

    def embeddings(self, rows: Tensor) -> Tensor:
        return self.features[self.visual[rows]]

    def keys(self, rows: Tensor, slots: Tensor) -> Tensor:
        return self.observation.keys_of(rows)

    def encoder_signal(self, signal: EncoderSignal, rows: Tensor) -> Tensor:
        return self.observation.signal_of(signal, rows)

    def text(self) -> TextTokens:
        _refuse("text of the prompt")

    def attention(self, tokens: VisualTokens, weights: Tensor | None, ahead: bool) -> Tensor:
        _refuse("attention in the decoder")

    def queries_ahead(self, layer: int, slots: Tensor) -> Tensor:
        _refuse("decoder layer")

    def keys_ahead(self, layer: int, slots: Tensor) -> Tensor:
        _refuse("decoder layer")

    def probed_keys(self, tokens: VisualTokens, layer: int) -> Tensor:
        if self.probe is None:
            _refuse("decoder layer")
        return self.probe(tokens, self.hidden_states(tokens.slots), layer)

    def without_rotary(self, keys: Tensor, slots: Tensor) -> Tensor:
        _refuse("rotary embedding")

    def final_norm(self, states: Tensor) -> Tensor:
        _refuse("decoder layer")


@dataclass(frozen=True, eq=False)
class PrunedFeatures:
    """What is left of one image.

    Attributes:
        features: of what stays, separators included, in order.
        placeholders: numbers of these among all placeholders that the image had, ascending.
    """

    features: Float[Tensor, "left hidden"]
    placeholders: Int[Tensor, " left"]


def placeholders_left(
    method: Pruner, family: ModelFamily, images: Sequence[Grids], small_images: SmallImages = "floor"
) -> tuple[int, ...]:
    """How many placeholders a method leaves of each image, separators included: known before any is encoded.

    Args:
        images: as `ModelFamily.grids` gives them.
        small_images: as in `vitcop.prune`.

    Raises:
        UnsupportedModelError: the method does more than choose at the entrance.
        BudgetError: as from `schedules`.
    """
    return _left(images, _budget(method, family, images, small_images))


def prune_features(
    method: Pruner,
    family: ModelFamily,
    observation: Observation,
    features: Sequence[Float[Tensor, "_placeholders hidden"]],
    *,
    small_images: SmallImages = "floor",
    probe: Probe | None = None,
) -> list[PrunedFeatures]:
    """What a method leaves of images that are encoded by themselves: the rows that it would let enter the decoder.

    Which positions these get is left to the caller, as are features that the decoder takes in later layers (DeepStack).
    The host waits for the device once, at the end.

    Args:
        family: of the model, whose weights need not be there.
        observation: what the vision encoder showed of the images; of a method's `encoder_signals` as well.
        features: of each image, as the projector made them, one row per placeholder.
        small_images: as in `vitcop.prune`.
        probe: as of `EntranceSource`, for methods that ask for it.

    Raises:
        UnsupportedModelError: the method looks at text or at the decoder, or does more than choose at the entrance.
        VitcopError: there are other features than the sizes of the images say, or the selection is not valid.
        BudgetError: as from `schedules`.
    """
    images, lengths = observation.images, observation.lengths
    given = tuple(map(len, features))
    if given != observation.placeholders:
        raise VitcopError(
            f"There are {given} features of these images, where {observation.placeholders} were expected from their "
            "sizes; pass the features of all images of the observation, each with its separators."
        )
    budget = _budget(method, family, images, small_images)
    if budget == lengths:
        return [PrunedFeatures(rows, torch.arange(len(rows), device=rows.device)) for rows in features]
    left = _left(images, budget)
    table = torch.cat(tuple(features))
    device = table.device
    visual = upload(Grids.join(images).visual.nonzero()[:, 0], device)
    tokens = entering_tokens(
        images,
        visual,
        source=EntranceSource(observation, table, visual, probe),
        key_cutoff=family.key_cutoff,
        normalised_keys=family.normalises_keys,
    )
    chosen = choose(method, tokens, budget)
    selection = chosen.clamped(len(visual))
    kept = visual[selection.keep]
    stays = torch.ones(len(table), dtype=torch.bool, device=device).index_fill(0, visual, False)
    places = indices_of(stays.index_fill(0, kept, True), sum(left))
    rows = table.index_copy(0, kept, merge_hidden_states(table[visual], selection))[places]
    numbers = places - starts_of(given, device)[segment_ids(left, device)]
    if not chosen.to("cpu").allows(lengths, budget):
        refuse_choice(method, table[visual], lengths)
    return [PrunedFeatures(*image) for image in zip(rows.split(left), numbers.split(left), strict=True)]


def check_entrance(
    method: Pruner, *, num_layers: int = LITERATURE_LAYERS, normalised_keys: bool = False, probe: bool = False
) -> None:
    """Raise what `prune_features` would, before there is an image: for a server, which has to refuse when it starts.

    What a method looks at is not what it says, but what it does: it chooses among made-up tokens.

    Args:
        num_layers: of the decoder.
        normalised_keys: whether the decoder normalises its keys.
        probe: whether there will be one.

    Raises:
        UnsupportedModelError: the method looks at text or at the decoder, or does more than choose at the entrance.
        BudgetError: its settings leave no schedule for a decoder of so many layers.
    """
    image = Grids.full(REHEARSED)
    count = image.num_tokens
    rehearsed = [method]
    if method.tokens is not None:
        rehearsed = [method.of_image(round(method.tokens / share)) for share in REHEARSED_SHARES]
    found = [each.budgets(count, num_layers) for each in rehearsed]
    for budgets in found:
        _check_alone(method, budgets)
    generator = torch.Generator("cpu").manual_seed(0)

    def made_up(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device="cpu")

    patches = Patches(lambda: (made_up(2, 4), made_up()))
    observation = Observation((image,), patches, dict.fromkeys(method.encoder_signals, patches))
    rows = torch.arange(count, device="cpu")

    def keys(tokens: VisualTokens, features: Tensor, layer: int) -> Tensor:
        return made_up(2, 4)[tokens.rows]

    source = EntranceSource(observation, made_up(8), rows, keys if probe else None)
    tokens = entering_tokens([image], rows, source=source, normalised_keys=normalised_keys)
    for budgets in found:
        choose(method, tokens, (min(budgets[0], count - 1),))


def _budget(method: Pruner, family: ModelFamily, images: Sequence[Grids], small_images: SmallImages) -> tuple[int, ...]:
    """Visual tokens that stay of each image."""
    schedule = schedules(method, family, [image.num_tokens for image in images], small_images)
    for budgets in schedule:
        _check_alone(method, budgets)
    return tuple(budgets[0] for budgets in schedule)


def _left(images: Sequence[Grids], budget: Sequence[int]) -> tuple[int, ...]:
    """Placeholders that stay of each image, of which so many are visual tokens."""
    return tuple(image.placeholders - image.num_tokens + count for image, count in zip(images, budget, strict=True))


def _check_alone(method: Pruner, budgets: dict[int, int]) -> None:
    """Raise unless all that a method does is done before the decoder."""
    if list(budgets) != [0]:
        raise UnsupportedModelError(
            f"{method.name} prunes before decoder layers {', '.join(map(str, budgets))}, which cannot be done where "
            "images are encoded by themselves: use a method of the entrance alone, such as VisionZip."
        )
    if method.calibrate != "none":
        raise UnsupportedModelError(
            f"calibrate={method.calibrate!r} counts tokens in the attention of the decoder, which cannot be done where "
            "images are encoded by themselves: set calibrate='none'."
        )


def _refuse(what: str) -> NoReturn:
    raise UnsupportedModelError(
        f"There is no {what} to look at where images are encoded by themselves: use a method that looks at images "
        "alone, such as VisionZip."
    )
