"""Pictures of any kind come out as a viewer shows them, or are refused before they take memory or start a program."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import vitcop
from vitcop.inputs.pictures import MOST_ASPECT, as_shown, read_picture

RAMP = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(2, 0)
SHADES = np.round(RAMP / 257).astype(int)
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
GREY, RED, HALF = (100, 100, 100), (200, 40, 90), 128


def picture(mode: str, pixel: object, **info: object) -> Image.Image:
    made = Image.new(mode, (2, 2), pixel)
    made.info |= info
    return made


def palette(alpha: str, **info: object) -> Image.Image:
    made = picture("P" + alpha, (1, HALF) if alpha else 1, **info)
    made.putpalette([0, 0, 0, *RED])
    return made


def on_white(color: tuple[int, ...], alpha: int) -> tuple[int, ...]:
    return tuple(round((value * alpha + 255 * (255 - alpha)) / 255) for value in color)


def numbers(mode: str, *values: float) -> Image.Image:
    """The numbers side by side, of which the first is what counts."""
    made = Image.new(mode, (len(values), 1))
    for column, value in enumerate(values):
        made.putpixel((column, 0), value)
    return made


# As Pillow describes its modes: by hand, and not by its own conversions.
SHOWN = {
    "1": (picture("1", 1), (255, 255, 255)),
    "L": (picture("L", 100), GREY),
    "LA": (picture("LA", (100, HALF)), on_white(GREY, HALF)),
    "La": (picture("LA", (100, HALF)).convert("La"), on_white(GREY, HALF)),
    "L, one shade transparent": (picture("L", 100, transparency=100), (255, 255, 255)),
    "P": (palette(""), RED),
    "P, one colour transparent": (palette("", transparency=1), (255, 255, 255)),
    "P, with alphas": (palette("", transparency=bytes([255, HALF])), on_white(RED, HALF)),
    "PA": (palette("A"), on_white(RED, HALF)),
    "RGB": (picture("RGB", RED), RED),
    "RGB, one colour transparent": (picture("RGB", RED, transparency=RED), (255, 255, 255)),
    "RGBA": (picture("RGBA", (*RED, HALF)), on_white(RED, HALF)),
    "RGBa": (picture("RGBA", (*RED, HALF)).convert("RGBa"), on_white(RED, HALF)),
    "RGBX": (picture("RGBX", (*RED, 0)), RED),
    "CMYK": (picture("CMYK", (255, 0, 0, 0)), (0, 255, 255)),
    "YCbCr": (picture("YCbCr", (100, 128, 128)), GREY),
    "LAB": (picture("LAB", (255, 128, 128)), (255, 255, 255)),
    "HSV": (picture("HSV", (0, 255, 200)), (200, 0, 0)),
    "I;16": (numbers("I;16", 100 * 257), GREY),
    "I;16L": (numbers("I;16L", 100 * 257), GREY),
    "I;16B": (numbers("I;16B", 100 * 257), GREY),
    "I;16, one shade transparent": (picture("I;16", 100 * 257, transparency=100 * 257), (255, 255, 255)),
    "I of 16 bits": (numbers("I", 100 * 257), GREY),
    "I of more": (numbers("I", 100_000, 0, 255_000), GREY),
    "I below zero": (numbers("I", 0, -100, 155), GREY),
    "F up to 1": (numbers("F", 100 / 255, 0.1), GREY),
    "F beyond": (numbers("F", 1.0, 0.0, 2.55), GREY),
    "F below zero": (numbers("F", 0.0, -1.0, 1.55), GREY),
    "F, not a number": (numbers("F", float("nan"), 0.5), (0, 0, 0)),
    "F, infinite elsewhere": (numbers("F", 100 / 255, float("inf")), GREY),
}


@pytest.mark.parametrize("name", SHOWN)
def test_every_mode_is_shown_as_rgb_on_white(name):
    given, pixel = SHOWN[name]
    shown = as_shown(given)
    assert (shown.mode, shown.size) == ("RGB", given.size)
    assert shown.getpixel((0, 0)) == pytest.approx(pixel, abs=1)


def saved(kind: str, values: np.ndarray, **tags: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind, **({"tiffinfo": tags["tags"]} if tags else {}))
    return file.getvalue()


def tiff(values: bytes, bits: int, sample_format: int = 1) -> bytes:
    """An uncompressed grey picture as wide and high as the ramp, of unsigned numbers or another sample format."""
    height, width = RAMP.shape
    # Width, height, bits, compression, photometric, where the strip begins, samples, rows and bytes of the strip.
    numbers = (256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)
    tags = sorted([*numbers, (279, len(values)), (339, sample_format)])
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag == 279 else 3, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(values)) + values + struct.pack("<H", len(tags)) + entries + bytes(4)


def packed(values: np.ndarray) -> bytes:
    """Pairs of 12-bit numbers in three bytes each."""
    first, second = values[:, ::2].astype(int), values[:, 1::2].astype(int)
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8).tobytes()


DEEP = {
    "16-bit PNG": saved("PNG", RAMP),
    "16-bit TIFF": saved("TIFF", RAMP),
    "16-bit TIFF, white is zero": saved("TIFF", 65535 - RAMP, tags={PHOTOMETRIC: 0}),
    "12-bit TIFF": tiff(packed(RAMP // 16), bits=12),
    "16-bit TIFF, signed": tiff((RAMP.astype(int) - 2**15).astype("<i2").tobytes(), bits=16, sample_format=2),
    "32-bit TIFF": saved("TIFF", RAMP.astype(np.int32)),
    "32-bit TIFF of few shades": saved("TIFF", (RAMP // 257).astype(np.int32)),
    "32-bit TIFF, unsigned": tiff((RAMP.astype("<u4") * 65537).tobytes(), bits=32),
    "float TIFF": saved("TIFF", (RAMP / 65535).astype(np.float32)),
    "float TIFF beyond 1": saved("TIFF", RAMP.astype(np.float32) - 1000),
    "float TIFF, white is zero": saved("TIFF", (1 - RAMP / 65535).astype(np.float32), tags={PHOTOMETRIC: 0}),
    "12-bit PGM": b"P5 64 2 4095\n" + (RAMP // 16).astype(">u2").tobytes(),
    "16-bit PGM": b"P5 64 2 65535\n" + RAMP.astype(">u2").tobytes(),
    "PFM": b"Pf 64 2 -1.0\n" + (RAMP / 65535).astype("<f4").tobytes(),
}


@pytest.mark.parametrize("name", DEEP)
def test_grey_of_more_than_8_bits_is_scaled_and_not_cut(name):
    shown = np.asarray(read_picture(DEEP[name])).astype(int)
    assert abs(shown - SHADES[..., None]).max() <= 1


def test_a_picture_is_turned_upright(tmp_path):
    shown = Image.new("RGB", (4, 2), "white")
    shown.paste((200, 0, 0), (0, 0, 1, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    shown.save(tmp_path / "turned.png", exif=exif)
    upright = read_picture(tmp_path / "turned.png")
    assert upright.size == (2, 4) and upright.getpixel((1, 0)) == (200, 0, 0)


def png(width: int, height: int) -> bytes:
    """The beginning of a picture, whose pixels never come."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("size", "complaint"),
    [
        ((1, 60_000), "1 x 60000 pixels, which is too thin"),
        ((60_000, 299), "60000 x 299 pixels, which is too thin"),
        ((10_000, 10_000), "10000 x 10000 pixels, which are too many: scale it down to at most 89,478,485"),
        ((60_000, 60_000), "too many pixels: scale it down to at most 89,478,485"),
    ],
)
def test_what_would_take_much_memory_is_refused_by_its_header(size, complaint, tmp_path):
    (tmp_path / "large.png").write_bytes(png(*size))
    with pytest.raises(vitcop.VitcopError, match=complaint):
        read_picture(tmp_path / "large.png")


