"""A picture of what pruning kept: the image as the model sees it, and what each stage left of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import VitcopError
from .drawing import (
    SHORTEST_SIDE,
    Column,
    Groups,
    Kept,
    colors_of,
    grids_of,
    groups_of_stages,
    has_blanks,
    legend_of,
    page_of,
)

if TYPE_CHECKING:
    from torch import Tensor

# Grids that would stack up higher than this are drawn smaller, but not smaller than that.
TALLEST, SMALLEST_SIDE = 1920, 160


def as_seen(picture: Image.Image, image_processor: Any) -> Image.Image:
    """The part of a picture that the model gets to see, at full resolution.

    The model's own pixel values show the same part, but on a page they would be a blur.

    Args:
        picture: what goes into the processor.
        image_processor: of a transformers processor. Its centre crop is followed; without one, all is seen.
    """
    if not getattr(image_processor, "do_center_crop", False):
        return picture
    size, crop = image_processor.size, image_processor.crop_size
    if "shortest_edge" in size:
        across = down = min(picture.size) / size["shortest_edge"]
    else:
        across, down = picture.width / size["width"], picture.height / size["height"]
    width, height = round(crop["width"] * across), round(crop["height"] * down)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def tiles_as_seen(pixel_values: Tensor, image_processor: Any) -> list[Image.Image]:
    """The tiles that an image processor has made of one picture, its thumbnail included.

    Args:
        pixel_values: (tiles, 3, height, width) or (1, tiles, 3, height, width), as they go into the model.
        image_processor: the one that made them, whose mean and standard deviation are undone.

    Raises:
        VitcopError: the pixel values have another shape.
    """
    tiles = pixel_values[0] if pixel_values.ndim == 5 and len(pixel_values) == 1 else pixel_values
    if tiles.ndim != 4:
        raise VitcopError(
            f"No picture of these tiles can be drawn: pixel values of shape {tuple(pixel_values.shape)} are not those "
            "of the tiles of one picture."
        )
    tiles = tiles.detach().float().cpu()
    mean, std = (
        tiles.new_tensor(each)[:, None, None] for each in (image_processor.image_mean, image_processor.image_std)
    )
    values = (255 * (tiles * std + mean)).round().clamp(0, 255).byte()
    return [Image.fromarray(tile.numpy()) for tile in values.permute(0, 2, 3, 1)]


def tiles_of_patches(
    pixel_values: Tensor, shapes: Sequence[tuple[int, int]], image_processor: Any
) -> list[Image.Image]:
    """The pictures and tiles that LFM2-VL's image processor has taken apart into patches, row by row, and padded.

    Args:
        pixel_values: (tiles, patches, values), as they go into the model.
        shapes: rows and columns of visual tokens of each tile.
        image_processor: the one that made them.

    Raises:
        VitcopError: there are not as many tiles.
    """
    side, patch = image_processor.downsample_factor, image_processor.encoder_patch_size
    _check_tiles(pixel_values, len(pixel_values), [len(shapes)])
    tiles = []
    for values, shape in zip(pixel_values, shapes, strict=True):
        rows, columns = (side * tokens for tokens in shape)
        pixels = values[: rows * columns].unflatten(0, (rows, columns)).unflatten(-1, (patch, patch, 3))
        picture = pixels.permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)
        tiles += tiles_as_seen(picture[None], image_processor)
    return tiles


def tiles_of_pictures(pixel_values: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """The pixel values of each picture of a prompt, (tiles, 3, height, width).

    Args:
        pixel_values: as they go into the model: (pictures, most tiles, 3, height, width), or the tiles of all pictures
            in one row, (tiles, 3, height, width) or (1, tiles, 3, height, width).
        counts: tiles of each picture.

    Raises:
        VitcopError: the pixel values have another shape.
    """
    if pixel_values.ndim == 5 and len(pixel_values) == len(counts) > 1:
        return [tiles[:count] for tiles, count in zip(pixel_values, counts, strict=True)]
    row = pixel_values[0] if pixel_values.ndim == 5 else pixel_values
    _check_tiles(pixel_values, len(row) if row.ndim == 4 else 0, counts)
    return list(row.split(list(counts)))


def _check_tiles(pixel_values: Tensor, tiles: int, counts: Sequence[int]) -> None:
    """Raise unless so many tiles are those of these pictures."""
    if tiles != sum(counts):
        raise VitcopError(
            f"No picture of these tiles can be drawn: pixel values of shape {tuple(pixel_values.shape)} are not those "
            f"of {' + '.join(map(str, counts))} tiles."
        )


def overlay(pictures: Image.Image | Sequence[Image.Image], report: Kept, image: int = 0) -> Image.Image:
    """Draw what every stage left of an image or a video: a column for each stage, and a row for each grid.

    Kept tokens have their colours and dropped ones are grey and hatched. Merged ones are tinted, and share an outline
    with the token that stands for them, which has a dot, until that one is dropped as well. A group may be
    spread over several grids. Cells for which there is no token, as their padding was cut away, are blank.

    Args:
        pictures: what each of `report.images[image].shapes` covers: a picture (see `as_seen`), the tiles of
            one (see `tiles_as_seen`), or frames of a video.
        report: of the prefill that read the image.
        image: its number in the report.

    Raises:
        VitcopError: there is not one picture for each grid.
    """
    return _page([], [[pictures] if isinstance(pictures, Image.Image) else pictures], report, [image])


def overlay_of_prompt(
    pictures: Sequence[Sequence[Image.Image]], report: Kept, heading: Sequence[str] = ()
) -> Image.Image:
    """Draw what every stage left of all images of a prompt, one below the other.

    Args:
        pictures: of each image, as `overlay` takes them.
        report: of the prefill that read them.
        heading: lines that stand above, such as the question and the answer.

    Raises:
        VitcopError: there is not one picture for each grid.
    """
    return _page(heading, pictures, report, range(len(report.images)))


def _page(
    heading: Sequence[str], pictures: Sequence[Sequence[Image.Image]], report: Kept, images: Sequence[int]
) -> Image.Image:
    of_stages = [groups_of_stages(report, image) for image in images]
    rows = [_columns(*each, report) for each in zip(images, pictures, of_stages, strict=True)]
    merging = any(groups for stages in of_stages for groups in stages)
    blanks = any(has_blanks(report.images[image]) for image in images)
    return page_of(heading, rows, legend_of(merging=merging, blanks=blanks))


def _columns(image: int, pictures: Sequence[Image.Image], of_stages: Sequence[Groups], report: Kept) -> list[Column]:
    """The image as it is seen, and what each stage left of it."""
    shapes, total = report.images[image].shapes, report.image_lengths[image]
    shortest_side = max(SMALLEST_SIDE, min(SHORTEST_SIDE, TALLEST // len(shapes)))
    grids = grids_of(pictures, report.images[image], shortest_side)
    colors = colors_of(token for groups in of_stages for token in groups)
    columns = [Column("As the model sees it", f"{total} tokens", [grid.seen() for grid in grids])]
    for stage, groups in zip(report.stages, of_stages, strict=True):
        title = stage.where.capitalize()
        panels = [grid.panel(stage.kept(image), groups, colors) for grid in grids]
        columns.append(Column(title, f"{stage.after[image]} of {total} tokens", panels))
    return columns
