"""LLaVA-NeXT: a thumbnail and tiles per picture, with their padding cut away and a newline after each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
)

from .base import Call, Description
from .encoders import CLIP, Patches, Watched
from .geometry import Geometry, Size
from .grids import SEPARATOR, Grids, check_cells
from .tower import OTHER_FEATURES, TowerFamily


class LlavaNext(TowerFamily):
    """One grid for the thumbnail and one per tile.

    The model packs the features of a picture's tiles row by row over the whole picture. What belongs to
    them, and where they stand, is packed by the same function of the model, so that it cannot differ.
    """

    model_types = ("llava_next",)
    encoders = {"clip_vision_model": CLIP}
    described = Description(
        saliency="attention of [CLS]",
        grids="thumbnail, tile",
        refuses=OTHER_FEATURES,
    )

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        return tuple(_grids(*picture, self.side) for picture in self._pictures(call))

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        pictures = self._pictures(call)
        firsts = [0, *accumulate(tiles for _, tiles, _ in pictures)]
        sources = [
            _sources(packed, columns, self.side**2 * first, self.side)
            for (packed, _, columns), first in zip(pictures, firsts[:-1], strict=True)
        ]
        index, weights = (torch.cat(parts) for parts in zip(*sources, strict=True))
        return self.patches(watched, firsts[-1]).mixed(index, weights)

    @property
    def default_size(self) -> Size:
        pixels = 2 * self.model.config.vision_config.image_size
        return Size(pixels, pixels)

    def geometry(self, size: Size) -> Geometry:
        (picture,) = self._pictures({"image_sizes": [[size.height, size.width]]})
        _, tiles, _ = picture
        image = _grids(*picture, self.side)
        return Geometry.of([self.square] * tiles, image=image, cls=self.encoder.has_cls)

    def _pictures(self, call: Call) -> list[tuple[Float[Tensor, "placeholders 3"], int, int]]:
        """Of each picture `_places_of_tiles` as the model packs them, NaN at separators; its tiles, and how many of
        them stand beside each other, 1 where there is the thumbnail alone.
        """
        call = call | {"image_sizes": _sizes(call)}
        config, tiles = self.model.config, self._tiles(call)
        pinpoints, pixels = config.image_grid_pinpoints, config.vision_config.image_size
        columns = [
            get_anyres_image_grid_shape(size, pinpoints, pixels)[1] if count > 1 else 1
            for size, count in zip(call["image_sizes"], tiles, strict=True)
        ]
        places = [_places_of_tiles(*picture, self.side) for picture in zip(tiles, columns, strict=True)]
        packed = self._pack(places, call, torch.full((3,), math.nan, device="cpu"))
        return list(zip(packed, tiles, columns, strict=True))

    def _tiles(self, call: Call) -> list[int]:
        """Tiles of each picture, its thumbnail included; sizes are on the host."""
        config = self.model.config
        return [
            image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
            for size in call["image_sizes"]
        ]

    def _pack(self, tiles: Sequence[Tensor], call: Call, newline: Tensor) -> list[Tensor]:
        """What the model makes of each picture's features: (tiles, patches, channels) -> (placeholders, channels)."""
        strategy = self.features["vision_feature_select_strategy"]
        return self.base.pack_image_features(list(tiles), call["image_sizes"], strategy, newline)[0]


def _sizes(call: Call) -> list[list[int]]:
    """Height and width of each picture, read from the device once."""
    return torch.as_tensor(call["image_sizes"], device="cpu").tolist()


def _places_of_tiles(tiles: int, columns: int, side: int) -> Float[Tensor, "tiles patches 3"]:
    """Row and column of each patch in its picture, in tiles, and whether it is of the thumbnail, which comes first.

    Args:
        columns: tiles beside each other.
        side: rows and columns of patches in a tile.
    """
    check_cells(tiles * side**2)
    patch = torch.arange(side, dtype=torch.float64, device="cpu") / side
    inside = torch.cartesian_prod(patch, patch)
    number = torch.arange(-1, tiles - 1, device="cpu").clamp(min=0)
    corner = torch.stack([number // columns, number % columns], -1)
    thumbnail = (torch.arange(tiles, device="cpu") == 0).double()
    return torch.cat([corner[:, None] + inside, thumbnail[:, None, None].expand(-1, side**2, 1)], -1)


def _sources(
    packed: Float[Tensor, "placeholders 3"], columns: int, first: int, side: int
) -> tuple[Int[Tensor, "tokens 4"], Float[Tensor, "tokens 4"]]:
    """The patches that each visual token of a picture is made of, and their weights.

    Where the model has shrunk the picture, its places are interpolated between those of four patches, and say between
    which and how.

    Args:
        packed: `_places_of_tiles` as the model packed them.
        columns: tiles beside each other.
        first: number of the picture's first patch among all that were encoded.
        side: rows and columns of patches in a tile.
    """
    packed = packed[~packed[:, 0].isnan()]
    place = (packed[:, :2] * side).round(decimals=6)
    share = place.frac()  # of the patch below, or to the right
    row, column = torch.stack([place.floor(), place.ceil()], -1).long().unbind(1)
    of_row, of_column = torch.stack([1 - share, share], -1).unbind(1)
    row, column = row.repeat_interleave(2, 1), column.repeat(1, 2)
    tile = torch.where(packed[:, 2:] == 1, 0, 1 + row // side * columns + column // side)
    weights = of_row.repeat_interleave(2, 1) * of_column.repeat(1, 2)
    return first + (tile * side + row % side) * side + column % side, weights.float()


def _grids(packed: Float[Tensor, "placeholders 3"], tiles: int, columns: int, side: int) -> Grids:
    """The thumbnail and the tiles of a picture, from `_places_of_tiles` as the model packed them."""
    separator = packed[:, 0].isnan()
    place, thumbnail = packed[:, :2].nan_to_num(), packed[:, 2] == 1
    corner = (place + 1e-6).floor().long()  # interpolated places are not exact
    segments = torch.where(thumbnail, 0, 1 + corner[:, 0] * columns + corner[:, 1])
    tile = place[~(separator | thumbnail)]
    shapes = ((side, side), *((_per_tile(tile[:, 0], side), _per_tile(tile[:, 1], side)),) * (tiles - 1))
    places = torch.where(thumbnail[:, None], place, place - corner).clamp(min=0).float()
    return Grids(shapes, segments.masked_fill(separator, SEPARATOR), places)


def _per_tile(places: Float[Tensor, " tokens"], side: int) -> int:
    """Rows or columns of tokens in a tile; fewer than its patches where the model has shrunk the picture.

    Args:
        places: of all tokens, in tiles.
        side: rows or columns of patches in a tile.
    """
    different = places.round(decimals=6).unique()
    return side if len(different) < 2 else round(1 / different.diff().mean().item())
