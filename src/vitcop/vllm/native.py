"""Models on vLLM's own modules: where their encoders have attention, and how it is read in transformers' terms."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..engine.probe import check_probe
from ..errors import UnsupportedModelError
from ..models import Observation, Watched
from ..models.base import Call
from ..models.encoders import KEYS, QUERIES
from ..selection.tokens import SALIENCY, EncoderSignal, VisualTokens
from .model import PrunedModel
from .watching import Seen, repeated_heads, split_fused, watching, whole_heads


class NativeModel(PrunedModel):
    """One with a vision tower of vLLM's own.

    Attributes:
        tower: path of the tower's layers in the model.
        attention: name of the attention in a layer.
        fused: name of its projection of queries, keys and values.
    """

    tower: ClassVar[str]
    attention: ClassVar[str]
    fused: ClassVar[str]

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        for signal in self._signals:
            self._attention_of(signal)

    @property
    def _signals(self) -> list[EncoderSignal]:
        return [SALIENCY, *self.served.method.encoder_signals]

    def _encoded(self, call: Call) -> tuple[list[Tensor], Observation]:
        family = self.served.family
        attentions = [self._attention_of(signal) for signal in self._signals]
        with watching([own for _, own in attentions], [self.fused]) as seen:
            features = self._features(call)
        main, *others = (
            self._watched(call, stock, seen[own], signal.received)
            for signal, (stock, own) in zip(self._signals, attentions, strict=True)
        )
        signals = {
            signal: family.shown("image", call, watched)
            for signal, watched in zip(self._signals[1:], others, strict=True)
        }
        return features, replace(family.observe("image", call, main), signals=signals)

    def _attention_of(self, signal: EncoderSignal) -> tuple[nn.Module, nn.Module]:
        """The attention that shows a signal: transformers' own, which has no weights, and vLLM's."""
        family, layers = self.served.family, self.get_submodule(self.tower)  # type: ignore[attr-defined]
        stock = family.observed["image"] if signal.depth is None else family.encoder_attention("image", signal.depth)
        stocks = family.vision("image").layers
        number = next(number for number, layer in enumerate(stocks) if stock in set(layer.modules()))
        if number >= len(layers):
            raise UnsupportedModelError(
                f"{self.served.method.name} looks at layer {number} of the vision encoder, of which vLLM builds the "
                f"{len(layers)} that features come from: use another method, such as VisionZip."
            )
        return stock, layers[number].get_submodule(self.attention)

    def _watched(self, call: Call, stock: Any, seen: Seen, received: bool) -> Watched:
        raise NotImplementedError

    def _probe(self, tokens: VisualTokens, features: Tensor, layer: int) -> Tensor:
        """As `engine.probe.probed_keys`, by vLLM's layers, one image after another."""
        family, decoder = self.served.family, self.get_language_model().model  # type: ignore[attr-defined]
        check_probe(family, layer)
        if layer > decoder.end_layer:
            raise UnsupportedModelError(
                f"{self.served.method.name} runs the first {layer} decoder layers over a picture by itself, which are "
                "not all in the first part of the pipeline: use a smaller --pipeline-parallel-size."
            )
        first = torch.tensor([family.decoder.config.bos_token_id], device=features.device)
        first = decoder.embed_input_ids(first).to(features)
        positions = family.positions_alone(tokens) + 1
        images = zip(features.split(tokens.lengths), positions.split(tokens.lengths), strict=True)
        heads = family.decoder.config.num_key_value_heads
        keys = [_keys_of(decoder.layers[:layer], torch.cat([first, states]), places) for states, places in images]
        return torch.cat([self._all_heads(image, heads) for image in keys])

    def _all_heads(self, keys: Tensor, heads: int) -> Tensor:
        whole = whole_heads(keys.flatten(1), heads * keys.shape[-1])
        return repeated_heads(whole.unflatten(1, (-1, keys.shape[-1])), heads)


class _Alone(nn.Module):
    """In place of vLLM's attention, which looks for a KV cache: causal, over the tokens at hand."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.head_dim, self.scaling = attention.head_dim, attention.scaling

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(0, 1)[None] for part in (queries, keys, values))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scaling, enable_gqa=True)
        return mixed[0].transpose(0, 1).flatten(1)


def _keys_of(
    layers: Any, states: Float[Tensor, "tokens hidden"], positions: Tensor
) -> Float[Tensor, "visual heads head_dim"]:
    """Keys of the last of some layers, without rotary embedding, of all tokens but the first."""
    *before, last = layers
    places = torch.cat([torch.zeros_like(positions[:1]), positions])
    if places.ndim == 2:
        places = places.T.contiguous()  # vLLM has the axes first
    residual = None
    for layer in before:
        attention = layer.self_attn
        own, attention.attn = attention.attn, _Alone(attention)
        try:
            states, residual = layer(places, states, residual)
        finally:
            attention.attn = own
    attention = last.self_attn
    states = last.input_layernorm(states) if residual is None else last.input_layernorm(states, residual)[0]
    _, keys, _ = attention.qkv_proj(states)[0].split([attention.q_size, attention.kv_size, attention.kv_size], -1)
    return keys[1:].unflatten(-1, (-1, attention.head_dim))


class SquareTower(NativeModel):
    """With the tower of CLIP or SigLIP, which gets pictures, or tiles of them, of one size."""

    tower = "vision_tower.vision_model.encoder.layers"
    attention = "self_attn"
    fused = "qkv_proj"

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """As vLLM's own class, and also what transformers 5.18 and newer call the weights of the tower."""
        return super().load_weights((_vllm_name(name), weight) for name, weight in weights)  # type: ignore[misc]

    def _watched(self, call: Call, stock: Any, seen: Seen, received: bool) -> Watched:
        queries, keys = split_fused(seen.projected[self.fused], stock.q_proj.out_features)
        real = self._real(call, len(keys))
        if real is not None:
            queries, keys = queries[real], keys[real]
        return Watched(stock, {}, {QUERIES: queries, KEYS: keys}, received)

    def _real(self, call: Call, encoded: int) -> Tensor | None:
        """Which of the pictures that the tower got are not there to pad others; None for all."""
        return None


class TiledTower(SquareTower):
    """The same of pictures that are cut into tiles.

    The processor pads the pictures of a prompt to as many tiles as the largest has, and vLLM encodes these too.
    """

    def _real(self, call: Call, encoded: int) -> Tensor | None:
        real = [len(image.shapes) for image in self.served.family.grids("image", call)]
        given = [len(tiles) for tiles in call["pixel_values"]]
        if sum(given) != encoded:
            raise UnsupportedModelError(f"The vision encoder ran on {encoded} tiles where {sum(given)} were given.")
        return torch.cat([torch.arange(tiles) < own for tiles, own in zip(given, real, strict=True)]).nonzero()[:, 0]


def _vllm_name(weight: str) -> str:
    return re.sub(r"^((model\.)?vision_tower\.)(?!vision_model\.)", r"\1vision_model.", weight)
