"""LLaVA-1.5 and its relatives: one grid per picture."""

from __future__ import annotations

from .base import Call, Observation
from .tower import TowerFamily


class Llava(TowerFamily):
    """One grid per picture, of its own size where the encoder is Pixtral's."""

    model_types = ("llava",)
    encoders = ("clip_vision_model", "siglip_vision_model", "pixtral")
    saliency = "attention of [CLS] (CLIP), attention received (SigLIP, Pixtral)"

    def observe(self, modality: str, call: Call, attention: Call) -> Observation:
        if self.encoder == "pixtral":
            return self._observe_pixtral(modality, call, attention)
        patch = self.model.config.vision_config.patch_size
        pictures, _, height, width = call["pixel_values"].shape
        patches = self._patches(modality, attention)
        return Observation.of(patches, [[(height // patch, width // patch)]] * pictures)