def test_the_command_adds_no_warnings_of_libraries_to_its_line(tmp_path):
    """Pillow warns of a picture as large as this one."""
    (tmp_path / "large.png").write_bytes(png(10_000, 10_000))
    script = "from vitcop.cli import app; app(['run', '--image', 'large.png'])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_a_thin_picture_within_the_bound_is_read(tmp_path):
    Image.new("1", (1, MOST_ASPECT)).save(tmp_path / "thin.png")
    assert read_picture(tmp_path / "thin.png").size == (1, MOST_ASPECT)


def test_no_program_is_started(tmp_path, monkeypatch):
    """Pillow's EPS starts the `gs` that it finds."""
    started, program = tmp_path / "started", tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    page = tmp_path / "page.png"
    page.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(vitcop.VitcopError, match=r"page.png is not a picture, or of a kind that is not read; give one"):
        read_picture(page)
    assert not started.exists()


def test_what_threads_share_stays_as_it_is_while_a_picture_is_read(tmp_path, monkeypatch):
    Image.new("L", (2, 2)).save(tmp_path / "picture.png")

    def shared():
        return list(warnings.filters), Image.MAX_IMAGE_PIXELS

    seen = []
    turn = ImageOps.exif_transpose
    monkeypatch.setattr(ImageOps, "exif_transpose", lambda file: seen.append(shared()) or turn(file))
    read_picture(tmp_path / "picture.png")
    assert seen == [shared()]


@pytest.mark.parametrize("name", ["https://example.com/a.png", "s3://bucket/a.png"])
def test_an_address_is_to_be_downloaded_first(name):
    with pytest.raises(vitcop.VitcopError, match=f"^{name} is an address: download it first"):
        read_picture(Path(name))


def test_names_are_written_out_in_messages():
    with pytest.raises(vitcop.VitcopError) as caught:
        read_picture(Path("a\nb\x1b[31m\u202e\udcff.png"))
    assert str(caught.value) == r"Cannot read a\nb\x1b[31m\u202e\udcff.png: No such file or directory."
