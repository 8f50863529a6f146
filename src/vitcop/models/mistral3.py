"""Mistral 3: pictures of any size, whose patches are merged by two in each direction."""

from __future__ import annotations

from .base import Call, Description
from .encoders import Patches, Watched
from .geometry import Geometry, Size
from .grids import Grids, Shape, merged_grids
from .pixtral import PIXTRAL, pixtral_geometry, pixtral_patches, pixtral_pictures
from .tower import TowerFamily


class Mistral3(TowerFamily):
    """One grid per picture; the tokens between its rows are text and stay."""

    model_types = ("mistral3",)
    encoders = {"pixtral": PIXTRAL}
    described = Description(
        saliency="attention received, mean over the patches of a token",
        refuses=("another encoder", "several feature layers"),
    )

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        return merged_grids(self._pictures(call), self.model.config.spatial_merge_size)

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        pictures = self._pictures(call)
        return pixtral_patches(pictures, watched).merged(pictures, self.model.config.spatial_merge_size)

    def geometry(self, size: Size) -> Geometry:
        config = self.model.config
        return pixtral_geometry(config.vision_config, size, config.spatial_merge_size)

    def _pictures(self, call: Call) -> list[list[Shape]]:
        return pixtral_pictures(self.model.config.vision_config.patch_size, call)
