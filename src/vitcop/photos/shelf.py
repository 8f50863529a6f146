"""What scenes are made of: cut-outs by noun, and photographs to lay them on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from ..scenes.world import PHOTOS

CUTOUTS = Path(__file__).parent / "cutouts"
SIDE = 192  # pixels, of a cut-out's longer side
SOLID = 40  # alpha from which a pixel belongs to a cut-out
TEXTURES = {"brick": "bricks", "grass": "grass", "gravel": "gravel", "hubble_deep_field": "stars"}
"""Photographs of which a question asks what they are: the left half is for training, the right one for the test."""
UNSEEN = {"rocket": ("rocket",), "astronaut": ("rocket",), "coffee": ("mug",), "camera": ("camera", "glove", "jacket")}
"""Photographs that training never shows, and nouns that they show themselves."""


@dataclass(frozen=True, eq=False)
class Background:
    """A photograph to lie things on.

    Attributes:
        picture: RGB; scenes take random squares of it.
        answer: what it is, if a question may ask that.
        shows: nouns that it shows by itself, which its scenes therefore leave alone.
    """

    picture: Image.Image
    answer: str | None = None
    shows: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Shelf:
    """What scenes are made of.

    Attributes:
        cutouts: RGBA pictures, cropped tight, by noun.
        backgrounds: at least one.
    """

    cutouts: Mapping[str, Sequence[Image.Image]]
    backgrounds: Sequence[Background]


def tight(picture: Image.Image) -> Image.Image:
    """RGBA without its empty margins, at most SIDE pixels on its longer side."""
    picture = picture.convert("RGBA")
    picture = picture.crop(picture.getchannel("A").point(lambda alpha: 255 * (alpha > SOLID)).getbbox())
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def photo(name: str) -> Image.Image:
    """One of the photographs that scenes of drawn things have as well."""
    with Image.open(PHOTOS / f"{name}.jpg") as opened:
        return opened.convert("RGB")


def textures(half: int) -> list[Background]:
    """The left (0) or the right (1) halves."""
    found = []
    for name, answer in TEXTURES.items():
        whole = photo(name)
        edges = (0, whole.width // 2, whole.width)
        found.append(Background(whole.crop((edges[half], 0, edges[half + 1], whole.height)), answer))
    return found


@cache
def shipped() -> Shelf:
    """The cut-outs of the package on photographs, and parts of photographs, that the testbed was not trained on."""
    cutouts: dict[str, list[Image.Image]] = {}
    for file in sorted(CUTOUTS.glob("*.webp")):
        with Image.open(file) as opened:
            cutouts.setdefault(file.stem.partition("-")[0], []).append(tight(opened))
    return Shelf(cutouts, [*textures(1), *(Background(photo(name), shows=shows) for name, shows in UNSEEN.items())])
