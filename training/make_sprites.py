"""Renders the emoji sprite sheet. Run once; its output is committed, so training needs no font.

Needs Debian's ``fonts-noto-color-emoji``:
``python -m training.make_sprites /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf``
"""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

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


def draw_emoji(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji, cropped to its own outline and fitted into a CELL x CELL square."""
    canvas = Image.new("RGBA", (2 * STRIKE, 2 * STRIKE))
    ImageDraw.Draw(canvas).text((20, 20), character, font=font, embedded_color=True)
    drawing = canvas.crop(canvas.getbbox())
    drawing.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(drawing, ((CELL - drawing.width) // 2, (CELL - drawing.height) // 2))
    return cell


def main() -> None:
    font = ImageFont.truetype(sys.argv[1], STRIKE)
    rows = -(-len(EMOJI) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for index, character in enumerate(EMOJI.values()):
        row, column = divmod(index, COLUMNS)
        sheet.paste(draw_emoji(character, font), (column * CELL, row * CELL))
    folder = Path(__file__).parent / "sprites"
    folder.mkdir(exist_ok=True)
    sheet.save(folder / "emoji.png", optimize=True)
    index = {"cell": CELL, "columns": COLUMNS, "names": list(EMOJI)}
    (folder / "emoji.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
