"""What processors cut a picture into that hand the model rows of patches: cut out of the picture once more."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import VitcopError
from .overlay import tiles_as_seen

if TYPE_CHECKING:
    from ..models.grids import Grids


def slices_as_seen(picture: Image.Image, processor: Any) -> list[Image.Image]:
    """The whole of a picture, and behind it the equal slices of it that MiniCPM-V's processor makes, row by row.

    Args:
        picture: what goes into the processor, or a frame of what does.
        processor: of images or of videos.
    """
    cut = None
    if processor.slice_mode:
        size = picture.height, picture.width
        cut = processor.get_sliced_grid(size, processor.max_slice_nums, processor.scale_resolution)
    if cut is None:
        return [picture]
    (rows, columns), (width, height) = cut, picture.size
    boxes = [
        (left * width // columns, top * height // rows, (left + 1) * width // columns, (top + 1) * height // rows)
        for top, left in product(range(rows), range(columns))
    ]
    return [picture, *map(picture.crop, boxes)]


def crops_as_seen(picture: Image.Image, image: Grids, image_processor: Any) -> list[Image.Image]:
    """The thumbnail of a picture and the crops that Molmo 2's image processor makes, of each what its tokens show.

    Crops overlap, and a token is pooled from patches of several where they meet. Where it lacks some, as at the rim of
    the picture, it is white.

    Args:
        picture: what goes into the processor.
        image: the grids of its tokens.
        image_processor: it is asked once more.

    Raises:
        VitcopError: it makes other tokens of the picture.
    """
    made = image_processor(picture, return_tensors="pt")
    index, patch = made["image_token_pooling"], image_processor.patch_size
    if len(index) != image.num_tokens:
        raise VitcopError(
            f"No picture of these crops can be drawn: the processor makes {len(index)} tokens of the picture, and the "
            f"report is of {image.num_tokens}; give the picture and the processor that the prompt was made by."
        )
    pixels = made["pixel_values"].flatten(0, 1).unflatten(-1, (patch, patch, 3))[index]
    pixels[index < 0] = math.inf
    blocks = pixels.unflatten(1, tuple(image_processor.pooling_size)).permute(0, 5, 1, 3, 2, 4)
    tokens = tiles_as_seen(blocks.flatten(4).flatten(2, 3), image_processor)
    width, height = tokens[0].size
    crops = [Image.new("RGB", (columns * width, rows * height)) for rows, columns in image.shapes]
    for (number, row, column), token in zip(image.cells, tokens, strict=True):
        crops[number].paste(token, (column * width, row * height))
    return crops
