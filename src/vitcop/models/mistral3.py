"""Mistral 3: pictures of any size, whose patches are merged by two in each direction."""

from __future__ import annotations

from .base import Call, Description, Observation
from .encoders import Watched
from .geometry import Geometry, Size
from .pixtral import PIXTRAL, observe_pixtral, pixtral_geometry
from .tower import TowerFamily


class Mistral3(TowerFamily):
    """One grid per picture; the tokens between its rows are text and stay."""

    model_types = ("mistral3",)
    encoders = {"pixtral": PIXTRAL}
    described = Description(
        saliency="attention received, mean over the patches of a token",
        refuses=("another encoder", "several feature layers"),
    )

    def observe(self, modality: str, call: Call, watched: Watched) -> Observation:
        config = self.model.config
        patch, merged = config.vision_config.patch_size, config.spatial_merge_size
        return observe_pixtral(patch, call, watched, merged)

    def geometry(self, size: Size) -> Geometry:
        config = self.model.config
        return pixtral_geometry(config.vision_config, size, config.spatial_merge_size)
