"""Tables of visual tokens made by hand, for methods that are looked at without a model."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

import vitcop
from vitcop.selection.tokens import SALIENCY, EncoderSignal, Entrance, Source, TextTokens

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Columns(Source):
    """A source whose values are given, one row per visual token."""

    states: Tensor
    key_states: Tensor
    signals: dict[EncoderSignal, Tensor]
    words: TextTokens | None = None
    received: Tensor | None = None
    embedded: Tensor | None = field(default=None)
    asking: Tensor | None = None
    offered: Tensor | None = None
    probed: Tensor | None = None

    def hidden_states(self, slots):
        return self.states[slots]

    def embeddings(self, rows):
        return (self.states if self.embedded is None else self.embedded)[rows]

    def keys(self, rows, slots):
        return self.key_states[rows]

    def encoder_signal(self, signal, rows):
        return self.signals[signal][rows]

    def text(self):
        return self.words

    def attention(self, tokens, weights, ahead):
        return self.received[tokens.rows]

    def queries_ahead(self, layer, slots):
        return self.asking[slots]

    def keys_ahead(self, layer, slots):
        return self.offered[slots]

    def probed_keys(self, tokens, layer):
        return self.probed[tokens.rows]

    def without_rotary(self, keys, slots):
        return keys

    def final_norm(self, states):
        return states


def table(lengths, *, hidden_states=None, keys=None, saliency=None, signals=None, source=None, **fields):
    """A table of images of one grid each, unless `fields` say otherwise."""
    n = sum(lengths)
    columns = Columns(
        torch.zeros(n, 1) if hidden_states is None else hidden_states,
        torch.zeros(n, 1, 1) if keys is None else keys,
        {SALIENCY: torch.zeros(n) if saliency is None else saliency} | (signals or {}),
        **(source or {}),
    )
    places = {
        "segments": torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
        "grid": torch.zeros(n, 2),
        "shapes": tuple(((1, length),) for length in lengths),
        "sizes": tuple((length,) for length in lengths),
    }
    entrance = Entrance.of(**places | {name: fields.pop(name) for name in places if name in fields}, device=CPU)
    defaults = {"layer": 0, "stage": 0, "rows": torch.arange(n), "slots": torch.arange(n)}
    return vitcop.VisualTokens(lengths=tuple(lengths), entrance=entrance, source=columns, **defaults | fields)
