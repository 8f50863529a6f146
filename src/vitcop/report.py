"""What a pruned prompt kept, and what that saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor
from transformers import PretrainedConfig

from . import html
from .costs.closed_forms import kv_cache_bytes, prefill_flops
from .figures import figure
from .models.grids import Grids
from .selection.tokens import Selection, VisualTokens

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class StageReport:
    """One stage of the schedule, over all images of the batch.

    Attributes:
        layer: decoder layer before which it ran; 0 is the entrance of the language model.
        before, after: visual tokens of each image.
        index: number in its image of every token that came to the stage, image after image.
        keep: rows of `index` that stayed.
        merge: for every row of `index` the row of `keep` it was merged into, -1 for none; None if the
            stage merged nothing.
        cluster: cluster of every row of `index`, -1 for none, if the method has clustered them by then.
    """

    layer: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    index: Int[Tensor, " visual"]
    keep: Int[Tensor, " kept"]
    merge: Int[Tensor, " visual"] | None
    cluster: Int[Tensor, " visual"] | None

    @staticmethod
    def of(tokens: VisualTokens, selection: Selection, budget: tuple[int, ...], cluster: Tensor | None) -> StageReport:
        return StageReport(tokens.layer, tokens.lengths, budget, tokens.index, selection.keep, selection.merge, cluster)

    def kept(self, image: int = 0) -> list[int]:
        """Numbers, within the image, of the visual tokens that stayed."""
        return self.index[self.keep[self._stayed[image]]].tolist()

    def merged(self, image: int = 0) -> dict[int, list[int]]:
        """Tokens that took others in -> the tokens whose mean went into them, themselves included if they took part."""
        groups: dict[int, list[int]] = {}
        if self.merge is None:
            return groups
        rows = self._came[image]
        sources, slots = self.index[rows], self.merge[rows]
        taking_part = slots >= 0
        targets = self.index[self.keep[slots[taking_part]]]
        for source, target in zip(sources[taking_part].tolist(), targets.tolist(), strict=True):
            groups.setdefault(target, []).append(source)
        return {token: group for token, group in groups.items() if group != [token]}

    def clusters(self, image: int = 0) -> dict[int, int]:
        """Visual token -> its cluster, for the tokens that came to the stage and are in one."""
        if self.cluster is None:
            return {}
        rows = self._came[image]
        pairs = zip(self.index[rows].tolist(), self.cluster[rows].tolist(), strict=True)
        return {token: cluster for token, cluster in pairs if cluster >= 0}

    @property
    def where(self) -> str:
        """In words."""
        return f"before layer {self.layer}" if self.layer else "entering the decoder"

    def __repr__(self) -> str:
        merged = "" if self.merge is None else ", the others merged"
        return f"StageReport({self.where}: {sum(self.after)} of {sum(self.before)} visual tokens kept{merged})"

    # Where each image stands among the rows is worked out once, for batches of hundreds of images.
    @cached_property
    def _came(self) -> list[slice]:
        return _slices(self.before)

    @cached_property
    def _stayed(self) -> list[slice]:
        return _slices(self.after)


@dataclass(frozen=True, eq=False)
class Report:
    """One prefill: a batch of prompts and the images in them.

    Attributes:
        method: name of the pruning method.
        num_layers: decoder layers that hold keys and values, or a state, of their own.
        images: the grids (tiles, frames) of each image or video, and where its visual tokens stand in them.
            All images of the batch come before all videos.
        modalities: "image" or "video", of each.
        rows: the row of the batch in which each stands.
        stages: what each stage did. Empty if every token stayed.
        columns: first decoder layer of each stretch -> the prompt column in every slot, -1 for padding, from there on.
        row_lengths: first decoder layer of each stretch -> tokens per row held from that layer on.
        prompt_lengths: tokens per row of the unpruned prompt, padding left out.
        decoder_config: of the language model, for the costs.
        bytes_per_value: of a key or value as the model computes it.
    """

    method: str
    num_layers: int
    images: tuple[Grids, ...]
    modalities: tuple[str, ...]
    rows: tuple[int, ...]
    stages: tuple[StageReport, ...]
    columns: dict[int, Int[Tensor, "batch width"]]
    row_lengths: dict[int, tuple[int, ...]]
    prompt_lengths: tuple[int, ...]
    decoder_config: PretrainedConfig
    bytes_per_value: int

    @cached_property
    def image_lengths(self) -> tuple[int, ...]:
        """Visual tokens of each image, before pruning."""
        return tuple(image.num_tokens for image in self.images)

    def visual_tokens(self, image: int = 0) -> list[int]:
        """Visual tokens of an image alive in each decoder layer."""
        alive = [self.image_lengths[image]] * self.num_layers
        for stage in self.stages:
            alive[stage.layer :] = [stage.after[image]] * (self.num_layers - stage.layer)
        return alive

    @property
    def all_visual_tokens(self) -> list[int]:
        """Visual tokens of all images together alive in each decoder layer."""
        return [sum(alive) for alive in zip(*map(self.visual_tokens, range(len(self.images))), strict=True)]

    def tokens(self, row: int = 0) -> list[int]:
        """All tokens of a row, text included, alive in each decoder layer."""
        alive = [self.prompt_lengths[row]] * self.num_layers
        for layer, lengths in self.row_lengths.items():
            alive[layer:] = [lengths[row]] * (self.num_layers - layer)
        return alive

    def average_retention(self, image: int = 0) -> float:
        """Share of an image's visual tokens that was alive, averaged over the decoder layers."""
        return sum(self.visual_tokens(image)) / (self.num_layers * self.image_lengths[image])

    @property
    def overall_retention(self) -> float:
        """Share of the visual tokens of all images that was alive, averaged over the decoder layers."""
        return sum(self.all_visual_tokens) / (self.num_layers * sum(self.image_lengths))

    @property
    def positions(self) -> Int[Tensor, "batch width"]:
        """Prompt column of every position of the logits and of the last hidden state, -1 for padding."""
        return self.positions_at(self.num_layers - 1)

    def positions_at(self, layer: int) -> Int[Tensor, "batch width"]:
        """Prompt column of every position in decoder layer `layer`, -1 for padding."""
        if not 0 <= layer < self.decoder_config.num_hidden_layers:
            raise IndexError(f"there is no layer {layer} in {self.decoder_config.num_hidden_layers}")
        return self.columns[max(first for first in self.columns if first <= layer)]

    @property
    def prefill_flops(self) -> tuple[int, int]:
        """Floating point operations of the decoder layers, dense and pruned, over the batch; see `costs`."""
        dense = [prefill_flops(self.decoder_config, [n] * self.num_layers) for n in self.prompt_lengths]
        pruned = [prefill_flops(self.decoder_config, self.tokens(row)) for row in range(len(dense))]
        return sum(dense), sum(pruned)

    @property
    def kv_cache_bytes(self) -> tuple[int, int]:
        """Bytes of the prompt's keys and values, dense and pruned, over the batch; unquantised and without padding."""
        dense = [[n] * self.num_layers for n in self.prompt_lengths]
        pruned = [self.tokens(row) for row in range(len(dense))]
        return (
            sum(kv_cache_bytes(self.decoder_config, n, self.bytes_per_value) for n in dense),
            sum(kv_cache_bytes(self.decoder_config, n, self.bytes_per_value) for n in pruned),
        )

    def overlay(
        self,
        pictures: Image.Image | Sequence[Image.Image],
        processor: Any = None,
        pixel_values: Tensor | None = None,
        heading: Sequence[str] = (),
    ) -> Image.Image:
        """Draw what every stage left of all images, as `vitcop run --overlay` does.

        Args:
            pictures: all that the prompts were about, in the order of `images`, or the frames of their only video.
            processor: of transformers, that made the prompts. Some cut off the margins of pictures, and what is drawn
                without one is wrong for these.
            pixel_values: as the processor made them; needed where it cuts pictures into tiles.
            heading: lines that stand above, such as the question and the answer.

        Raises:
            VitcopError: these are other pictures than the prompts had, or tiles without what they were made by.
        """
        from .pictures.overlay import overlay_of_prompt
        from .pictures.seen import pictures_of_grids

        several = pictures if isinstance(pictures, Sequence) else [pictures]
        return overlay_of_prompt(pictures_of_grids(several, self, processor, pixel_values), self, heading)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        dense_flops, flops = self.prefill_flops
        dense_bytes, held_bytes = self.kv_cache_bytes
        return {
            "method": self.method,
            "num_layers": self.num_layers,
            "images": [
                {
                    "row": self.rows[i],
                    "tokens": count,
                    "modality": self.modalities[i],
                    "grids": [list(shape) for shape in self.images[i].shapes],
                    "average_retention": self.average_retention(i),
                    "stages": [
                        {
                            "layer": stage.layer,
                            "before": stage.before[i],
                            "after": stage.after[i],
                            "kept": stage.kept(i),
                            "merged": {str(token): group for token, group in stage.merged(i).items()},
                        }
                        for stage in self.stages
                    ],
                }
                for i, count in enumerate(self.image_lengths)
            ],
            "prefill_flops": {"dense": dense_flops, "pruned": flops},
            "kv_cache_bytes": {"dense": dense_bytes, "pruned": held_bytes},
        }

    @property
    def summary(self) -> str:
        """The whole batch in one line."""
        (dense_flops, flops), (dense_bytes, held) = self.prefill_flops, self.kv_cache_bytes
        return (
            f"{self.method}: {self.overall_retention:.1%} of {sum(self.image_lengths)} visual tokens on average; "
            f"decoder prefill {figure(flops / 1e9)} of {figure(dense_flops / 1e9)} GFLOP ({flops / dense_flops:.1%}), "
            f"KV cache {figure(held / 1e6)} of {figure(dense_bytes / 1e6)} MB ({held / dense_bytes:.1%})"
        )

    def __repr__(self) -> str:
        stages = "1 stage" if len(self.stages) == 1 else f"{len(self.stages)} stages"
        return (
            f"Report({self.method}: {self.overall_retention:.1%} of {sum(self.image_lengths)} visual tokens, {stages})"
        )

    def __str__(self) -> str:
        layers, rows = self._table()
        stages = "".join(f"{f'layer {layer}':>10}" for layer in layers)
        lines = [self.summary, f"{'':9}    row  tokens  {stages}   average    (tokens alive from each layer on)"]
        for name, row, count, *alive, average in rows:
            lines.append(f"{name:9}  {row:>5}  {count:>6}  {''.join(f'{each:>10}' for each in alive)}   {average:>6}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same as a table and as figures, as notebooks show it."""
        layers, rows = self._table()
        head = ["", "row", "tokens", *(f"from layer {layer}" for layer in layers), "average"]
        total = sum(self.image_lengths)
        figures = figures_of(self.all_visual_tokens, total, self.prefill_flops, self.kv_cache_bytes)
        return f"<div>{html.table(head, rows, self.summary)}{figures}</div>"

    def _table(self) -> tuple[list[int], list[list[object]]]:
        """Layers before which stages stand; of each image its name, row, tokens, what each stage left, and average."""
        rows: list[list[object]] = []
        for i, (count, row) in enumerate(zip(self.image_lengths, self.rows, strict=True)):
            alive = [stage.after[i] for stage in self.stages]
            rows.append([f"{self.modalities[i]} {i}", row, count, *alive, f"{self.average_retention(i):.1%}"])
        return [stage.layer for stage in self.stages], rows


def _slices(lengths: Sequence[int]) -> list[slice]:
    """Of things that stand one behind the other, so many of each."""
    ends = list(accumulate(lengths))
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def figures_of(alive: Sequence[int], total: int, flops: tuple[int, int], held: tuple[int, int]) -> str:
    """What a prompt kept and what that saved, as HTML.

    Args:
        alive: visual tokens in each decoder layer.
        total: visual tokens before pruning.
        flops: of the decoder layers, dense and pruned.
        held: bytes of keys and values, dense and pruned.
    """
    names = "dense", "pruned"
    return (
        html.steps(f"Visual tokens alive in each decoder layer, of {total}", alive, total)
        + html.bars("Decoder prefill", [(n, v, f"{figure(v / 1e9)} GFLOP") for n, v in zip(names, flops, strict=True)])
        + html.bars("KV cache", [(n, v, f"{figure(v / 1e6)} MB") for n, v in zip(names, held, strict=True)])
    )
