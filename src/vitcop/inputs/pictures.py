"""Pictures out of files, which may come from anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import VitcopError, one_line

# Pillow knows many more, and starts other programs for some of them.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
# Where Pillow warns of decompression bombs: a quarter of a GiB of RGB.
MOST_PIXELS = 2**30 // 12
# As in the processors of Qwen-VL. Others scale the shorter side up to what the encoder takes, and the longer one along.
MOST_ASPECT = 200

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


def read_picture(file: Path | bytes, name: str = "") -> Image.Image:
    """Read a picture as a viewer shows it: turned upright, 8 bits a channel, on white where it is transparent.

    Of an animation it is the first frame. Colour profiles are not applied. No setting of Pillow or of Python is changed
    on the way, so that threads may read at the same time.

    Args:
        file: its path, or what is in it; in one of `FORMATS`.
        name: of the picture, for messages, where there is no path.

    Returns:
        RGB, at most `MOST_PIXELS` pixels, and at most `MOST_ASPECT` times as long as wide or as wide as long.

    Raises:
        VitcopError: it is no such file, or is broken, or has more pixels or is thinner than that.
    """
    if isinstance(file, Path):
        refuse_address(file)
    name = one_line(name or (file if isinstance(file, Path) else "the picture"))
    try:
        with Image.open(file if isinstance(file, Path) else BytesIO(file), formats=FORMATS) as picture:
            check_size(name, *picture.size)
            tags = getattr(picture, "tag_v2", {})  # which turning would lose
            return as_shown(ImageOps.exif_transpose(picture), tags)
    except VitcopError:
        raise
    except UnidentifiedImageError as error:
        raise VitcopError(
            f"{name} is not a picture, or of a kind that is not read; give one of {', '.join(FORMATS)}."
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VitcopError(f"{name} has too many pixels: {_way_out()}") from error
    except Exception as error:  # a broken file can raise anything in the decoder of its kind
        raise VitcopError(f"Cannot read {name}: {getattr(error, 'strerror', None) or one_line(error)}.") from error


def as_shown(picture: Image.Image, tags: Mapping[int, Any] | None = None) -> Image.Image:
    """A picture of any mode of Pillow's as a viewer shows it: RGB, on white where it is transparent.

    Grey of more than 8 bits is scaled. White is 65,535 in mode I;16, also in mode I if nothing is beyond, and 1 in mode
    F if nothing is beyond; all else is stretched from the smallest to the largest number in the picture. What is not a
    finite number is black.

    Args:
        picture: of any size.
        tags: of the TIFF file that it comes from, which say what its numbers mean.
    """
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = _grey_of_8_bits(picture, tags or {})
    if picture.has_transparency_data:
        if picture.mode == "La":
            picture = picture.convert("LA")
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture.convert("RGBA"))
    return picture.convert("RGB")


def check_size(name: str, width: int, height: int) -> None:
    """Refuse a picture or a frame that would take too much memory, here or in a processor.

    Args:
        name: of the file, for the message.
        width, height: in pixels.

    Raises:
        VitcopError: it has too many pixels, or is too thin.
    """
    if width * height > MOST_PIXELS:
        raise VitcopError(f"{name} has {width} x {height} pixels, which are too many: {_way_out()}")
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise VitcopError(
            f"{name} has {width} x {height} pixels, which is too thin: one side may be at most {MOST_ASPECT} times the "
            "other; cut it into pieces."
        )


def refuse_address(path: Path) -> None:
    """Say what to do with the address of a picture or a video in place of a file.

    Raises:
        VitcopError: it is one.
    """
    if (scheme := _ADDRESS.match(str(path))) and not path.exists():
        rest = str(path)[scheme.end() :].lstrip("/")  # a path has a single slash where the address had two
        raise VitcopError(f"{one_line(scheme[0] + '/' + rest)} is an address: download it first, and give the file.")


def _way_out() -> str:
    return f"scale it down to at most {MOST_PIXELS:,}."


def _grey_of_8_bits(picture: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Mode L, or LA where one of the numbers stands for transparent."""
    values = np.asarray(picture)
    if picture.mode == "I" and tags.get(_SAMPLE_FORMAT) == (_UNSIGNED,):
        values = values.view(np.uint32)
    known = np.isfinite(values)
    black, white = _black_and_white(picture.mode, values[known], tags)
    shares = (np.where(known, values, black).astype(np.float64) - black) / ((white - black) or 1)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        shares = 1 - shares
    grey = Image.fromarray(np.round(255 * shares.clip(0, 1)).astype(np.uint8))
    if (transparent := picture.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _black_and_white(mode: str, values: np.ndarray, tags: Mapping[int, Any]) -> tuple[float, float]:
    """The numbers that are shown black and white."""
    if mode.startswith("I;16"):
        (bits,) = tags.get(_BITS, (16,))
        return 0.0, 2.0**bits - 1
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    # Numbers of 32 bits have no white of their own, but those that Pillow makes of 16 bits, where there are no tags.
    white = 1.0 if mode == "F" else 0.0 if tags else 65535.0
    return (0.0, white) if low >= 0 and high <= white else (low, high)
