"""Small videos that tests write for themselves."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

RATE = 10


def write_clip(
    path: Path,
    pictures: list[Image.Image],
    *,
    times: Iterable[int] | None = None,
    aspect: Fraction | None = None,
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    **options: str,
) -> Path:
    """A video of these pictures of 64 x 48 pixels, of which there may be none.

    Args:
        times: when each is shown, in tenths of a second; one after another if they are not given.
        aspect: width of a pixel over its height.
        codec, pixels, options: of the encoder.
    """
    with av.open(path, "w") as file:
        stream = file.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = pixels
        stream.codec_context.time_base = Fraction(1, RATE)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        file.start_encoding()
        for picture, time in zip(pictures, range(len(pictures)) if times is None else times, strict=True):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = time, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        if pictures:
            file.mux(stream.encode())
    return path


def greys(count: int) -> list[Image.Image]:
    """Pictures that show their numbers by their brightness."""
    return [Image.new("RGB", (64, 48), (20 + 10 * number,) * 3) for number in range(count)]


def number_of(picture: Image.Image) -> int:
    """Which of `greys` a frame or a part of it shows, whatever compression has made of its brightness."""
    return round((picture.convert("L").resize((1, 1)).getpixel((0, 0)) - 20) / 10)
