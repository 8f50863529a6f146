"""Idefics3 and SmolVLM: tiles with marker tokens between them, whose patches are merged by pixel shuffle."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from .base import Call, Description
from .encoders import SIGLIP, Patches, Watched
from .geometry import Geometry, Size
from .grids import Grids, Shape, merged_grids
from .tower import TowerFamily


class Idefics3(TowerFamily):
    """One grid per tile, padding patches included; the markers are text and stay."""

    model_types = ("idefics3", "smolvlm")
    encoders = {"idefics3_vision": SIGLIP, "smolvlm_vision": SIGLIP}
    described = Description(
        saliency="attention received, mean over the patches of a token",
        grids="tile; those up to a thumbnail are one picture, so that frames of a video are pictures",
        refuses=("another encoder",),
    )
    tiles_are_images = True
    closing_tokens = 1
    projector = "connector"

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        return merged_grids(self._tiles(call), self.model.config.scale_factor)

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        tiles = self._tiles(call)
        return self.patches(watched, len(tiles)).merged(tiles, self.model.config.scale_factor)

    def geometry(self, size: Size) -> Geometry:
        tile = self.model.config.vision_config.image_size
        # By default a picture's longer side becomes four tiles.
        processor = Idefics3ImageProcessorPil(size={"longest_edge": 4 * tile}, max_image_size={"longest_edge": tile})
        _, rows, columns = processor.get_number_of_image_patches(size.height, size.width)
        tiles = rows * columns + 1
        # Two markers before each tile, one at the end, and a line break behind each row of tiles.
        markers = 2 * tiles + 1 + rows
        return Geometry.of([self.square] * tiles, side=self.model.config.scale_factor, markers=markers)

    def _tiles(self, call: Call) -> list[list[Shape]]:
        pixels, patch = call["pixel_values"], self.model.config.vision_config.patch_size
        # The processor fills up with tiles of zeros, which the model leaves out.
        tiles = int((pixels != 0).flatten(2).any(-1).sum())
        height, width = pixels.shape[-2:]
        return [[(height // patch, width // patch)]] * tiles

    def joined(self, tokens: Tensor, starts: Sequence[tuple[int, int]], lengths: Sequence[int]) -> list[bool]:
        # The processor puts the same token before each tile and behind each picture, around markers of one or
        # more tokens: it stands once between two tiles of a picture, and twice between two pictures.
        rows, columns = (list(place) for place in zip(*starts, strict=True))
        ends = [column + length for column, length in zip(columns, lengths, strict=True)]
        last = dict(zip(rows, ends, strict=True))
        behind = [min(last.get(row, 0), tokens.shape[1] - 1) for row in range(len(tokens))]
        alike = tokens == tokens[list(range(len(tokens))), behind][:, None]
        counts = (alike if tokens.ndim == 2 else alike.all(-1)).cumsum(1)
        until = counts[rows[1:], [column - 1 for column in columns[1:]]]
        between = until - counts[rows[:-1], [end - 1 for end in ends[:-1]]]
        same_row = [row == next_row for row, next_row in pairwise(rows)]
        return [False, *(same and count == 1 for same, count in zip(same_row, between.tolist(), strict=True))]
