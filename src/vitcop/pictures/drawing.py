"""What pictures of kept tokens are drawn of: grids, the columns of a page, and its legend."""

from __future__ import annotations

import colorsys
import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from PIL import Image, ImageDraw, ImageFont

from ..errors import VitcopError

if TYPE_CHECKING:
    from ..models.grids import Grids

Color = tuple[int, int, int]
Place = tuple[int, int]  # column and row of a cell
Groups = dict[int, set[int]]  # a token that took others in -> all tokens it stands for, itself included

# Sizes are in pixels, and large because a page shows the overlay at less than half its size.
SHORTEST_SIDE = 480  # of a grid that is drawn alone
LONGEST_SIDE = 8 * SHORTEST_SIDE  # of any grid: encoders take strips that are 200 times as long as wide
MARGIN, GAP, SWATCH = 40, 36, 36
TITLE, TEXT = ImageFont.load_default(38), ImageFont.load_default(30)
LINE = 48

PAPER, INK, PALE_INK = (255, 255, 255), (24, 24, 27), (95, 95, 104)
DROPPED, HATCH, KEPT = (228, 228, 228), (150, 150, 150), (196, 138, 84)
NOTE = "What is dropped before a layer has been read by all layers before that one."


@runtime_checkable
class KeptByStage(Protocol):
    """What is drawn of a stage: see `vitcop.StageReport`."""

    @property
    def where(self) -> str: ...
    @property
    def after(self) -> Sequence[int]: ...
    def kept(self, image: int = 0) -> list[int]: ...
    def merged(self, image: int = 0) -> dict[int, list[int]]: ...


@runtime_checkable
class Kept(Protocol):
    """What is drawn of a prompt: see `vitcop.Report`, which draws itself by this folder."""

    @property
    def images(self) -> Sequence[Grids]: ...
    @property
    def image_lengths(self) -> Sequence[int]: ...
    @property
    def modalities(self) -> Sequence[str]: ...
    @property
    def stages(self) -> Sequence[KeptByStage]: ...


def groups_of_stages(report: Kept, image: int) -> list[Groups]:
    """For every stage, the tokens that stand for others from then on."""
    groups: Groups = {}
    stages = []
    for stage in report.stages:
        merged = {token: {token, *members} for token, members in stage.merged(image).items()}
        for members in merged.values():
            members.update(*(groups.get(member, ()) for member in members))
        kept = set(stage.kept(image))
        groups = {token: members for token, members in (groups | merged).items() if token in kept and len(members) > 1}
        stages.append(groups)
    return stages


def colors_of(tokens: Iterable[int]) -> dict[int, Color]:
    """A colour for every token that stands for others."""
    return {token: _color(number) for number, token in enumerate(dict.fromkeys(tokens))}


