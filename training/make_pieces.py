"""Renders the emoji sprite sheet and shrinks the photos. Run once; what it makes is committed.

Needs Debian's ``fonts-noto-color-emoji`` and ``pip install scikit-image``, which brings the photos:
``python -m training.make_pieces /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf``
"""

import json
import sys

from PIL import Image, ImageDraw, ImageFont

from vitcop.scenes.world import PHOTOS, SPRITES, TEST_PHOTOS, TRAIN_PHOTOS

EMOJI = {
    "cat": "🐱",
    "dog": "🐶",
    "frog": "🐸",
    "fish": "🐟",
    "car": "🚗",
    "bus": "🚌",
    "apple": "🍎",
    "banana": "🍌",
    "pizza": "🍕",
    "ball": "⚽",
    "clock": "⏰",
    "key": "🔑",
    "tree": "🌲",
    "flower": "🌻",
    "house": "🏠",
    "bell": "🔔",
}
STRIKE = 109  # the only bitmap size that Noto Color Emoji contains
CELL = 128
COLUMNS = 4
PHOTO_SIDE = 288  # pixels, of a photo's shorter side


def draw_emoji(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji, cropped to its own outline and fitted into a CELL x CELL square."""
    canvas = Image.new("RGBA", (2 * STRIKE, 2 * STRIKE))
    ImageDraw.Draw(canvas).text((20, 20), character, font=font, embedded_color=True)
    drawing = canvas.crop(canvas.getbbox())
    drawing.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(drawing, ((CELL - drawing.width) // 2, (CELL - drawing.height) // 2))
    return cell


def make_sprites(font: ImageFont.FreeTypeFont) -> None:
    rows = -(-len(EMOJI) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for index, character in enumerate(EMOJI.values()):
        row, column = divmod(index, COLUMNS)
        sheet.paste(draw_emoji(character, font), (column * CELL, row * CELL))
    SPRITES.mkdir(exist_ok=True)
    sheet.save(SPRITES / "emoji.png", optimize=True)
    index = {"cell": CELL, "columns": COLUMNS, "names": list(EMOJI)}
    (SPRITES / "emoji.json").write_text(json.dumps(index, indent=2) + "\n")


def make_photos() -> None:
    from skimage import data

    PHOTOS.mkdir(exist_ok=True)
    for name in (*TRAIN_PHOTOS, *TEST_PHOTOS):
        photo = Image.fromarray(getattr(data, name)()).convert("RGB")
        scale = min(1.0, PHOTO_SIDE / min(photo.size))
        size = (round(photo.width * scale), round(photo.height * scale))
        photo.resize(size, Image.Resampling.LANCZOS).save(PHOTOS / f"{name}.jpg", quality=85, optimize=True)


def main() -> None:
    make_sprites(ImageFont.truetype(sys.argv[1], STRIKE))
    make_photos()


if __name__ == "__main__":
    main()
