"""The drawn pieces of a scene: masks of shapes, emoji, signs and backgrounds.

Every piece is kept at one master size and scaled down by whoever composes the scene, so a scene
looks the same at any size.
"""

import json
import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vitcop.scenes.world import PHOTOS, SPRITES, TEST_PHOTOS, TRAIN_PHOTOS

MASTER = 128
SIGN_STYLES = (
    ((244, 244, 244), (24, 24, 24)),
    ((24, 24, 24), (244, 244, 244)),
    ((28, 92, 52), (244, 244, 244)),
    ((248, 214, 40), (24, 24, 24)),
)  # fill and ink


def _outline(shape: str) -> list[tuple[float, float]]:
    """The corners of ``shape`` inside the unit circle around the origin."""

    def ring(count: int, radius: float = 1.0, start: int = -90) -> list[tuple[float, float]]:
        angles = [math.radians(start + 360 * i / count) for i in range(count)]
        return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]

    if shape == "circle":
        return ring(64)
    if shape == "square":
        return ring(4, start=-45)
    if shape == "triangle":
        return ring(3)
    if shape == "star":
        outer, inner = ring(5), ring(5, 0.42, -54)
        return [corner for pair in zip(outer, inner, strict=True) for corner in pair]
    if shape == "cross":
        arm = 0.32
        quarter = [(arm, -0.95), (arm, -arm), (0.95, -arm)]
        corners: list[tuple[float, float]] = []
        for _ in range(4):
            corners += quarter
            quarter = [(-y, x) for x, y in quarter]
        return corners
    if shape == "heart":
        angles = [2 * math.pi * i / 64 for i in range(64)]
        return [
            (
                math.sin(a) ** 3,
                -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16,
            )
            for a in angles
        ]
    raise ValueError(f"no such shape: {shape}")


@cache
def shape_mask(shape: str) -> Image.Image:
    """The ``L`` mask of ``shape``, cropped tight."""
    middle, radius = 2 * MASTER, 2 * MASTER - 8
    corners = [(middle + radius * x, middle + radius * y) for x, y in _outline(shape)]
    mask = Image.new("L", (4 * MASTER, 4 * MASTER))
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    mask = mask.crop(mask.getbbox())
    mask.thumbnail((MASTER, MASTER), Image.Resampling.LANCZOS)
    return mask


@cache
def emoji_sprite(name: str) -> Image.Image:
    """The RGBA sprite of one emoji, cropped tight."""
    index = json.loads((SPRITES / "emoji.json").read_text())
    cell = index["cell"]
    row, column = divmod(index["names"].index(name), index["columns"])
    with Image.open(SPRITES / "emoji.png") as sheet:
        box = (column * cell, row * cell, (column + 1) * cell, (row + 1) * cell)
        sprite = sheet.convert("RGBA").crop(box)
    return sprite.crop(sprite.getbbox())


@cache
def sign_sprite(text: str, style: int) -> Image.Image:
    """An RGBA plate with ``text`` on it in Pillow's own font."""
    fill, ink = SIGN_STYLES[style]
    font = ImageFont.load_default(MASTER)
    left, top, right, bottom = font.getbbox(text, stroke_width=3)
    pad = MASTER // 5
    size = (int(right - left) + 2 * pad, int(bottom - top) + 2 * pad)
    plate = Image.new("RGBA", size)
    draw = ImageDraw.Draw(plate)
    corners = (0, 0, size[0] - 1, size[1] - 1)
    draw.rounded_rectangle(corners, MASTER // 8, fill=fill, outline=ink, width=8)
    draw.text((pad - left, pad - top), text, font=font, fill=ink, stroke_width=3, stroke_fill=ink)
    plate.thumbnail((2 * MASTER, 2 * MASTER), Image.Resampling.LANCZOS)
    return plate


@cache
def mark_mask(mark: str) -> Image.Image:
    """The ``L`` mask of a small mark, cropped tight."""
    mask = Image.new("L", (MASTER, MASTER))
    draw = ImageDraw.Draw(mask)
    edge = MASTER - 1
    if mark == "dot":
        draw.ellipse((0, 0, edge, edge), fill=255)
    elif mark == "ring":
        draw.ellipse((0, 0, edge, edge), outline=255, width=MASTER // 4)
    elif mark == "bar":
        draw.rectangle((0, 0, edge, MASTER * 2 // 5), fill=255)
    else:
        raise ValueError(f"no such mark: {mark}")
    return mask.crop(mask.getbbox())


@cache
def _photo(name: str) -> Image.Image:
    with Image.open(PHOTOS / f"{name}.jpg") as photo:
        return photo.convert("RGB")


def _photo_background(rng: np.random.Generator, size: int, split: str) -> Image.Image:
    names = TEST_PHOTOS if split == "test" else TRAIN_PHOTOS
    photo = _photo(names[rng.integers(len(names))])
    side = min(photo.size) * rng.uniform(0.4, 1.0)
    left = rng.uniform(0, photo.width - side)
    top = rng.uniform(0, photo.height - side)
    picture = photo.resize(
        (size, size),
        Image.Resampling.BILINEAR,
        box=(left, top, left + side, top + side),
        reducing_gap=2.0,
    )
    flip, turn = rng.random() < 0.5, int(rng.integers(3))
    if split == "train":  # few photos: mixing their channels makes more of them
        if flip:
            picture = ImageOps.mirror(picture)
        bands = picture.split()
        picture = Image.merge("RGB", bands[turn:] + bands[:turn])
    return picture


def _texture_background(rng: np.random.Generator, size: int, backdrop: str) -> Image.Image:
    """Smooth noise of two scales between two colours, with stripes or checks if asked for."""
    axis = (np.arange(96) + 0.5) / 96
    amount = np.zeros((96, 96))
    for cells, weight in ((3, 1.0), (int(rng.integers(8, 33)), rng.uniform(0.1, 0.7))):
        grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        amount += weight * np.asarray(grid.resize((96, 96), Image.Resampling.BICUBIC))
    waves, angle = rng.uniform(3, 8), rng.uniform(0, math.pi)
    u = np.cos(angle) * axis[:, None] + np.sin(angle) * axis[None, :]
    v = np.cos(angle) * axis[None, :] - np.sin(angle) * axis[:, None]
    if backdrop == "stripes":
        amount += 0.4 * np.sin(2 * math.pi * waves * u)
    elif backdrop == "checks":
        amount += 0.3 * np.sign(np.sin(2 * math.pi * waves * u) * np.sin(2 * math.pi * waves * v))
    amount = (amount - amount.min()) / np.ptp(amount)
    first = rng.uniform(20, 235, 3)
    second = np.clip(first + rng.uniform(30, 70, 3) * rng.choice((-1, 1), 3), 0, 255)
    pixels = first + amount[..., None] * (second - first)
    return Image.fromarray(pixels.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)


def background(rng: np.random.Generator, size: int, split: str, backdrop: str) -> Image.Image:
    """A photo or a texture, ``size`` x ``size`` RGB, a little washed out so that objects stand out.

    The test split has photos of its own; textures never repeat.
    """
    from_photo = backdrop == "photo"
    picture = _photo_background(rng, size, split) if from_photo else _texture_background(rng, size, backdrop)
    veil = Image.new("RGB", picture.size, tuple(int(c) for c in rng.integers(60, 200, 3)))
    return Image.blend(picture, veil, rng.uniform(0.0, 0.4))
