"""Generated scenes: objects and small marks on a background. The same seed always gives the same scene."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from vitcop.scenes import pieces
from vitcop.scenes.item import Item
from vitcop.scenes.questions import Question, ask
from vitcop.scenes.world import BACKDROPS, COLORS, DIGITS, EMOJI, HELD_OUT_PAIRS, MARKS, SHAPES, SIGN, SPLITS, WORDS

SIZE = 144  # pixels on a side of the picture that the model sees
LEAST_OBJECTS, MOST_OBJECTS = 4, 8
PHOTO_SHARE = 0.4  # of the backgrounds; the other backdrops share the rest
# The longer side of a thing, as a share of the picture's: a mark of 8 pixels, a sign of 55.
SIDES = {"sign": (0.28, 0.38), "mark": (0.06, 0.085), "object": (0.12, 0.24)}
COVERED = 0.12  # the least share of a patch that a thing must cover to be what the patch shows
CLEARANCE = 0.01  # between the boxes of two objects, as a share of the picture's side


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture, what is in it, and questions about it."""

    picture: Image.Image
    backdrop: str
    items: tuple[Item, ...]  # objects first, then marks
    owner: np.ndarray  # uint8, picture height x width: 0 for background, else index of item + 1
    questions: tuple[Question, ...]

    def patch_owner(self, side: int, covered: float = COVERED) -> np.ndarray:
        """Which item covers most of each patch, and at least a share of it: side x side, as owner."""
        cell = self.owner.shape[0] // side
        pixels = self.owner.reshape(side, cell, side, cell).transpose(0, 2, 1, 3)
        cells = pixels.reshape(side, side, cell * cell)
        shares = np.stack([(cells == i).mean(-1) for i in range(len(self.items) + 1)])
        shares[0] = covered
        return shares.argmax(0)


@dataclass(frozen=True)
class _Draft:
    kind: str
    color: str | None
    text: str | None
    sprite: Image.Image  # RGBA, or an L mask which is filled with ``paint``
    paint: tuple[int, int, int] | None


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


def _draft_shape(rng: np.random.Generator, kind: str, color: str, split: str) -> _Draft:
    while split == "train" and (color, kind) in HELD_OUT_PAIRS:
        color = _pick(rng, tuple(COLORS))
    red, green, blue = np.clip(np.array(COLORS[color]) + rng.integers(-16, 17, 3), 0, 255)
    return _Draft(kind, color, None, pieces.shape_mask(kind), (int(red), int(green), int(blue)))


def _draft_sign(rng: np.random.Generator) -> _Draft:
    text = _pick(rng, WORDS if rng.random() < 0.6 else DIGITS)
    style = int(rng.integers(len(pieces.SIGN_STYLES)))
    return _Draft(SIGN, None, text, pieces.sign_sprite(text, style), None)


def _draft_any(rng: np.random.Generator, split: str) -> _Draft:
    if rng.random() < 0.6:
        return _draft_shape(rng, _pick(rng, SHAPES), _pick(rng, tuple(COLORS)), split)
    kind = _pick(rng, EMOJI)
    return _Draft(kind, None, None, pieces.emoji_sprite(kind), None)


def _draft_repeats(rng: np.random.Generator, count: int, split: str) -> list[_Draft]:
    """``count`` objects that share a shape, a colour, both, or are the same emoji."""
    way = rng.integers(4)
    shape, color, emoji = _pick(rng, SHAPES), _pick(rng, tuple(COLORS)), _pick(rng, EMOJI)
    if way == 0:
        return [_Draft(emoji, None, None, pieces.emoji_sprite(emoji), None)] * count
    drafts = []
    for _ in range(count):
        drafts.append(
            _draft_shape(
                rng,
                _pick(rng, SHAPES) if way == 1 else shape,
                _pick(rng, tuple(COLORS)) if way == 2 else color,
                split,
            )
        )
    return drafts


