"""Which images and videos stand where in a batch of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ..models import ModelFamily, Observation
from ..models.grids import Grids
from ..ops.segments import indices_of, upload


@dataclass(frozen=True, eq=False)
class Placeholders:
    """Where a batch of prompts has placeholders, and how many, read from the device once.

    Attributes:
        masks: of each modality, (batch, seq).
        counts: of each modality, per prompt.
        real: where there is a token and no padding, (batch, seq).
        prompt_lengths: tokens per prompt.
        hidden: placeholders that the attention mask hides.
        drafted: columns at the end that are no prompt, but a draft of its answer that came along (assisted decoding).
    """

    masks: dict[str, Tensor]
    counts: dict[str, list[int]]
    real: Tensor
    prompt_lengths: tuple[int, ...]
    hidden: int
    drafted: int = 0

    @staticmethod
    def of(masks: dict[str, Tensor], attention_mask: Tensor | None, drafted: int = 0) -> Placeholders:
        stacked = torch.stack(list(masks.values()))
        real = torch.ones_like(stacked[0]) if attention_mask is None else attention_mask.bool()
        read = torch.cat([stacked.sum(-1), real.sum(-1)[None], (stacked & ~real).sum((0, -1))[None]]).tolist()
        counts = dict(zip(masks, read, strict=False))
        return Placeholders(masks, counts, real, tuple(read[-2]), sum(read[-1]), drafted)

    @property
    def any(self) -> bool:
        return any(any(counts) for counts in self.counts.values())

    @cached_property
    def asked(self) -> Tensor:
        """Where there is a token of the prompt: neither padding nor drafted, (batch, seq)."""
        if not self.drafted:
            return self.real
        return self.real & (torch.arange(self.real.shape[1], device=self.real.device) < self.undrafted)

    def end_in_text(self, columns: int) -> bool:
        """Whether each prompt ends in so many columns of text; in front of its first token there may be padding."""
        text = self.real & ~torch.stack(list(self.masks.values())).any(0)
        return bool((text | (self.real.cumsum(1) == 0))[:, -columns:].all())

    @property
    def undrafted(self) -> int:
        """Prompt columns in front of what was drafted."""
        return self.real.shape[1] - self.drafted


def columns_behind(prompts: Tensor, tokens: Tensor) -> int:
    """How many columns `tokens` have behind these prompts; 0 where they are of other prompts.

    Args:
        prompts, tokens: ids (batch, seq) or embeddings (batch, seq, hidden).
    """
    width = prompts.shape[1] if prompts.ndim > 1 else 0
    begun = tokens[:, :width]
    # Compared only where there is more, as this waits for the device.
    if tokens.shape[1] <= width or begun.shape != prompts.shape:
        return 0
    return tokens.shape[1] - width if torch.equal(begun, prompts.to(tokens.device)) else 0


class Placed(NamedTuple):
    """All images, then all videos, each in the order of their prompts.

    Attributes:
        observation: what the encoder showed of them.
        rows: the row of the batch in which each stands.
        modalities: "image" or "video", of each.
        slots: where their visual tokens stand in the flattened prompts.
    """

    observation: Observation
    rows: tuple[int, ...]
    modalities: tuple[str, ...]
    slots: Tensor


def place_images(
    family: ModelFamily,
    prompts: Tensor,
    placeholders: Placeholders,
    observations: Mapping[str, Sequence[Observation]],
) -> Placed:
    """Find the prompts' images among what was observed.

    Args:
        prompts: ids (batch, seq) or embeddings (batch, seq, hidden).
        observations: of each modality, made by the vision encoder for this batch, in order.

    Raises:
        UnsupportedModelError: the placeholders do not match what was observed.
    """
    found: list[Observation] = []
    rows: list[int] = []
    modalities: list[str] = []
    slots: list[Tensor] = []
    for modality, mask in placeholders.masks.items():
        counts = placeholders.counts[modality]
        if not any(counts):
            continue
        observation, row_of = _images_of_rows(modality, observations[modality], counts)
        places = indices_of(mask.flatten(), sum(counts))
        visual = torch.cat([image.visual for image in observation.images])
        slots.append(places if visual.all() else places[upload(visual.nonzero()[:, 0], places.device)])
        if family.tiles_are_images:
            observation, row_of = _join_tiles(family, prompts, observation, row_of, places)
        found.append(observation)
        rows += row_of
        modalities += [modality] * len(row_of)
    return Placed(Observation.concatenate(found), tuple(rows), tuple(modalities), torch.cat(slots))


def _images_of_rows(
    modality: str, observations: Sequence[Observation], counts: Sequence[int]
) -> tuple[Observation, tuple[int, ...]]:
    """The observed images in the order of the prompts they stand in, and the row of the batch of each.

    `generate` repeats prompts, for beams or several answers, after their images were encoded: then each
    prompt's images stand in that many consecutive rows.

    Args:
        modality: what they are.
        observations: made by the vision encoder for this batch, in order.
        counts: placeholders that each row of the batch has.
    """
    if not observations:
        raise UnsupportedModelError(
            f"The prompt has {modality} placeholders, but its {modality}s did not come through the vision encoder of "
            "this pruned model: pass pixel_values, or make encoder outputs while the pruning is on."
        )
    seen = Observation.concatenate(observations)
    lengths = seen.placeholders
    repeats = sum(counts) // sum(lengths)
    spans: list[tuple[int, int]] = []
    rows: list[int] = []
    image = 0
    for row in range(0, len(counts), max(1, repeats)):
        first = image
        while image < len(lengths) and sum(lengths[first : image + 1]) <= counts[row]:
            image += 1
        for copy in range(row, row + repeats):
            if sum(lengths[first:image]) != counts[copy]:
                break
            spans.append((first, image))
            rows += [copy] * (image - first)
    if len(spans) != len(counts) or image != len(lengths):
        raise UnsupportedModelError(
            f"{sum(counts)} {modality} placeholders do not match the {sum(lengths)} visual tokens and separators of "
            f"{len(lengths)} {modality}s; pass all of what one call of the processor makes, with nothing cut off."
        )
    return (seen if repeats == 1 else seen.take(spans)), tuple(rows)


def _join_tiles(
    family: ModelFamily, prompts: Tensor, observation: Observation, rows: tuple[int, ...], places: Tensor
) -> tuple[Observation, tuple[int, ...]]:
    """Make one image of tiles that the encoder got as images of their own.

    Args:
        places: of all placeholders in the flattened prompts.
    """
    lengths = observation.placeholders
    firsts = places[upload([0, *accumulate(lengths)][:-1], places.device)].tolist()
    starts = [divmod(first, prompts.shape[1]) for first in firsts]
    images: list[list[Grids]] = []
    joined_rows: list[int] = []
    joined = family.joined(prompts, starts, lengths)
    for image, row, further in zip(observation.images, rows, joined, strict=True):
        if further:
            images[-1].append(image)
        else:
            images.append([image])
            joined_rows.append(row)
    return replace(observation, images=tuple(Grids.join(tiles) for tiles in images)), tuple(joined_rows)
