"""What a model saw of the pictures or the video of a prompt, to draw on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from ..inputs.video import Clip, middles
from .overlay import as_seen, tiles_as_seen, tiles_of_pictures

if TYPE_CHECKING:
    from ..inputs.chat import Chat, Subject
    from ..report import Report


def pictures_of_grids(subject: Subject, chat: Chat, report: Report) -> list[list[Image.Image]]:
    """What each grid covers of each picture, or of the video."""
    counts = [len(image.shapes) for image in report.images]
    if isinstance(subject, Clip):
        frames = (subject.frames[number] for number in middles(counts[0], len(subject.frames)))
        return [[as_seen(frame, chat.processor.video_processor) for frame in frames]]
    if max(counts) == 1:
        return [[as_seen(picture, chat.processor.image_processor)] for picture in subject]
    tiles = tiles_of_pictures(chat.inputs["pixel_values"], counts)
    return [tiles_as_seen(each, chat.processor.image_processor) for each in tiles]
