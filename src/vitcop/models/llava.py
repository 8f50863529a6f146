"""LLaVA-1.5 and its relatives: one grid per picture."""

from __future__ import annotations

from .base import Call, Description, Observation
from .encoders import CLIP, SIGLIP, Watched
from .geometry import Geometry, Size
from .pixtral import PIXTRAL, observe_pixtral, pixtral_geometry
from .tower import OTHER_FEATURES, TowerFamily


class Llava(TowerFamily):
    """One grid per picture, of its own size where the encoder is Pixtral's."""

    model_types = ("llava",)
    encoders = {"clip_vision_model": CLIP, "siglip_vision_model": SIGLIP, "pixtral": PIXTRAL}
    described = Description(
        saliency="attention of [CLS] (CLIP), attention received (SigLIP, Pixtral)",
        refuses=OTHER_FEATURES,
    )

    def observe(self, modality: str, call: Call, watched: Watched) -> Observation:
        patch = self.model.config.vision_config.patch_size
        if self.encoder is PIXTRAL:
            return observe_pixtral(patch, call, watched)
        pictures, _, height, width = call["pixel_values"].shape
        return Observation.of(self.patches(watched), [[(height // patch, width // patch)]] * pictures)

    def geometry(self, size: Size) -> Geometry:
        if self.encoder is PIXTRAL:
            return pixtral_geometry(self.model.config.vision_config, size)
        return Geometry.of([self.square], cls=self.encoder.has_cls)
