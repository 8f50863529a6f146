"""The two values that cross the border between a pruning method and the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from .errors import VitcopError
from .ops.segments import segment_ids


@dataclass(frozen=True)
class VisualTokens:
    """A table of the visual tokens alive at one stage: one row per token, image after image.

    Here and wherever methods are concerned, an image is a picture or a video: what shares one budget.

    Attributes:
        layer: the decoder layer about to run; 0 is the entrance of the language model.
        stage: number of this stage in the schedule, from 0.
        lengths: rows per image. Images are in the order of the prompts they stand in.
        hidden_states: what enters `layer`.
        keys: keys of the layer just before: of the vision encoder at layer 0 (as its key projection
            gives them), later of decoder layer `layer - 1` (as they are in the KV cache).
        index: number of the token among all visual tokens of its image.
        grid: row and column of the token in its grid, as fractions of the height and the width.
        saliency: attention that the token's patches received in the vision encoder.
        segments: the grid (picture, tile or frame) of each row, counted over the whole batch. A picture's
            tiles may lie across each other in the prompt.
        segment_sizes: visual tokens that each grid of each image had before pruning.
        labels: what earlier stages wrote about each token, e.g. its cluster.
        key_cutoff: density cutoff that suits the keys of this vision encoder, None if it is not known.
        normalised_keys: whether the decoder normalises its keys (QK-norm), which takes most of the meaning
            from their norms.
    """

    layer: int
    stage: int
    lengths: tuple[int, ...]
    hidden_states: Float[Tensor, "visual hidden"]
    keys: Float[Tensor, "visual heads head_dim"]
    index: Int[Tensor, " visual"]
    grid: Float[Tensor, "visual 2"]
    saliency: Float[Tensor, " visual"]
    segments: Int[Tensor, " visual"]
    segment_sizes: tuple[tuple[int, ...], ...]
    labels: dict[str, Shaped[Tensor, " visual"]] = field(default_factory=dict)
    key_cutoff: float | None = None
    normalised_keys: bool = False

    @property
    def images(self) -> Int[Tensor, " visual"]:
        """The image of each row, counted over the whole batch."""
        return segment_ids(self.lengths, self.index.device)

    def allows(self, selection: Selection, budget: Sequence[int]) -> Bool[Tensor, ""]:
        """Whether a selection keeps its promises, as a tensor that need not be read yet.

        Raises:
            VitcopError: its tensors are of the wrong shape or type.

        Rows out of range are not caught here: torch's own indexing refuses them.
        """
        rows, kept = len(self.index), sum(budget)
        if not isinstance(selection, Selection) or selection.reduction not in ("mean", "add_mean"):
            raise VitcopError("select must return a Selection, whose reduction is 'mean' or 'add_mean'.")
        keep, merge = selection.keep, selection.merge
        columns = {"keep": (keep, kept)} | {name: (column, rows) for name, column in selection.labels.items()}
        if merge is not None:
            columns["merge"] = merge, rows
        for name, (column, length) in columns.items():
            if not isinstance(column, Tensor) or column.shape != (length,):
                raise VitcopError(f"A selection's {name} must be a tensor of shape ({length},).")
        if keep.dtype != torch.int64 or (merge is not None and merge.dtype != torch.int64):
            raise VitcopError("A selection's keep and merge must be integer indices.")
        images = self.images
        kept_images = images[keep]
        valid = (keep.diff() > 0).all() & (keep >= 0).all()
        valid = valid & (kept_images == segment_ids(tuple(budget), keep.device)).all()
        if merge is not None:
            slot = merge.clamp(0, kept - 1)
            shrinks = torch.tensor([after < before for before, after in zip(self.lengths, budget, strict=True)])
            merged = (merge == slot) & (kept_images[slot] == images) & shrinks.to(images.device)[images]
            valid = valid & ((merge == -1) | merged).all()
        return valid

    def take(self, keep: Int[Tensor, " kept"], lengths: Sequence[int]) -> VisualTokens:
        """The table of the rows `keep`, of which `lengths[i]` belong to image `i`."""
        return replace(self._map(lambda column: column[keep]), lengths=tuple(lengths))

    def to(self, device: torch.device) -> VisualTokens:
        """The table on another device."""
        return self._map(lambda column: column.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> VisualTokens:
        return replace(
            self,
            hidden_states=change(self.hidden_states),
            keys=change(self.keys),
            index=change(self.index),
            grid=change(self.grid),
            saliency=change(self.saliency),
            segments=change(self.segments),
            labels={name: change(values) for name, values in self.labels.items()},
        )


@dataclass(frozen=True)
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
    merged = mean if selection.reduction == "mean" else kept.to(wide) + mean
    return torch.where(size > 0, merged.to(kept.dtype), kept)