def _color(number: int) -> Color:
    """A bright colour; steps of the golden ratio keep any number of hues apart."""
    red, green, blue = colorsys.hsv_to_rgb(0.58 + number * 0.618034, 0.85, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


@dataclass(frozen=True)
class Grid:
    """A grid as it is drawn.

    Attributes:
        picture: what it covers.
        cell: pixels on a side of a token.
        places: of its tokens, by their numbers in the image. Other cells are drawn blank.
    """

    picture: Image.Image
    cell: int
    places: dict[int, Place]

    def seen(self) -> Image.Image:
        """The picture as it became tokens."""
        return self._cut_out(self.picture)

    def panel(self, kept: Iterable[int], groups: Groups, colors: dict[int, Color]) -> Image.Image:
        """The picture, every token shown as what became of it; tokens of other grids do not matter."""
        panel = _tinted(self.picture.convert("L").convert("RGB"), DROPPED, 0.75)
        _draw_hatching(panel, self.cell)
        for token, members in groups.items():
            panel.paste(_tinted(self.picture, colors[token], 0.5), mask=self._mask(members))
        panel.paste(self.picture, mask=self._mask(kept))
        draw = ImageDraw.Draw(panel)
        for token, members in groups.items():
            _draw_outline(draw, self._places_of(members), self.cell, colors[token])
            if token in self.places:
                _draw_dot(draw, self.places[token], self.cell, colors[token])
        return self._cut_out(panel)

    def _cut_out(self, picture: Image.Image) -> Image.Image:
        return Image.composite(picture, Image.new("RGB", picture.size, PAPER), self._mask(self.places))

    def _mask(self, tokens: Iterable[int]) -> Image.Image:
        small = Image.new("L", (self.picture.width // self.cell, self.picture.height // self.cell))
        for place in self._places_of(tokens):
            small.putpixel(place, 255)
        return small.resize(self.picture.size, Image.Resampling.NEAREST)

    def _places_of(self, tokens: Iterable[int]) -> set[Place]:
        return {self.places[token] for token in tokens if token in self.places}


def grids_of(pictures: Sequence[Image.Image], image: Grids, shortest_side: int) -> list[Grid]:
    """What is drawn of an image, from a picture of each of its grids.

    Raises:
        VitcopError: there is not one picture for each grid.
    """
    if len(pictures) != len(image.shapes):
        raise VitcopError(f"overlay needs one picture for each of the {len(image.shapes)} grids; got {len(pictures)}.")
    places: list[dict[int, Place]] = [{} for _ in pictures]
    for token, (number, row, column) in enumerate(image.cells):
        places[number][token] = column, row
    grids = []
    for picture, (rows, columns), tokens in zip(pictures, image.shapes, places, strict=True):
        cell = min(-(-shortest_side // min(rows, columns)), max(1, LONGEST_SIDE // max(rows, columns)))
        size = columns * cell, rows * cell
        grids.append(Grid(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), cell, tokens))
    return grids


def has_blanks(image: Grids) -> bool:
    """Whether there are cells for which there is no token."""
    return image.num_tokens < sum(math.prod(shape) for shape in image.shapes)


def _tinted(picture: Image.Image, color: Color, share: float) -> Image.Image:
    return Image.blend(picture, Image.new("RGB", picture.size, color), share)


def _draw_hatching(panel: Image.Image, cell: int) -> None:
    """Draw slanted lines, two through each cell: plain grey could be the paper of a picture."""
    draw = ImageDraw.Draw(panel)
    step = max(4, cell // 2)
    for left in range(-panel.height, panel.width, step):
        draw.line((left, panel.height, left + panel.height, 0), fill=HATCH, width=max(1, cell // 12))


def _draw_outline(draw: ImageDraw.ImageDraw, places: Collection[Place], cell: int, color: Color) -> None:
    """Draw the border of a group inside its cells, where it cannot cover that of a neighbouring group."""
    for column, row in places:
        for across in (-1, 0, 1):
            for down in (-1, 0, 1):
                if (column + across, row + down) not in places:
                    left, right = _rim(column * cell, cell, across)
                    top, bottom = _rim(row * cell, cell, down)
                    draw.rectangle((left, top, right, bottom), fill=color)


def _rim(start: int, cell: int, side: int) -> tuple[int, int]:
    """First and last pixel of the line along the near (-1) or the far side (1) of a cell, or from end to end (0)."""
    line = max(2, cell // 9)
    first = start + cell - line if side == 1 else start
    last = start + line if side == -1 else start + cell
    return first, last - 1


def _draw_dot(draw: ImageDraw.ImageDraw, place: Place, cell: int, color: Color) -> None:
    center = (place[0] + 0.5) * cell, (place[1] + 0.5) * cell
    draw.circle(center, cell / 5, fill=color, outline=PAPER, width=max(1, cell // 16))


@dataclass(frozen=True)
class Column:
    """Panels below each other, under a title and a caption."""

    title: str
    caption: str
    panels: Sequence[Image.Image]

    @property
    def width(self) -> int:
        texts = TITLE.getlength(self.title), TEXT.getlength(self.caption)
        return max(*map(math.ceil, texts), *(panel.width for panel in self.panels))

    @property
    def height(self) -> int:
        return 2 * LINE + sum(panel.height + GAP for panel in self.panels) - GAP

    def draw_on(self, page: Image.Image, left: int, top: int) -> None:
        draw = ImageDraw.Draw(page)
        draw.text((left, top), self.title, INK, TITLE)
        draw.text((left, top + LINE), self.caption, PALE_INK, TEXT)
        top += 2 * LINE
        for panel in self.panels:
            page.paste(panel, (left, top))
            top += panel.height + GAP


def page_of(heading: Sequence[str], rows: Sequence[Sequence[Column]], legend: Image.Image) -> Image.Image:
    """Lines of a heading, rows of columns, the first of them the longest, and below what their colours mean."""
    width = max(column.width for row in rows for column in row)
    inside = max(len(rows[0]) * (width + GAP) - GAP, legend.width, round(TEXT.getlength(NOTE)))
    lines = [line for text in heading for line in _wrapped(text, inside)]
    heights = [max(column.height for column in row) for row in rows]
    start = MARGIN + (len(lines) * LINE + GAP if lines else 0)
    *tops, bottom = accumulate([start, *(GAP + height for height in heights)])
    page = Image.new("RGB", (2 * MARGIN + inside, bottom + legend.height + LINE + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + number * LINE), line, INK, TITLE)
    for top, row in zip(tops, rows, strict=True):
        for number, column in enumerate(row):
            column.draw_on(page, MARGIN + number * (width + GAP), top)
    page.paste(legend, (MARGIN, bottom))
    draw.text((MARGIN, bottom + legend.height + LINE // 2), NOTE, PALE_INK, TEXT)
    return page


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Lines that are no wider than so many pixels; a word that is wider goes over several."""
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and TITLE.getlength(longer) > width:
            yield line
            longer = word
        while len(longer) > 1 and TITLE.getlength(longer) > width:
            ends = range(2, len(longer))  # a line has one character at least
            end = 1 + bisect_right(ends, float(width), key=lambda end: TITLE.getlength(longer[:end]))
            yield longer[:end]
            longer = longer[end:]
        line = longer
    yield line


def legend_of(*, merging: bool, blanks: bool) -> Image.Image:
    """What the colours mean, in a row."""
    items = [("kept", _swatch(1, kept=[0])), ("dropped", _swatch(1, kept=[]))]
    if merging:
        items.append(("merged into the token with the dot", _swatch(2, kept=[0], groups={0: {0, 1}})))
    if blanks:
        blank = Image.new("RGB", (SWATCH, SWATCH), PAPER)
        ImageDraw.Draw(blank).rectangle((0, 0, SWATCH - 1, SWATCH - 1), outline=PALE_INK)
        items.append(("not a token", blank))
    widths = [swatch.width + SWATCH // 2 + round(TEXT.getlength(text)) for text, swatch in items]
    legend = Image.new("RGB", (sum(widths) + 2 * SWATCH * (len(items) - 1), SWATCH), PAPER)
    draw = ImageDraw.Draw(legend)
    left = 0
    for (text, swatch), width in zip(items, widths, strict=True):
        legend.paste(swatch, (left, 0))
        draw.text((left + swatch.width + SWATCH // 2, SWATCH / 2), text, PALE_INK, TEXT, anchor="lm")
        left += width + 2 * SWATCH
    return legend


def _swatch(tokens: int, kept: Collection[int], groups: Groups | None = None) -> Image.Image:
    plain = Image.new("RGB", (tokens * SWATCH, SWATCH), KEPT)
    grid = Grid(plain, SWATCH, {token: (token, 0) for token in range(tokens)})
    return grid.panel(kept, groups or {}, {0: _color(0)})
