"""What the first decoder layers make of images by themselves, before any prompt enters the decoder."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.masking_utils import (
    create_causal_mask,
    create_chunked_causal_mask,
    create_sliding_window_causal_mask,
)

from ..errors import UnsupportedModelError, VitcopError
from ..models import ModelFamily
from ..models.decoder import layer_keys
from ..ops.segments import by_size, pad_segments, unpad_segments
from ..selection.tokens import VisualTokens

_MASKS = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
    "chunked_attention": create_chunked_causal_mask,
}


def probed_keys(
    family: ModelFamily, tokens: VisualTokens, features: Float[Tensor, "visual hidden"], layer: int
) -> Float[Tensor, "visual heads head_dim"]:
    """Keys of decoder layer `layer - 1`, as `VisualTokens.probed_keys` says.

    Layers are run past their hooks, and nothing is cached. Images of about the same size are one batch, padded behind
    their tokens, where none of these can see it.

    Args:
        features: what enters the decoder of each token.

    Raises:
        VitcopError: the decoder has no such layer.
        UnsupportedModelError: its layers cannot be run by themselves.
    """
    check_probe(family, layer)
    positions, groups = family.positions_alone(tokens), list(by_size(tokens.lengths, features.device))
    keys = [
        _keys_of_group(family, features[rows], positions[rows], [tokens.lengths[image] for image in images], layer)
        for rows, images in groups
    ]
    if len(groups) == 1:
        return keys[0]
    order = torch.cat([rows for rows, _ in groups if isinstance(rows, Tensor)])
    return torch.cat(keys)[order.argsort()]


def _keys_of_group(
    family: ModelFamily,
    features: Float[Tensor, "visual hidden"],
    positions: Int[Tensor, "visual *axes"],
    lengths: list[int],
    layer: int,
) -> Float[Tensor, "visual heads head_dim"]:
    decoder: Any = family.decoder
    first = torch.full((len(lengths), 1), decoder.config.bos_token_id, dtype=torch.long, device=features.device)
    states = torch.cat([decoder.get_input_embeddings()(first).to(features), pad_segments(features, lengths)], 1)
    places = pad_segments(positions + 1, lengths)
    places = torch.cat([torch.zeros_like(places[:, :1]), places], 1)
    rotary = decoder.rotary_emb(states, places if places.ndim == 2 else places.movedim(-1, 0))
    masks = {kind: _MASKS[kind](decoder.config, states, None, None) for kind in set(family.layer_kinds[: layer - 1])}
    for module, kind in zip(family.layers[: layer - 1], family.layer_kinds, strict=False):
        states = module.forward(states, attention_mask=masks[kind], position_embeddings=rotary)
    keys = layer_keys(family.layers[layer - 1], states[:, 1:], None, {})
    return unpad_segments(keys, lengths).to(features.device)


def check_probe(family: ModelFamily, layer: int) -> None:
    """Raise unless the layers before `layer` can be run over embeddings alone, and show their keys.

    Raises:
        VitcopError, UnsupportedModelError: as `probed_keys` does.
    """
    config, last = family.decoder.config, family.num_layers
    if not 1 <= layer <= last:
        raise VitcopError(
            f"A probe shows the keys of the layer before one of 1 to {last} of this decoder; got {layer}."
        )
    # Embeddings that the decoder scales before its first layer, and what it adds between its layers.
    scaled, deepstack = getattr(config, "embedding_multiplier", 1) != 1, family.first_stage_layer > 1
    # Gemma 3's rotary embedding is one for each kind of layer.
    one_rotary = hasattr(getattr(family.decoder, "rotary_emb", None), "inv_freq")
    if scaled or deepstack or family.has_states or family.has_blocks or not one_rotary:
        raise UnsupportedModelError(
            f"The first layers of the {config.model_type!r} decoder need more than embeddings and a causal mask, so "
            "that they cannot be run over an image by itself: use ViTCoP, which looks at the keys of the prompt."
        )
    family.attending_layer(layer - 1)
    if getattr(config, "bos_token_id", None) is None:
        raise UnsupportedModelError(
            f"The config of the {config.model_type!r} decoder has no bos_token_id, which has to stand before an image "
            "that is run by itself: set it to the token that prompts begin with."
        )