def _draft_marks(rng: np.random.Generator) -> list[_Draft]:
    """One to three marks, each of another kind, so that its kind names it."""
    drafts = []
    for mark in rng.permutation(MARKS)[: rng.integers(1, len(MARKS) + 1)]:
        color = _pick(rng, tuple(COLORS))
        drafts.append(_Draft(str(mark), color, None, pieces.mark_mask(mark), COLORS[color]))
    return drafts


def _draft_all(rng: np.random.Generator, split: str) -> list[_Draft]:
    drafts = [_draft_sign(rng)] if rng.random() < 0.6 else []
    if rng.random() < 0.7:
        drafts += _draft_repeats(rng, int(rng.integers(2, 5)), split)
    total = int(rng.integers(max(LEAST_OBJECTS, len(drafts)), MOST_OBJECTS + 1))
    while len(drafts) < total:
        drafts.append(_draft_any(rng, split))
    return drafts + _draft_marks(rng)


Box = tuple[float, float, float, float]


def place(
    rng: np.random.Generator, extent: tuple[int, int], sides: tuple[float, float], taken: Sequence[Box]
) -> Box | None:
    """A box for a sprite that touches no other, or None where no room was found.

    Args:
        extent: width and height of the sprite, whose proportions the box has.
        sides: the least and the greatest longer side of the box.
        taken: boxes of others; all are left, top, right, bottom as shares of the picture's side.
    """
    least, most = sides
    for attempt in range(30):
        side = max(least, rng.uniform(least, most) * (1 - attempt / 60))  # the longer the search, the smaller
        scale = side / max(extent)
        width, height = extent[0] * scale, extent[1] * scale
        left, top = rng.uniform(0.01, 0.99 - width), rng.uniform(0.01, 0.99 - height)
        box = (left, top, left + width, top + height)
        if all(
            box[2] + CLEARANCE < other[0]
            or other[2] + CLEARANCE < box[0]
            or box[3] + CLEARANCE < other[1]
            or other[3] + CLEARANCE < box[1]
            for other in taken
        ):
            return box
    return None


def _clutter(rng: np.random.Generator, picture: Image.Image) -> None:
    """Thin lines and specks that no question asks about."""
    draw = ImageDraw.Draw(picture)
    size = picture.width
    for _ in range(rng.integers(0, 7)):
        ink = tuple(int(c) for c in rng.integers(0, 256, 3))
        points = rng.uniform(0, size, 4)
        if rng.random() < 0.5:
            draw.line(tuple(points), fill=ink, width=max(1, size // 144))
        else:
            reach = size / 144 * rng.uniform(0.6, 1.4)
            x, y = points[:2]
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=ink)


def scene(seed: int, split: str = "train", size: int = SIZE) -> Scene:
    """The scene of this seed, drawn ``size`` pixels on a side.

    The test split has backgrounds and pairs of colour and shape that training never shows. Its
    seeds are disjoint from training's too.
    """
    rng = np.random.default_rng((SPLITS.index(split), seed))
    backdrop = "photo" if rng.random() < PHOTO_SHARE else _pick(rng, BACKDROPS[1:])
    picture = pieces.background(rng, size, split, backdrop)
    _clutter(np.random.default_rng((2, SPLITS.index(split), seed)), picture)
    owner = Image.new("L", (size, size))
    items: list[Item] = []
    for draft in _draft_all(rng, split):
        sides = SIDES["sign" if draft.kind == SIGN else "mark" if draft.kind in MARKS else "object"]
        box = place(rng, draft.sprite.size, sides, [item.box for item in items])
        if box is None:
            continue
        left, top, right, bottom = (round(edge * size) for edge in box)
        extent = (max(1, right - left), max(1, bottom - top))
        sprite = draft.sprite.resize(extent, Image.Resampling.BILINEAR, reducing_gap=2.0)
        mask = sprite if draft.paint else sprite.getchannel("A")
        picture.paste(draft.paint or sprite.convert("RGB"), (left, top), mask)
        items.append(Item(draft.kind, box, draft.color, draft.text))
        solid = mask.point(lambda alpha: 255 * (alpha > 127))
        owner.paste(len(items), (left, top), solid)
    questions = ask(rng, items, backdrop, split)
    return Scene(picture, backdrop, tuple(items), np.asarray(owner), tuple(questions))
