"""The two values that cross the border between a pruning method and the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ..errors import VitcopError
from ..ops.segments import segment_ids, segment_sum, share_out, smallest_per_segment, starts_of, upload


@dataclass(frozen=True)
class EncoderSignal:
    """Attention in one layer of the vision encoder.

    Attributes:
        depth: where the layer stands, as a share of the encoder's depth; None is the layer whose features are used.
        received: ask for the attention received from all patches, even where there is a [CLS].
    """

    depth: float | None = None
    received: bool = False


SALIENCY = EncoderSignal()
"""What is always there: see `VisualTokens.saliency`."""


class Source(ABC):
    """The model at one stage, as far as methods may look at it: everything is worked out when it is asked for.

    `rows` are numbers among all visual tokens that entered the decoder, `slots` places in its hidden states. What
    is asked for is said in `VisualTokens`.
    """

    @abstractmethod
    def hidden_states(self, slots: Int[Tensor, " visual"]) -> Float[Tensor, "visual hidden"]: ...

    @abstractmethod
    def embeddings(self, rows: Int[Tensor, " visual"]) -> Float[Tensor, "visual hidden"]: ...

    @abstractmethod
    def keys(
        self, rows: Int[Tensor, " visual"], slots: Int[Tensor, " visual"]
    ) -> Float[Tensor, "visual heads head_dim"]: ...

    @abstractmethod
    def encoder_signal(self, signal: EncoderSignal, rows: Int[Tensor, " visual"]) -> Float[Tensor, " visual"]: ...

    @abstractmethod
    def text(self) -> TextTokens: ...

    @abstractmethod
    def attention(
        self, tokens: VisualTokens, weights: Float[Tensor, " text"] | None, ahead: bool
    ) -> Float[Tensor, " visual"]: ...

    @abstractmethod
    def queries_ahead(
        self, layer: int, slots: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens query_heads head_dim"]: ...

    @abstractmethod
    def keys_ahead(self, layer: int, slots: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens heads head_dim"]: ...

    @abstractmethod
    def probed_keys(self, tokens: VisualTokens, layer: int) -> Float[Tensor, "visual heads head_dim"]: ...

    @abstractmethod
    def without_rotary(
        self, keys: Float[Tensor, "tokens heads head_dim"], slots: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens heads head_dim"]: ...

    @abstractmethod
    def final_norm(self, states: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows hidden"]: ...


@dataclass(frozen=True, eq=False)
class Entrance:
    """All visual tokens as they came to the decoder, before any was dropped: one row per token, image after image.

    Attributes:
        images: the image of each row, counted over the whole batch.
        index: number of the token among all visual tokens of its image.
        segments: the grid (picture, tile or frame) of each row, counted over the whole batch. A picture's
            tiles may lie across each other in the prompt.
        grid: row and column of the token in its grid, as fractions of the height and the width.
        shapes: rows and columns, in tokens, of each grid of each image.
        sizes: visual tokens of each grid of each image; less than its rows times its columns where padding was cut
            away.
        by_grid: the rows in the order of `segments`; None where they stand in that order.
    """

    images: Int[Tensor, " entered"]
    index: Int[Tensor, " entered"]
    segments: Int[Tensor, " entered"]
    grid: Float[Tensor, "entered 2"]
    shapes: tuple[tuple[tuple[int, int], ...], ...]
    sizes: tuple[tuple[int, ...], ...]
    by_grid: Int[Tensor, " entered"] | None

    @staticmethod
    def of(
        segments: Int[Tensor, " entered"],
        grid: Float[Tensor, "entered 2"],
        shapes: tuple[tuple[tuple[int, int], ...], ...],
        sizes: tuple[tuple[int, ...], ...],
        device: torch.device,
    ) -> Entrance:
        """Numbered on the host, so that the device gets it all at once.

        Args:
            segments, grid, shapes, sizes: as above, on the CPU.
            device: where the table shall be.
        """
        lengths = [sum(image) for image in sizes]
        images = segment_ids(lengths, segments.device)
        index = torch.arange(len(segments), device="cpu") - starts_of(lengths, segments.device)[images]
        columns = [images, index, segments]
        if (segments.diff() < 0).any():
            columns.append(segments.argsort(stable=True))
        table = upload(torch.stack(columns), device)
        by_grid = table[3] if len(table) > 3 else None
        return Entrance(table[0], table[1], table[2], upload(grid, device), shapes, sizes, by_grid)

    def to(self, device: torch.device) -> Entrance:
        """The table on another device."""
        return replace(
            self,
            images=self.images.to(device),
            index=self.index.to(device),
            segments=self.segments.to(device),
            grid=self.grid.to(device),
            by_grid=None if self.by_grid is None else self.by_grid.to(device),
        )


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """A table of the visual tokens alive at one stage: one row per token, image after image.

    Here and wherever methods are concerned, an image is a picture or a video: what shares one budget. What
    the table has of the model is worked out when it is read, and costs nothing where it is not.

    Attributes:
        layer: the decoder layer about to run; 0 is the entrance of the language model.
        stage: number of this stage in the schedule, from 0.
        lengths: rows per image. Images are in the order of the prompts they stand in.
        rows: where `entrance` has each token.
        slots: where `source` has each token.
        entrance: all visual tokens that came to the decoder.
        source: the model at this stage; None once it is over.
        labels: what earlier stages wrote about each token, e.g. its cluster.
        counts: how many tokens that entered each one stands for, itself included; None where each stands for itself.
            It is followed for methods that calibrate attention by it.
        key_cutoff: density cutoff that suits the keys of this vision encoder, None if it is not known.
        normalised_keys: whether the decoder normalises its keys (QK-norm), which takes most of the meaning
            from their norms.
    """

    layer: int
    stage: int
    lengths: tuple[int, ...]
    rows: Int[Tensor, " visual"]
    slots: Int[Tensor, " visual"]
    entrance: Entrance
    source: Source | None = None
    labels: dict[str, Shaped[Tensor, " visual"]] = field(default_factory=dict)
    counts: Float[Tensor, " visual"] | None = None
    key_cutoff: float | None = None
    normalised_keys: bool = False

    @cached_property
    def images(self) -> Int[Tensor, " visual"]:
        """The image of each row, counted over the whole batch."""
        return self._entered(self.entrance.images)

    @cached_property
    def index(self) -> Int[Tensor, " visual"]:
        """Number of the token among all visual tokens that its image had."""
        return self._entered(self.entrance.index)

    @cached_property
    def segments(self) -> Int[Tensor, " visual"]:
        """The grid (picture, tile or frame) of each row, counted over the whole batch."""
        return self._entered(self.entrance.segments)

    @cached_property
    def grid(self) -> Float[Tensor, "visual 2"]:
        """Row and column of the token in its grid, as fractions of the height and the width."""
        return self._entered(self.entrance.grid)

    def _entered(self, column: Tensor) -> Tensor:
        """The rows of a column of `entrance`; they ascend, so that as many as there are is all of them."""
        return column if len(self.rows) == len(column) else column[self.rows]

    @property
    def segment_sizes(self) -> tuple[tuple[int, ...], ...]:
        """Visual tokens that each grid of each image had."""
        return self.entrance.sizes

    @property
    def _model(self) -> Source:
        if self.source is None:
            raise VitcopError("This stage is over: read what is needed of its table while `select` runs.")
        return self.source

    @cached_property
    def hidden_states(self) -> Float[Tensor, "visual hidden"]:
        """What enters `layer`."""
        return self._model.hidden_states(self.slots)

    @cached_property
    def embeddings(self) -> Float[Tensor, "visual hidden"]:
        """What the projector made of each token, as it came to the decoder."""
        return self._model.embeddings(self.rows)

    @property
    def entered_lengths(self) -> tuple[int, ...]:
        """Visual tokens that each image had at first."""
        return tuple(map(sum, self.entrance.sizes))

    @property
    def entered(self) -> Float[Tensor, "entered hidden"]:
        """`embeddings` of all visual tokens that came to the decoder, dropped ones included."""
        return self._model.embeddings(torch.arange(sum(self.entered_lengths), device=self.rows.device))

    @cached_property
    def keys(self) -> Float[Tensor, "visual heads head_dim"]:
        """Keys of the layer just before: of the vision encoder at layer 0 (as its key projection gives them), later
        of decoder layer `layer - 1` (as they are in the KV cache).
        """
        return self._model.keys(self.rows, self.slots)

    @property
    def saliency(self) -> Float[Tensor, " visual"]:
        """Attention that the token's patches got in the encoder layer whose features the model uses: from [CLS], or,
        where there is none, from all patches.
        """
        return self.encoder_signal(SALIENCY)

    def encoder_signal(self, signal: EncoderSignal) -> Float[Tensor, " visual"]:
        """One of the method's `encoder_signals`.

        Raises:
            VitcopError: the layer was not watched when the images were encoded.
        """
        return self._model.encoder_signal(signal, self.rows)

    @cached_property
    def text(self) -> TextTokens:
        """The text tokens behind each image. How many there are is read from the device."""
        return self._model.text()

    def attention(
        self, weights: Float[Tensor, " text"] | None = None, *, ahead: bool = False
    ) -> Float[Tensor, " visual"]:
        """Softmax attention that each token gets in decoder layer `layer - 1`, mean over heads.

        Only the rows asked for are worked out, from the layer's own norm, projections and rotary embedding, so
        that any attention backend will do. The softmax runs over all that the layer let the query see.

        Args:
            weights: of the rows of `text`, added up for each image; None asks for the last token of the prompt.
            ahead: look at `layer` itself, which has not run yet; its keys are worked out as well.

        Raises:
            VitcopError: at the entrance, before which there is no attention.
            UnsupportedModelError: the decoder's attention is of a kind whose rows cannot be worked out.
        """
        return self._model.attention(self, weights, ahead)

    def queries_ahead(self, slots: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens query_heads head_dim"]:
        """Queries that `layer`, which has not run yet, would make of tokens of this table or of `text`.

        By its own norm and projection, and without rotary embedding, so that they know no places; at the entrance, too.

        Args:
            slots: of the tokens.

        Raises:
            UnsupportedModelError: the decoder's attention is of a kind whose rows cannot be worked out.
        """
        return self._model.queries_ahead(self.layer, slots)

    def keys_ahead(self, slots: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens heads head_dim"]:
        """The keys that go with `queries_ahead`; each head of them serves a group of query heads, one after another."""
        return self._model.keys_ahead(self.layer, slots)

    def probed_keys(self, layer: int) -> Float[Tensor, "visual heads head_dim"]:
        """Keys that decoder layer `layer - 1` would make of these tokens, without rotary embedding, if each image stood
        by itself: right behind the token that prompts begin with, and with no tokens but those of this table.

        What stands behind an image changes nothing in the keys of its tokens; what stands before it does. All layers
        before that one are run for it, at the entrance.

        Raises:
            VitcopError: at another stage than the entrance, or where the decoder has no such layer.
            UnsupportedModelError: the layers of this decoder cannot be run like this.
        """
        return self._model.probed_keys(self, layer)

    def without_rotary(
        self, keys: Float[Tensor, "tokens heads head_dim"], slots: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens heads head_dim"]:
        """Keys of a decoder layer, of this table or of `text`, turned back: as they would be at position 0.

        What depends on single channels, as an L1 norm, else depends on how much padding stands before a prompt.
        """
        return self._model.without_rotary(keys, slots)

    def final_norm(self, states: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows hidden"]:
        """Hidden states after the norm that stands behind the decoder's last layer."""
        return self._model.final_norm(states)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each grid of the batch, as `segments` counts them."""
        return tuple(shape for image in self.entrance.shapes for shape in image)

    @property
    def cells(self) -> Int[Tensor, "visual 2"]:
        """Row and column of each token in its grid."""
        shapes = upload(self.shapes, self.grid.device)[self.segments]
        return (self.grid * shapes + 1e-3).long()

    def groups(
        self, group: Int[Tensor, " visual"], stands: Bool[Tensor, " visual"], budget: Sequence[int]
    ) -> Int[Tensor, " visual"]:
        """The `merge` of a selection in which every token is averaged into the one that stands for its group.

        Tokens of images that keep all theirs are left alone, and so is a group of one.

        Args:
            group: number of each token's group, counted in the order of the tokens that stand for them; -1 for none.
            stands: which tokens stand for a group, and are kept.
            budget: tokens to keep of each image.
        """
        slot = torch.where(stands, stands.cumsum(0) - 1, -1)
        count = sum(budget)
        number = torch.where(group < 0, count, group)
        slot_of_group = slot.new_full((count + 1,), -1).scatter_reduce(0, number, slot, "amax")
        size = segment_sum(torch.ones_like(number), number, count + 1)
        kept_whole = [n == length for n, length in zip(budget, self.lengths, strict=True)]
        alone = (size[number] == 1) | (group < 0) | upload(kept_whole, group.device)[self.images]
        return torch.where(alone, -1, slot_of_group[number])

    def quotas(self, budget: Sequence[int]) -> list[int]:
        """`shares_of_grids`, grid after grid as `segments` counts them."""
        return [quota for share in self.shares_of_grids(budget) for quota in share]

    def shares_of_grids(self, budget: Sequence[int]) -> list[list[int]]:
        """Of the budget of each image the share of each of its grids, in proportion to their tokens.

        Whole numbers by the largest remainder, earlier grids first.

        Raises:
            VitcopError: tokens have been dropped before, of which grids is not known on the host.
        """
        self._check_whole()
        return [share_out(n, sizes) for n, sizes in zip(budget, self.segment_sizes, strict=True)]

    def _check_whole(self) -> None:
        if self.lengths != self.entered_lengths:
            raise VitcopError(
                "A method that shares its budget over tiles and frames must choose among all tokens; make it the first "
                "stage."
            )

    @property
    def by_grid(self) -> Int[Tensor, " visual"]:
        """The rows, grid after grid: tiles may lie across each other in the prompt.

        Raises:
            VitcopError: as of `shares_of_grids`.
        """
        self._check_whole()
        order = self.entrance.by_grid
        return torch.arange(len(self.rows), device=self.rows.device) if order is None else order

    def smallest_of_grids(self, values: Shaped[Tensor, " visual"], quotas: Sequence[int]) -> Int[Tensor, " kept"]:
        """The `quotas[i]` rows of smallest value of every grid `i`, grid after grid; ascending in each.

        All visual tokens must be there.
        """
        sizes, order = [size for image in self.segment_sizes for size in image], self.entrance.by_grid
        if order is None:
            return smallest_per_segment(values, sizes, quotas)
        return order[smallest_per_segment(values[order], sizes, quotas)]

    def take(self, keep: Int[Tensor, " kept"], lengths: Sequence[int]) -> VisualTokens:
        """The table of the rows `keep`, of which `lengths[i]` belong to image `i`."""
        return replace(self._map(lambda column: column[keep]), lengths=tuple(lengths))

    def to(self, device: torch.device) -> VisualTokens:
        """The table on another device."""
        if self.rows.device == device:
            return self
        return replace(self._map(lambda column: column.to(device)), entrance=self.entrance.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> VisualTokens:
        labels = {name: change(values) for name, values in self.labels.items()}
        counts = None if self.counts is None else change(self.counts)
        return replace(self, rows=change(self.rows), slots=change(self.slots), labels=labels, counts=counts)


@dataclass(frozen=True, eq=False)
class TextTokens:
    """The text tokens behind each image: one row per token, image after image.

    Separators are no text, nor is what stands between the tokens of an image; markers behind its last token are.
    Where a prompt has several images, the text behind the last of them is behind each of them, and has a row for
    each.

    Attributes:
        lengths: rows per image.
        embeddings: as they came to the decoder.
        hidden_states: what enters the decoder layer about to run.
        keys: of the decoder layer just before, as they are in the KV cache; None at the entrance.
        slots: where the decoder's hidden states have each token.
    """

    lengths: tuple[int, ...]
    embeddings: Float[Tensor, "text hidden"]
    hidden_states: Float[Tensor, "text hidden"]
    keys: Float[Tensor, "text heads head_dim"] | None
    slots: Int[Tensor, " text"]

    @property
    def images(self) -> Int[Tensor, " text"]:
        """The image of each row."""
        return segment_ids(self.lengths, self.slots.device)


@dataclass(frozen=True, eq=False)
class Selection:
    """What a method decides about a table of visual tokens.

    Attributes:
        keep: ascending rows of the table that stay.
        merge: for every row of the table the slot in `keep` that it is averaged into, -1 if it is not.
            A kept row takes part in its own average only if its entry names its own slot.
        reduction: what a slot that others merge into becomes: the `"mean"` of its group, or its own
            hidden state plus that mean (`"add_mean"`).
        labels: new labels over the rows of the table, carried to later stages.
    """

    keep: Int[Tensor, " kept"]
    merge: Int[Tensor, " visual"] | None = None
    reduction: Literal["mean", "add_mean"] = "mean"
    labels: dict[str, Shaped[Tensor, " visual"]] = field(default_factory=dict)

    def check_shapes(self, rows: int, kept: int) -> None:
        """Raise unless the tensors are of the shapes and types that a table of `rows` rows asks for, `kept` to be kept.

        Raises:
            VitcopError: they are not.
        """
        columns = {"keep": (self.keep, kept)} | {name: (column, rows) for name, column in self.labels.items()}
        if self.merge is not None:
            columns["merge"] = self.merge, rows
        for name, (column, length) in columns.items():
            if not isinstance(column, Tensor) or column.shape != (length,):
                raise VitcopError(f"A selection's {name} must be a tensor of shape ({length},).")
        if self.keep.dtype != torch.int64 or (self.merge is not None and self.merge.dtype != torch.int64):
            raise VitcopError("A selection's keep and merge must be integer indices.")

    def clamped(self, rows: int) -> Selection:
        """The selection with no row or slot out of range, which a GPU would not survive."""
        merge = None if self.merge is None else self.merge.clamp(-1, len(self.keep) - 1)
        return replace(self, keep=self.keep.clamp(0, rows - 1), merge=merge)

    def to(self, device: str) -> Selection:
        """What is to be kept and merged, on another device."""
        return replace(self, keep=self.keep.to(device), merge=None if self.merge is None else self.merge.to(device))

    def allows(self, lengths: Sequence[int], budget: Sequence[int]) -> bool:
        """Whether the selection keeps its promises: ascending rows, as many of each image as its budget says, and
        merges within an image that is pruned.

        Reads the tensors, and so waits for the device that they are on.

        Args:
            lengths: rows per image.
            budget: rows to keep of each.
        """
        keep, merge, device = self.keep, self.merge, self.keep.device
        images, kept_images = segment_ids(lengths, device), segment_ids(budget, device)
        known = keep.clamp(0, len(images) - 1)
        valid = (keep.diff() > 0).all() & (keep == known).all() & (images[known] == kept_images).all()
        if merge is not None:
            slot = merge.clamp(0, len(keep) - 1)
            shrinks = upload([after < before for before, after in zip(lengths, budget, strict=True)], device)
            valid &= ((merge == -1) | ((merge == slot) & (kept_images[slot] == images) & shrinks[images])).all()
        return bool(valid)


def merge_hidden_states(
    hidden_states: Float[Tensor, "visual hidden"], selection: Selection
) -> Float[Tensor, "kept hidden"]:
    """Hidden states of the kept tokens, after the tokens merged into them are taken in.

    Sums run in float32 at least, so that large groups do not lose small members in half precision.
    """
    kept = hidden_states[selection.keep]
    if selection.merge is None:
        return kept
    slots = len(kept)
    target = torch.where(selection.merge < 0, slots, selection.merge)
    wide = torch.promote_types(hidden_states.dtype, torch.float32)
    total = kept.new_zeros(slots + 1, kept.shape[1], dtype=wide)
    total = total.index_add(0, target, hidden_states.to(wide))[:slots]
    size = target.new_zeros(slots + 1).index_add(0, target, torch.ones_like(target))[:slots, None]
    mean = total / size.clamp(min=1)
    if selection.reduction == "add_mean":
        return (kept.to(wide) + mean).to(kept.dtype)  # a slot that nothing merges into has a mean of zero
    return torch.where(size > 0, mean.to(kept.dtype), kept)


def merge_counts(counts: Float[Tensor, " visual"] | None, selection: Selection) -> Float[Tensor, " kept"]:
    """How many tokens each kept one stands for, once those that are merged into it count with it.

    Args:
        counts: before that; None where each stands for itself.
    """
    merge, slots = selection.merge, len(selection.keep)
    kept = torch.ones(slots, device=selection.keep.device) if counts is None else counts[selection.keep]
    if merge is None:
        return kept
    if counts is None:
        counts = torch.ones(len(merge), device=merge.device)
    taken = counts.new_zeros(slots + 1).index_add(0, torch.where(merge < 0, slots, merge), counts)[:slots]
    if selection.reduction == "mean":  # of which a kept token that is not in its own group is no part
        return torch.where(taken > 0, taken, kept)
    in_group = merge[selection.keep] == torch.arange(slots, device=merge.device)
    return torch.where(in_group, taken, kept + taken)
