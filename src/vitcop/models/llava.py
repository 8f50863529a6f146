"""LLaVA-1.5 and its relatives: a CLIP encoder with a [CLS] token, one square grid per image."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from ..ops.saliency import cls_attention
from .base import ModelFamily, Observation


class Llava(ModelFamily):
    """Saliency is the attention of [CLS] in the layer whose features the projector takes."""

    model_types = ("llava",)

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        if config.vision_config.model_type != "clip_vision_model":
            raise UnsupportedModelError(
                f"This LLaVA has a {config.vision_config.model_type!r} vision encoder, but saliency is read from the "
                "[CLS] token of a CLIP encoder; no other is supported."
            )
        if not isinstance(config.vision_feature_layer, int) or config.vision_feature_layer == 0:
            raise UnsupportedModelError(
                f"vision_feature_layer={config.vision_feature_layer!r} is not one encoder layer; set a single one."
            )
        if config.vision_feature_select_strategy != "default":
            raise UnsupportedModelError(
                "vision_feature_select_strategy='full' makes [CLS] a visual token, which has no place in the picture; "
                "use 'default'."
            )
        super().__init__(model)
        layers, layer = self.vision.encoder.layers, config.vision_feature_layer
        if not -len(layers) <= layer <= len(layers):
            raise UnsupportedModelError(f"vision_feature_layer={layer} is not one of the {len(layers)} encoder layers.")
        # hidden_states[0] is the embedding, so hidden_states[k] leaves layer k - 1, and [-1] the last one.
        self.observed = layers[layer if layer < 0 else layer - 1].self_attn
        self.feature_layer = layer
        vision = config.vision_config
        if (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (1024, 24, 336, 14):
            self.key_cutoff = 8.0

    def check_call(self, call: dict[str, Any]) -> None:
        observed = {"vision_feature_layer": self.feature_layer, "vision_feature_select_strategy": "default"}
        for name, value in observed.items():
            asked = call.get(name)
            if (getattr(self.model.config, name) if asked is None else asked) != value:
                raise UnsupportedModelError(f"{name} cannot change while pruned; set it in the config before.")

    def check_encoding(self, call: dict[str, Any]) -> None:
        # A layer passed to `generate` reaches the encoder alone, as the one hidden state to return.
        layer = call.get("output_hidden_states")
        if type(layer) is int and layer != self.feature_layer:
            raise UnsupportedModelError("vision_feature_layer cannot change while pruned; set it in the config before.")

    def observe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Observation:
        attention: Any = self.observed
        hidden_states = args[0] if args else kwargs["hidden_states"]
        heads = (attention.num_heads, attention.head_dim)
        query = attention.q_proj(hidden_states[:, 0]).unflatten(-1, heads)
        keys = attention.k_proj(hidden_states).unflatten(-1, heads)
        images, patches = len(keys), keys.shape[1] - 1
        side = round(patches**0.5)
        places = torch.arange(side, device=keys.device) / side
        grid = torch.cartesian_prod(places, places).repeat(images, 1)
        return Observation(
            lengths=(patches,) * images,
            shapes=((side, side),) * images,
            keys=keys[:, 1:].flatten(0, 1),
            saliency=cls_attention(query, keys, attention.scale).flatten(),
            grid=grid,
        )
