"""Generated scenes: a few objects on a background. The same seed always gives the same scene."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from training import pieces
from training.questions import Question, ask
from training.world import COLORS, EMOJI, HELD_OUT_PAIRS, SHAPES, SIGN, SPLITS, WORDS

SIZE = 96  # pixels on a side of the picture that the model sees
MOST_OBJECTS = 6
CLEARANCE = 0.01  # between the boxes of two objects, as a share of the picture's side


@dataclass(frozen=True)
class Item:
    """One object. ``box`` is left, top, right, bottom as shares of the picture's side."""

    kind: str
    box: tuple[float, float, float, float]
    color: str | None = None  # shapes only
    text: str | None = None  # signs only

    @property
    def center(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Scene:
    picture: Image.Image
    items: tuple[Item, ...]
    owner: np.ndarray  # uint8, picture height x width: 0 for background, else index of item + 1
    questions: tuple[Question, ...]

    def patch_owner(self, side: int) -> np.ndarray:
        """Which item covers most of each patch, and at least a fifth: side x side, as owner."""
        cell = self.owner.shape[0] // side
        cells = self.owner.reshape(side, cell, side, cell).transpose(0, 2, 1, 3)
        cells = cells.reshape(side, side, cell * cell)
        shares = np.stack([(cells == i).mean(-1) for i in range(len(self.items) + 1)])
        shares[0] = 0.2
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
    paint = np.clip(np.array(COLORS[color]) + rng.integers(-16, 17, 3), 0, 255)
    mask = pieces.shape_mask(kind)
    return _Draft(kind, color, None, mask, tuple(int(c) for c in paint))


def _draft_sign(rng: np.random.Generator) -> _Draft:
    text = _pick(rng, WORDS) if rng.random() < 0.5 else str(rng.integers(100))
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


def _draft_all(rng: np.random.Generator, split: str) -> list[_Draft]:
    drafts = [_draft_sign(rng)] if rng.random() < 0.5 else []
    if rng.random() < 0.7:
        drafts += _draft_repeats(rng, int(rng.integers(2, 6)), split)
    least = max(3, len(drafts))
    total = int(rng.integers(least, MOST_OBJECTS + 1)) if least < MOST_OBJECTS else MOST_OBJECTS
    while len(drafts) < total:
        drafts.append(_draft_any(rng, split))
    return drafts


def _place(
    rng: np.random.Generator, draft: _Draft, taken: list[tuple[float, float, float, float]]
) -> tuple[float, float, float, float] | None:
    """A box for ``draft`` that touches no other, or None where no room was found."""
    for attempt in range(30):
        side = rng.uniform(0.36, 0.48) if draft.kind == SIGN else rng.uniform(0.20, 0.34)
        side *= 1 - attempt / 60  # the harder the search, the smaller the object
        scale = side / max(draft.sprite.size)
        width, height = draft.sprite.width * scale, draft.sprite.height * scale
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
    for _ in range(rng.integers(0, 4)):
        ink = tuple(int(c) for c in rng.integers(0, 256, 3))
        points = rng.uniform(0, size, 4)
        if rng.random() < 0.5:
            draw.line(tuple(points), fill=ink, width=max(1, size // 96))
        else:
            reach = size / 96 * rng.uniform(0.6, 1.5)
            x, y = points[:2]
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=ink)


def scene(seed: int, split: str = "train", size: int = SIZE) -> Scene:
    """The scene of this seed, drawn ``size`` pixels on a side.

    The test split has backgrounds and pairs of colour and shape that training never shows. Its
    seeds are disjoint from training's too.
    """
    rng = np.random.default_rng((SPLITS.index(split), seed))
    picture = pieces.background(rng, size, split)
    _clutter(np.random.default_rng((2, SPLITS.index(split), seed)), picture)
    owner = Image.new("L", (size, size))
    items: list[Item] = []
    for draft in _draft_all(rng, split):
        box = _place(rng, draft, [item.box for item in items])
        if box is None:
            continue
        pixels = tuple(round(edge * size) for edge in box)
        extent = (max(1, pixels[2] - pixels[0]), max(1, pixels[3] - pixels[1]))
        sprite = draft.sprite.resize(extent, Image.Resampling.BILINEAR, reducing_gap=2.0)
        mask = sprite if draft.paint else sprite.getchannel("A")
        picture.paste(draft.paint or sprite.convert("RGB"), pixels[:2], mask)
        items.append(Item(draft.kind, box, draft.color, draft.text))
        solid = mask.point(lambda alpha: 255 * (alpha > 127))
        owner.paste(len(items), pixels[:2], solid)
    questions = ask(rng, items, split)
    return Scene(picture, tuple(items), np.asarray(owner), tuple(questions))
