"""What a model saw of the pictures or the video of a prompt, to draw on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import VitcopError
from ..inputs.video import middles
from .drawing import Kept
from .overlay import as_seen, tiles_as_seen, tiles_of_patches, tiles_of_pictures
from .parts import crops_as_seen, slices_as_seen

if TYPE_CHECKING:
    from torch import Tensor


def pictures_of_grids(
    pictures: Sequence[Image.Image], report: Kept, processor: Any, pixel_values: Tensor | None
) -> list[list[Image.Image]]:
    """What each grid covers of each picture, or of the video.

    Args:
        pictures: all of the prompts, or the frames of their only video.
        report: of the prefill that read them.
        processor: of transformers, that the prompts were made by; without one, all of each picture is taken as seen.
        pixel_values: as it made them; needed of pictures in tiles.

    Raises:
        VitcopError: these are other pictures than the prompt had, or tiles without what they were made by.
    """
    counts = [len(image.shapes) for image in report.images]
    if set(report.modalities) == {"video"} and len(counts) == 1:
        video_processor = getattr(processor, "video_processor", None)
        shown = counts[0] // len(_frame_as_seen(pictures[0], video_processor))
        frames = (pictures[number] for number in middles(shown, len(pictures)))
        return [[part for frame in frames for part in _frame_as_seen(frame, video_processor)]]
    if "video" in report.modalities:
        raise VitcopError("The overlay of a prompt with several videos, or with a video and pictures, cannot be drawn.")
    if len(pictures) != len(counts):
        raise VitcopError(f"The report is of {len(counts)} pictures, and is drawn on as many; got {len(pictures)}.")
    image_processor = getattr(processor, "image_processor", None)
    if hasattr(image_processor, "get_sliced_grid"):
        return [slices_as_seen(picture, image_processor) for picture in pictures]
    if hasattr(image_processor, "overlap_margins"):
        return [crops_as_seen(*each, image_processor) for each in zip(pictures, report.images, strict=True)]
    if max(counts) == 1:
        return [[as_seen(picture, image_processor)] for picture in pictures]
    if image_processor is None or pixel_values is None:
        raise VitcopError(
            "Pictures that were cut into tiles are drawn from their tiles; give the processor and its pixel values."
        )
    if pixel_values.ndim == 3 and hasattr(image_processor, "encoder_patch_size"):
        shapes = [shape for image in report.images for shape in image.shapes]
        tile = iter(tiles_of_patches(pixel_values, shapes, image_processor))
        return [[next(tile) for _ in range(count)] for count in counts]
    return [tiles_as_seen(tiles, image_processor) for tiles in tiles_of_pictures(pixel_values, counts)]


def _frame_as_seen(frame: Image.Image, video_processor: Any) -> list[Image.Image]:
    """What the grids of one frame cover, of which most processors make one."""
    if hasattr(video_processor, "get_sliced_grid"):
        return slices_as_seen(frame, video_processor)
    return [as_seen(frame, video_processor)]
