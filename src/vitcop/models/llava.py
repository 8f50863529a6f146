"""LLaVA-1.5 and its relatives: one grid per picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import Call, Description
from .encoders import CLIP, DINOV2, SIGLIP, Patches, Watched
from .geometry import Geometry, Size
from .grids import Grids, Shape, merged_grids
from .pixtral import PIXTRAL, pixtral_geometry, pixtral_patches, pixtral_pictures
from .tower import OTHER_FEATURES, TowerFamily


class Llava(TowerFamily):
    """One grid per picture, of its own size where the encoder is Pixtral's or DINOv2's.

    The model takes [CLS] away and nothing else, so that registers get placeholders. They stand for no place.
    """

    model_types = ("llava",)
    encoders = {
        "clip_vision_model": CLIP,
        "siglip_vision_model": SIGLIP,
        "pixtral": PIXTRAL,
        "dinov2": DINOV2,
        "dinov2_with_registers": DINOV2,
    }
    described = Description(
        saliency="attention of [CLS] (CLIP, DINOv2), attention received (SigLIP, Pixtral)",
        refuses=OTHER_FEATURES,
    )

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        patch = self.model.config.vision_config.patch_size
        if self.encoder is PIXTRAL:
            return merged_grids(pixtral_pictures(patch, call))
        pictures, _, height, width = call["pixel_values"].shape
        return (self._picture((height // patch, width // patch)),) * pictures

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        if self.encoder is PIXTRAL:
            return pixtral_patches(pixtral_pictures(self.model.config.vision_config.patch_size, call), watched)
        return self.patches(watched, len(call["pixel_values"]))

    def encoded_size(self, size: Size, inputs: Mapping[str, Any]) -> Size:
        return Size(*inputs["pixel_values"].shape[-2:]) if self.encoder.interpolates else size

    def geometry(self, size: Size) -> Geometry:
        vision = self.model.config.vision_config
        if self.encoder is PIXTRAL:
            return pixtral_geometry(vision, size)
        patch = vision.patch_size
        # What size the processor makes of a picture is not in DINOv2's config: it is taken to leave it as it is.
        shape = (size.height // patch, size.width // patch) if self.encoder.interpolates else self.square
        image, cls = self._picture(shape), self.encoder.has_cls
        return Geometry.of([shape], image=image, cls=cls, registers=self.registers, projected=image.placeholders)

    def _picture(self, shape: Shape) -> Grids:
        return Grids.join([*[Grids.separator()] * self.registers, Grids.full(shape)])
