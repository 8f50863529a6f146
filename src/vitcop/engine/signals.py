"""What methods may see of the model at one stage, worked out when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import VitcopError
from ..models import ModelFamily, Observation
from ..models.decoder import Rotary, check_rows, final_norm, layer_keys, layer_queries, rotated
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
    """

    embeddings: Float[Tensor, "batch seq hidden"]
    visual: Int[Tensor, " visual"]
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    placeholders: Placeholders

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
        rotary = None if self.rotary is None else (change(self.rotary[0]), change(self.rotary[1]))
        projected = {name: change(made) for name, made in self.projected.items()}
        return LayerInput(self.layer, change(self.hidden_states), rotary, projected)


@dataclass(frozen=True, eq=False)
class StageSource(Source):
    """The model just before a stage; see `tokens.Source`.

    Attributes:
        states: what enters the layer about to run.
        observation: what the vision encoder showed.
        layout: which prompt columns `states` and the cache of the layer before hold.
        cached_keys: of the layer before; None at the entrance.
        previous: what the layer before got; None at the entrance.
        ahead: makes what the layer about to run would get, if nothing were dropped; None at the entrance.
        doubts: takes, of keys that were worked out, how far they are from what the layer made of each row, and the norm
            of that, to be looked at when no stage waits for it any more.
    """

    family: ModelFamily
    prompts: Prompts
    observation: Observation
    layout: Layout
    states: Float[Tensor, "batch width hidden"]
    cached_keys: Float[Tensor, "batch kv_heads width head_dim"] | None = None
    previous: LayerInput | None = None
    ahead: Callable[[], LayerInput] | None = None
    doubts: list[Float[Tensor, "2 batch"]] = field(default_factory=list)

    def hidden_states(self, slots: Tensor) -> Tensor:
        return self.states.flatten(0, 1)[slots]

    def embeddings(self, rows: Tensor) -> Tensor:
        return self._embedded(self.prompts.visual[rows.to(self.prompts.visual.device)])

    def keys(self, rows: Tensor, slots: Tensor) -> Tensor:
        if self.cached_keys is None:
            return self.observation.keys_of(rows)
        return self._cached(slots)

    def encoder_signal(self, signal: EncoderSignal, rows: Tensor) -> Tensor:
        return self.observation.signal_of(signal, rows)

    def queries_ahead(self, layer: int, slots: Tensor) -> Tensor:
        return layer_queries(self._known(layer), self.hidden_states(slots)[None], None, {})[0]

    def keys_ahead(self, layer: int, slots: Tensor) -> Tensor:
        return layer_keys(self._known(layer), self.hidden_states(slots)[None], None, {})[0]

    def probed_keys(self, tokens: VisualTokens, layer: int) -> Tensor:
        if self.cached_keys is not None:
            raise VitcopError(
                "Images are run by themselves at the entrance alone; later stages have keys of the prompt."
            )
        return probed_keys(self.family, tokens, self.hidden_states(tokens.slots), layer)

    def without_rotary(self, keys: Tensor, slots: Tensor) -> Tensor:
        previous = self._checked_previous
        if previous.rotary is None:
            return keys
        cos, sin = (part.expand(len(self.states), -1, -1).flatten(0, 1)[slots] for part in previous.rotary)
        # Turned by the opposite angles.
        return rotated(self.family.layers[previous.layer], keys[None].transpose(1, 2), (cos[None], -sin[None]))[0]

    def final_norm(self, states: Tensor) -> Tensor:
        decoder = self.family.decoder
        return final_norm(decoder, decoder.config)(states).to(states.device)

    def text(self) -> TextTokens:
        lengths, places = self.prompts.text
        slots = self._slots_of(places.to(self.states.device))
        return TextTokens(
            lengths=lengths,
            embeddings=self._embedded(places),
            hidden_states=self.hidden_states(slots),
            keys=None if self.cached_keys is None else self._cached(slots),
            slots=slots,
        )

    def attention(self, tokens: VisualTokens, weights: Tensor | None, ahead: bool) -> Tensor:
        if self.previous is None or self.ahead is None or self.cached_keys is None:
            raise VitcopError(
                "There is no attention before decoder layer 0, where this stage stands; prune before a later layer."
            )
        previous = self._checked_previous
        got = self.ahead() if ahead else previous
        keys = self.cached_keys
        if ahead:
            keys = got.keys(self._known(got.layer)).transpose(1, 2)
        if weights is None:
            return self._rows(got, keys, self._last)[:, 0].flatten()[tokens.slots]
        return self._weighted(got, keys, tokens, weights)

    @property
    def _last(self) -> Int[Tensor, "batch 1"]:
        """Slot of each prompt's last token. Behind it there may be a draft, and padding until something is dropped."""
        placeholders, alive = self.prompts.placeholders, self.layout.alive
        if placeholders.drafted:
            alive = alive & (self.layout.columns < placeholders.undrafted)
        alive = alive.to(self.states.device)
        return (alive * torch.arange(self.layout.width, device=alive.device)).amax(1, keepdim=True)

    @cached_property
    def _checked_previous(self) -> LayerInput:
        """What the layer before got. That we make the keys of it which the layer made is a doubt, to be looked at."""
        assert self.previous is not None and self.cached_keys is not None
        module, last = self._known(self.previous.layer), self._last
        made = self.previous.at(last).keys(module)[:, 0].float()
        held = self.cached_keys[torch.arange(len(last), device=last.device), :, last[:, 0]].float()
        self.doubts.append(torch.stack([(made - held).flatten(1).norm(dim=1), held.flatten(1).norm(dim=1)]))
        return self.previous

    def _known(self, layer: int) -> nn.Module:
        """A decoder layer whose queries and keys can be worked out."""
        module = self.family.layers[layer]
        check_rows(module, self.family.decoder.config)
        return module

    def _weighted(self, got: LayerInput, keys: Tensor, tokens: VisualTokens, weights: Tensor) -> Tensor:
        """Attention from the text behind each image, image by image, so that no row of one is padded for another."""
        width, received = self.layout.width, []
        visual = tokens.slots.split(tokens.lengths)
        text = tokens.text.slots.split(tokens.text.lengths)
        block = max(1, _BLOCK_VALUES // (self.family.decoder.config.num_attention_heads * width))
        for row, own, slots, weight in zip(
            self.prompts.rows, visual, text, weights.split(tokens.text.lengths), strict=True
        ):
            of_row = slice(row, row + 1)
            part = got.of_row(of_row)
            total = keys.new_zeros(width, dtype=torch.float32)
            for some, share in zip((slots % width).split(block), weight.split(block), strict=True):
                total = total + (share[:, None] * self._rows(part, keys[of_row], some[None], of_row)[0]).sum(0)
            received.append(total[own % width])
        return torch.cat(received)

    def _rows(self, got: LayerInput, keys: Tensor, slots: Tensor, of: slice = slice(None)) -> Tensor:
        """Attention of the tokens in `slots`, (batch, rows), to all that a layer holds of some rows of the batch."""
        module: Any = self.family.layers[got.layer]
        queries = got.at(slots).queries(module)
        columns, alive = self.layout.columns[of].to(slots.device), self.layout.alive[of].to(slots.device)
        visible = alive[:, None] & (torch.arange(columns.shape[1], device=slots.device) <= slots[..., None])
        if self.family.layer_kinds[got.layer] == "sliding_attention":
            behind = columns.gather(1, slots)[..., None] - columns[:, None]
            visible = visible & (behind < self.family.decoder.config.sliding_window)
        added = None
        if (counts := self.layout.counts) is not None:
            own = counts.map(lambda part: part[of].to(slots.device))
            added = own.logits(self.family, got.layer, columns.gather(1, slots), columns)
        return attention_rows(queries, keys, visible, module.self_attn.scaling, added)

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

    def _cached(self, slots: Tensor) -> Tensor:
        assert self.cached_keys is not None
        return self.cached_keys[slots // self.layout.width, :, slots % self.layout.width]
