"""Small videos that tests write for themselves."""

from pathlib import Path

import av
from PIL import Image

RATE = 10


def write_clip(path: Path, pictures: list[Image.Image]) -> Path:
    """A video of these pictures of 64 x 48 pixels, of which there may be none."""
    with av.open(path, "w") as file:
        stream = file.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuv420p"
        file.start_encoding()
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_image(picture)))
        if pictures:
            file.mux(stream.encode())
    return path


def greys(count: int) -> list[Image.Image]:
    """Pictures that show their numbers by their brightness."""
    return [Image.new("RGB", (64, 48), (20 + 10 * number,) * 3) for number in range(count)]


def number_of(picture: Image.Image) -> int:
    """Which of `greys` a frame or a part of it shows, whatever compression has made of its brightness."""
    return round((picture.convert("L").resize((1, 1)).getpixel((0, 0)) - 20) / 10)
