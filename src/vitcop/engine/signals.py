"""What methods may see of the model at one stage, worked out when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import UnsupportedModelError, VitcopError
from ..models import ModelFamily, Observation
from ..models.decoder import Rotary, final_norm, layer_keys, layer_queries, map_rotary, rotated, turned_back
from ..ops.gather import gather_slots
from ..ops.saliency import attention_rows
from ..ops.segments import segment_ids, upload
from ..selection.tokens import EncoderSignal, Source, TextTokens, VisualTokens
from .layout import Layout
from .placement import Placeholders
from .probe import probed_keys

# Values of the largest temporary of several softmax rows: 64 MiB in float32.
_BLOCK_VALUES = 2**24


@dataclass(frozen=True, eq=False)
class Prompts:
    """A batch of prompts as it came to the decoder, for the signals that look at text.

    Attributes:
        embeddings: of all prompt columns.
        visual: where the visual tokens stood in the flattened prompts.
        lengths: visual tokens per image.
        rows: the row of the batch in which each image stands.
        placeholders: where the prompts have placeholders and padding.
        blocks: by kind of layer, as of `ModelFamily.attention_blocks`.
        prefix: whether these are what prompts begin with, and text that is not known yet comes behind them.
    """

    embeddings: Float[Tensor, "batch seq hidden"]
    visual: Int[Tensor, " visual"]
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    placeholders: Placeholders
    blocks: Mapping[str, Int[Tensor, "batch seq"]]
    prefix: bool = False

    def blocks_of(
        self, kind: str, columns: Int[Tensor, "rows held"], rows: slice = slice(None)
    ) -> Int[Tensor, "rows held"] | None:
        """The block of each token that layers of a kind hold of some prompts; None where all see what is before them.

        Args:
            columns: of the prompts.
            rows: which prompts these are.
        """
        blocks = self.blocks.get(kind)
        return None if blocks is None else blocks[rows].to(columns.device).gather(1, columns)

    @cached_property
    def is_text(self) -> Bool[Tensor, "batch seq"]:
        """Prompt columns that hold neither a placeholder nor padding, nor what was drafted."""
        return self.placeholders.asked & ~torch.stack(list(self.placeholders.masks.values())).any(0)

    @cached_property
    def text(self) -> tuple[tuple[int, ...], Int[Tensor, " text"]]:
        """How many text tokens stand behind each image, and their places in the flattened prompts."""
        (batch, width), device = self.is_text.shape, self.visual.device
        image, visual = segment_ids(self.lengths, device), self.visual % width
        first = torch.full((len(self.lengths),), width, device=device).scatter_reduce(0, image, visual, "amin")
        last = torch.full((len(self.lengths),), -1, device=device).scatter_reduce(0, image, visual, "amax")
        rows, column = upload(self.rows, device), torch.arange(width, device=device)
        # What a processor writes between the tokens of an image (row breaks, tile markers) is part of it.
        inside = (column >= first[:, None]) & (column <= last[:, None])
        inside = torch.zeros(batch, width, device=device).index_add(0, rows, inside.float()) > 0
        text = self.is_text.to(device) & ~inside
        behind = text[rows] & (column > last[:, None])
        image, column = behind.nonzero(as_tuple=True)
        return tuple(behind.sum(1).tolist()), rows[image] * width + column


@dataclass(frozen=True, eq=False)
class LayerInput:
    """What a decoder layer got.

    Attributes:
        layer: its number.
        hidden_states: its argument, of the tokens that it holds.
        rotary: by which it turns them; None if it does not.
        projected: what it made of them and would not make again; see `keep_projected`.
    """

    layer: int
    hidden_states: Float[Tensor, "batch width hidden"]
    rotary: Rotary | None
    projected: Mapping[str, Float[Tensor, "batch width channels"]] = field(default_factory=dict)

    def at(self, slots: Int[Tensor, "batch rows"]) -> LayerInput:
        """What it got of the tokens in some slots."""
        return self._map(lambda part: gather_slots(part, slots, -2))

    def of_row(self, row: slice) -> LayerInput:
        """What it got of a row of the batch; rotary embeddings may be the same for all rows."""
        return self._map(lambda part: part if len(part) == 1 else part[row])

    def to(self, device: torch.device) -> LayerInput:
        return self._map(lambda part: part.to(device))

    def queries(self, layer: nn.Module) -> Float[Tensor, "batch width heads head_dim"]:
        return layer_queries(layer, self.hidden_states, self.rotary, self.projected)

    def keys(self, layer: nn.Module) -> Float[Tensor, "batch width kv_heads head_dim"]:
        return layer_keys(layer, self.hidden_states, self.rotary, self.projected)

    def _map(self, change: Callable[[Tensor], Tensor]) -> LayerInput:
        rotary = None if self.rotary is None else map_rotary(self.rotary, change)
        projected = {name: change(made) for name, made in self.projected.items()}
        return LayerInput(self.layer, change(self.hidden_states), rotary, projected)


@dataclass(frozen=True, eq=False)
class Attended:
    """A decoder layer whose keys and attention a stage sees: the nearest before it that has any.

    Attributes:
        got: its arguments.
        layout: which prompt columns it held.
        keys: that it has made; None until it has run.
        moved: slots of its own in which the tokens stood that have been left since; None if they are the same.
    """

    got: LayerInput
    layout: Layout
    keys: Float[Tensor, "batch kv_heads width head_dim"] | None = None
    moved: Int[Tensor, "batch left"] | None = None

    def followed(self, slots: Int[Tensor, "batch left"]) -> Attended:
        """The same layer behind a stage that has left these slots."""
        return replace(self, moved=slots if self.moved is None else self.moved.gather(1, slots))

    def slots(self, slots: Int[Tensor, " some"]) -> Int[Tensor, " some"]:
        """Its own slots of tokens, by those in which they stand now; of the flattened batch."""
        if self.moved is None:
            return slots
        return slots // self.moved.shape[1] * self.layout.width + self.moved.flatten()[slots]

    def keys_of(self, slots: Int[Tensor, " some"]) -> Float[Tensor, "some kv_heads head_dim"]:
        """Keys of tokens, by the slots in which they stand now."""
        assert self.keys is not None
        row, column = self.slots(slots) // self.layout.width, self.slots(slots) % self.layout.width
        return self.keys[row, :, column]

    def of_row(self, row: slice) -> Attended:
        """A row of the batch by itself, by its own slots."""
        assert self.keys is not None
        return Attended(self.got.of_row(row), self.layout.of_rows(row), self.keys[row])

    def to(self, device: torch.device) -> Attended:
        keys, moved = (None if part is None else part.to(device) for part in (self.keys, self.moved))
        return Attended(self.got.to(device), self.layout.to(device), keys, moved)


@dataclass(frozen=True, eq=False)
class StageSource(Source):
    """The model just before a stage; see `tokens.Source`.

    Attributes:
        states: what enters the layer about to run.
        observation: what the vision encoder showed.
        layout: which prompt columns `states` hold.
        attended: the layer before; None at the entrance.
        ahead: makes what the layer about to run would get, if nothing were dropped; None at the entrance.
        doubts: takes, of keys that were worked out, how far they are from what the layer made of each row, and the norm
            of that, to be looked at when no stage waits for it any more.
    """

    family: ModelFamily
    prompts: Prompts
    observation: Observation
    layout: Layout
    states: Float[Tensor, "batch width hidden"]
    attended: Attended | None = None
    ahead: Callable[[], LayerInput] | None = None
    doubts: list[Float[Tensor, "2 batch"]] = field(default_factory=list)

    def hidden_states(self, slots: Tensor) -> Tensor:
        return self.states.flatten(0, 1)[slots]

    def embeddings(self, rows: Tensor) -> Tensor:
        return self._embedded(self.prompts.visual[rows.to(self.prompts.visual.device)])

    def keys(self, rows: Tensor, slots: Tensor) -> Tensor:
        return self.observation.keys_of(rows) if self.attended is None else self.attended.keys_of(slots)

    def encoder_signal(self, signal: EncoderSignal, rows: Tensor) -> Tensor:
        return self.observation.signal_of(signal, rows)

    def queries_ahead(self, layer: int, slots: Tensor) -> Tensor:
        return layer_queries(self.family.attending_layer(layer), self.hidden_states(slots)[None], None, {})[0]

    def keys_ahead(self, layer: int, slots: Tensor) -> Tensor:
        return layer_keys(self.family.attending_layer(layer), self.hidden_states(slots)[None], None, {})[0]

    def probed_keys(self, tokens: VisualTokens, layer: int) -> Tensor:
        if self.attended is not None:
            raise VitcopError(
                "Images are run by themselves at the entrance alone; later stages have keys of the prompt."
            )
        return probed_keys(self.family, tokens, self.hidden_states(tokens.slots), layer)

    def without_rotary(self, keys: Tensor, slots: Tensor) -> Tensor:
        attended = self._checked
        own, got = attended.slots(slots), attended.got
        if got.rotary is None:
            return keys
        rotary = map_rotary(got.rotary, lambda part: part.expand(len(self.states), -1, -1).flatten(0, 1)[own][None])
        return rotated(self.family.layers[got.layer], keys[None].transpose(1, 2), turned_back(rotary))[0]

    def final_norm(self, states: Tensor) -> Tensor:
        decoder = self.family.decoder
        return final_norm(decoder, decoder.config)(states).to(states.device)

    def text(self) -> TextTokens:
        self._check_known("the text behind images")
        lengths, places = self.prompts.text
        slots = self._slots_of(places.to(self.states.device))
        return TextTokens(
            lengths=lengths,
            embeddings=self._embedded(places),
            hidden_states=self.hidden_states(slots),
            keys=None if self.attended is None else self.attended.keys_of(slots),
            slots=slots,
        )

    def attention(self, tokens: VisualTokens, weights: Tensor | None, ahead: bool) -> Tensor:
        self._check_known("the attention of the text behind images")
        if self.attended is None or self.ahead is None:
            raise VitcopError(
                "There is no attention before decoder layer 0, where this stage stands; prune before a later layer."
            )
        attended = self._checked
        if ahead:
            got = self.ahead()
            keys = got.keys(self.family.attending_layer(got.layer)).transpose(1, 2)
            attended = Attended(got, self.layout, keys)
        if weights is None:
            return self._rows(attended, self._last_in(attended.layout))[:, 0].flatten()[attended.slots(tokens.slots)]
        return self._weighted(attended, tokens, weights)

    def _check_known(self, what: str) -> None:
        """Raise where what depends on text that is not known yet would be looked at."""
        if self.prompts.prefix:
            raise UnsupportedModelError(
                f"This method looks at {what}, so that what it keeps of them depends on the question, and no prefix "
                "can be cached for all questions: ask whole prompts, or use a method that looks at images alone, such "
                "as ViTCoP by key norms."
            )

    def _last_in(self, layout: Layout) -> Int[Tensor, "batch 1"]:
        """Slot of each prompt's last token. Behind it there may be a draft, and padding until something is dropped."""
        placeholders, alive = self.prompts.placeholders, layout.alive
        if placeholders.drafted:
            alive = alive & (layout.columns < placeholders.undrafted)
        alive = alive.to(self.states.device)
        return (alive * torch.arange(layout.width, device=alive.device)).amax(1, keepdim=True)

    @cached_property
    def _checked(self) -> Attended:
        """The layer before. That we make the keys of it which the layer made is a doubt, to be looked at."""
        assert self.attended is not None and self.attended.keys is not None
        got, last = self.attended.got, self._last_in(self.attended.layout)
        made = got.at(last).keys(self.family.attending_layer(got.layer))[:, 0].float()
        held = self.attended.keys[torch.arange(len(last), device=last.device), :, last[:, 0]].float()
        self.doubts.append(torch.stack([(made - held).flatten(1).norm(dim=1), held.flatten(1).norm(dim=1)]))
        return self.attended

    def _weighted(self, attended: Attended, tokens: VisualTokens, weights: Tensor) -> Tensor:
        """Attention from the text behind each image, image by image, so that no row of one is padded for another."""
        width, received = attended.layout.width, []
        visual = attended.slots(tokens.slots).split(tokens.lengths)
        text = attended.slots(tokens.text.slots).split(tokens.text.lengths)
        block = max(1, _BLOCK_VALUES // (self.family.decoder.config.num_attention_heads * width))
        for row, own, slots, weight in zip(
            self.prompts.rows, visual, text, weights.split(tokens.text.lengths), strict=True
        ):
            of_row = slice(row, row + 1)
            part = attended.of_row(of_row)
            total = slots.new_zeros(width, dtype=torch.float32)
            for some, share in zip((slots % width).split(block), weight.split(block), strict=True):
                total = total + (share[:, None] * self._rows(part, some[None], of_row)[0]).sum(0)
            received.append(total[own % width])
        return torch.cat(received)

    def _rows(
        self, attended: Attended, slots: Int[Tensor, "batch rows"], prompts: slice = slice(None)
    ) -> Float[Tensor, "batch rows width"]:
        """Attention of the tokens in `slots` to all that a layer held of some prompts."""
        got, layout = attended.got, attended.layout.to(slots.device)
        module: Any = self.family.layers[got.layer]
        queries, columns, alive = got.at(slots).queries(module), layout.columns, layout.alive
        assert attended.keys is not None
        visible = torch.arange(columns.shape[1], device=slots.device) <= slots[..., None]
        kind, mates = self.family.layer_kinds[got.layer], None
        blocks = self.prompts.blocks_of(kind, columns, prompts)
        if blocks is not None:
            asking = blocks.gather(1, slots)[..., None]
            mates = (asking >= 0) & (asking == blocks[:, None])
            visible = visible | mates
        if kind == "sliding_attention":
            behind = columns.gather(1, slots)[..., None] - columns[:, None]
            near = behind < self.family.decoder.config.sliding_window
            visible = visible & (near if mates is None or self.family.windows_cut_blocks else near | mates)
        visible = visible & alive[:, None]
        added = None
        if layout.counts is not None:
            added = layout.counts.logits(self.family, got.layer, columns.gather(1, slots), columns)
        return attention_rows(queries, attended.keys, visible, module.self_attn.scaling, added)

    def _slots_of(self, places: Tensor) -> Tensor:
        """Slots of tokens, none of which was dropped, by their places in the flattened prompts."""
        layout, (batch, width) = self.layout.to(places.device), self.prompts.embeddings.shape[:2]
        row = torch.arange(batch, device=places.device)[:, None]
        held = torch.where(layout.alive, row * width + layout.columns, batch * width).flatten()
        slots = torch.arange(len(held), device=places.device)
        return torch.full((batch * width + 1,), -1, device=places.device).scatter(0, held, slots)[places]

    def _embedded(self, places: Tensor) -> Tensor:
        embeddings = self.prompts.embeddings
        return embeddings.flatten(0, 1)[places.to(embeddings.device)].to(self.states.device)
