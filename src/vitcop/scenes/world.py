"""What can stand in a scene, and which part of it only the test split shows."""

import json
from pathlib import Path

SPRITES = Path(__file__).parent / "sprites"
PHOTOS = Path(__file__).parent / "photos"

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLORS = {
    "red": (214, 40, 40),
    "yellow": (248, 214, 40),
    "green": (40, 160, 64),
    "blue": (40, 88, 216),
    "purple": (144, 56, 176),
    "white": (244, 244, 244),
    "black": (24, 24, 24),
}
EMOJI = tuple(json.loads((SPRITES / "emoji.json").read_text())["names"])
SIGN = "sign"
DIGITS = tuple("0123456789")
WORDS = ("stop", "open", "sale", "exit", "taxi", "cafe", "park", "shop", "zoo", "bank")
TEXTS = (*WORDS, *DIGITS)  # what a sign may say
KINDS = (*SHAPES, *EMOJI, SIGN)
# Small coloured things that no caption would name.
MARKS = ("dot", "ring", "bar")
BACKDROPS = ("photo", "plain", "stripes", "checks")

# Pairs of colour and shape which no training picture and no training question contains.
HELD_OUT_PAIRS = frozenset({("red", "star"), ("blue", "heart"), ("green", "cross"), ("purple", "circle")})
TRAIN_PHOTOS = (
    "astronaut", "coffee", "hubble_deep_field", "immunohistochemistry", "retina",
    "grass", "gravel", "camera",
)  # fmt: skip
TEST_PHOTOS = ("chelsea", "rocket", "brick")

SPLITS = ("train", "test")
