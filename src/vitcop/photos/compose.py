"""Scenes of cut-outs on photographs. The same seed and the same shelf always give the same scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ..scenes import pieces
from ..scenes.compose import Scene, place
from ..scenes.item import Item
from ..scenes.world import COLORS, SIGN
from .questions import ask
from .shelf import Shelf

SIZE = 224  # pixels on a side of the picture that the model sees
SIDES = {"thing": (0.17, 0.38), SIGN: (0.24, 0.34), "dot": (0.055, 0.08)}
"""The longer side of a thing, as a share of the picture's: a dot is about one patch of the encoder."""
LEAST, MOST = 3, 10  # things in a scene
WORDS = ("stop", "open", "sale", "exit", "taxi", "cafe", "park", "shop", "zoo", "bank")
VEIL = 0.25  # the most that a background is washed out

Change = Callable[[np.random.Generator, Image.Image], Image.Image]


def _square(rng: np.random.Generator, photo: Image.Image, size: int) -> Image.Image:
    side = min(photo.size) * rng.uniform(0.5, 1.0)
    left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    box = (left, top, left + side, top + side)
    return photo.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)


def _nouns(rng: np.random.Generator, shelf: Sequence[str], total: int) -> list[str]:
    """Nouns of a scene: half of the scenes have one of them several times."""
    chosen = [str(noun) for noun in rng.permutation(shelf)[:total]]
    if rng.random() < 0.5:
        repeats = int(rng.integers(1, min(4, total)))
        chosen[1 : 1 + repeats] = [chosen[0]] * repeats
    return chosen


def compose(
    rng: np.random.Generator,
    shelf: Shelf,
    size: int = SIZE,
    change: Change | None = None,
    most: int = MOST,
    sides: tuple[float, float] = SIDES["thing"],
) -> Scene:
    """A scene of things from the shelf, with every question that it allows.

    Args:
        rng: decides everything.
        size: pixels on a side.
        change: what is done to each cut-out before it is laid, as training does for variety.
        most: things at most.
        sides: the least and the greatest longer side of a thing, as a share of the picture's.
    """
    background = shelf.backgrounds[int(rng.integers(len(shelf.backgrounds)))]
    picture = _square(rng, background.picture, size)
    veil = Image.new("RGB", picture.size, tuple(int(c) for c in rng.integers(60, 200, 3)))
    picture = Image.blend(picture, veil, rng.uniform(0.0, VEIL))
    nouns = [noun for noun in shelf.cutouts if noun not in background.shows]
    drafts: list[tuple[Item, Image.Image]] = []

    def lay(sprite: Image.Image, reach: tuple[float, float], **said: str) -> None:
        box = place(rng, sprite.size, reach, [item.box for item, _ in drafts])
        if box is not None:
            drafts.append((Item(box=box, **said), sprite))

    total = int(rng.integers(min(LEAST, most), most + 1))
    if most > LEAST and rng.random() < 0.3:
        word = WORDS[int(rng.integers(len(WORDS)))]
        lay(pieces.sign_sprite(word, int(rng.integers(len(pieces.SIGN_STYLES)))), SIDES[SIGN], kind=SIGN, text=word)
    if most > LEAST and rng.random() < 0.4:
        color = list(COLORS)[int(rng.integers(len(COLORS)))]
        dot = Image.new("RGBA", pieces.mark_mask("dot").size, COLORS[color])
        dot.putalpha(pieces.mark_mask("dot"))
        lay(dot, SIDES["dot"], kind="dot", color=color)
    for noun in _nouns(rng, nouns, total):
        cutout = shelf.cutouts[noun][int(rng.integers(len(shelf.cutouts[noun])))]
        if rng.random() < 0.5:
            cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        lay(change(rng, cutout) if change else cutout, sides, kind=noun)
    owner = Image.new("L", picture.size)
    for number, (item, sprite) in enumerate(drafts, start=1):
        left, top, right, bottom = (round(edge * size) for edge in item.box)
        extent = (max(1, right - left), max(1, bottom - top))
        sprite = sprite.resize(extent, Image.Resampling.BILINEAR, reducing_gap=2.0)
        picture.paste(sprite.convert("RGB"), (left, top), sprite.getchannel("A"))
        owner.paste(number, (left, top), sprite.getchannel("A").point(lambda alpha: 255 * (alpha > 127)))
    items = tuple(item for item, _ in drafts)
    questions = tuple(ask(rng, items, nouns, background.answer))
    return Scene(picture, background.answer or "photo", items, np.asarray(owner), questions)
