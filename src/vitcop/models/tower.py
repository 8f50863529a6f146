"""What families with a vision tower of its own class have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .base import Call, ModelFamily, Observation
from .encoders import ENCODERS, Patches, pixtral, with_cls, without_cls


class TowerFamily(ModelFamily):
    """A family that takes the features of one layer of a known encoder.

    Attributes:
        encoders: `model_type` of the vision configs that the family can have.
        encoder: the one that this model has.
        features: settings that the encoder was observed for: others would pair features with wrong saliency.
    """

    encoders: ClassVar[tuple[str, ...]]
    refuses: ClassVar[tuple[str, ...]] = ("another encoder", "several feature layers", "features with [CLS]")

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        self.encoder: str = config.vision_config.model_type
        if self.encoder not in self.encoders:
            raise UnsupportedModelError(
                f"This {config.model_type!r} model has a {self.encoder!r} vision encoder; supported: "
                f"{', '.join(self.encoders)}."
            )
        names = ("vision_feature_layer", "vision_feature_select_strategy")
        self.features: dict[str, Any] = {name: getattr(config, name) for name in names if hasattr(config, name)}
        layer = self.features.get("vision_feature_layer", -1)
        if not isinstance(layer, int):
            raise UnsupportedModelError(f"vision_feature_layer={layer!r} is not one encoder layer; set a single one.")
        encoder = ENCODERS[self.encoder]
        strategy = self.features.get("vision_feature_select_strategy", encoder.strategy)
        if strategy != encoder.strategy:
            raise UnsupportedModelError(
                f"vision_feature_select_strategy={strategy!r} makes a visual token of [CLS], which has no place in the "
                f"picture, or loses a patch; use {encoder.strategy!r} with this encoder."
            )
        super().__init__(model)
        self.observed = {modality: encoder.attention_at(self._tower(modality), layer) for modality in self.modalities}
        vision = config.vision_config
        size = vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size
        if self.encoder == "clip_vision_model" and size == (1024, 24, 336, 14):
            self.key_cutoff = 8.0

    def check_encoding(self, call: Call) -> None:
        for name, value in self.features.items():
            asked = call.get(name)
            if (getattr(self.model.config, name) if asked is None else asked) != value:
                raise UnsupportedModelError(f"{name} cannot change while pruned; set it in the config before.")

    def _tower(self, modality: str) -> Any:
        return self.base.get_encoder(modality)

    def _patches(self, modality: str, attention: Call) -> Patches:
        """The patches of all pictures that the encoder got, which are of equal size, one picture after another."""
        module, hidden_states = self.observed[modality], attention["hidden_states"]
        if ENCODERS[self.encoder].strategy == "default":
            return with_cls(module, hidden_states)
        return without_cls(module, hidden_states, attention.get("attention_mask"))

    @staticmethod
    def _videos(call: Call) -> tuple[int, int]:
        """Videos that the encoder got, and frames of each."""
        # Its first argument was called `pixel_values` before transformers 5.18.
        pixels = call["pixel_values_videos"] if "pixel_values_videos" in call else call["pixel_values"]
        return pixels.shape[:2]

    def _observe_pixtral(self, modality: str, call: Call, attention: Call, side: int = 1) -> Observation:
        """One grid per picture, of its own size; `side` x `side` patches become one visual token."""
        patch = self.model.config.vision_config.patch_size
        sizes = call.get("image_sizes")
        if sizes is None:
            sizes = [call["pixel_values"].shape[-2:]] * len(call["pixel_values"])
        shapes = [(int(height) // patch, int(width) // patch) for height, width in sizes]
        lengths = [rows * columns for rows, columns in shapes]
        rotary = attention["position_embeddings"]
        patches = pixtral(self.observed[modality], attention["hidden_states"], rotary, lengths)
        return Observation.of(patches, [[shape] for shape in shapes], side)
