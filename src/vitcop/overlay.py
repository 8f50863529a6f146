"""A picture of what pruning kept: the image as the model sees it, and what each stage left of it."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from .errors import VitcopError

if TYPE_CHECKING:
    from torch import Tensor

    from .models.grids import Grids
    from .report import Report

Color = tuple[int, int, int]
Place = tuple[int, int]  # column and row of a cell
Groups = dict[int, set[int]]  # a token that took others in -> all tokens it stands for, itself included

# Sizes are in pixels, and large because a page shows the overlay at less than half its size.
SHORTEST_SIDE = 480  # of a grid; less, down to SMALLEST_SIDE, where grids would stack up higher than TALLEST
TALLEST, SMALLEST_SIDE = 1920, 160
MARGIN, GAP, SWATCH = 40, 36, 36
TITLE, TEXT = ImageFont.load_default(38), ImageFont.load_default(30)
LINE = 48

PAPER, INK, PALE_INK = (255, 255, 255), (24, 24, 27), (95, 95, 104)
DROPPED, KEPT = (228, 228, 228), (196, 138, 84)


def as_seen(picture: Image.Image, image_processor: Any) -> Image.Image:
    """The part of a picture that the model gets to see, at full resolution.

    The model's own pixel values show the same part, but on a page they would be a blur.

    Args:
        picture: what goes into the processor.
        image_processor: of a transformers processor. Its centre crop is followed; without one, all is seen.
    """
    if not getattr(image_processor, "do_center_crop", False):
        return picture
    size, crop = image_processor.size, image_processor.crop_size
    if "shortest_edge" in size:
        across = down = min(picture.size) / size["shortest_edge"]
    else:
        across, down = picture.width / size["width"], picture.height / size["height"]
    width, height = round(crop["width"] * across), round(crop["height"] * down)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def tiles_as_seen(pixel_values: Tensor, image_processor: Any) -> list[Image.Image]:
    """The tiles that an image processor has made of one picture, its thumbnail included.

    Args:
        pixel_values: (tiles, 3, height, width) or (1, tiles, 3, height, width), as they go into the model.
        image_processor: the one that made them, whose mean and standard deviation are undone.

    Raises:
        VitcopError: the pixel values have another shape.
    """
    tiles = pixel_values[0] if pixel_values.ndim == 5 and len(pixel_values) == 1 else pixel_values
    if tiles.ndim != 4:
        raise VitcopError(
            f"No picture of these tiles can be drawn: pixel values of shape {tuple(pixel_values.shape)} are not those "
            "of the tiles of one picture."
        )
    tiles = tiles.detach().float().cpu()
    mean, std = (
        tiles.new_tensor(each)[:, None, None] for each in (image_processor.image_mean, image_processor.image_std)
    )
    values = (255 * (tiles * std + mean)).round().clamp(0, 255).byte()
    return [Image.fromarray(tile.numpy()) for tile in values.permute(0, 2, 3, 1)]


def overlay(pictures: Image.Image | Sequence[Image.Image], report: Report, image: int = 0) -> Image.Image:
    """Draw what every stage left of an image or a video: a column for each stage, and a row for each grid.

    Kept tokens have their colours and dropped ones are grey. Merged ones are tinted, and share an outline
    with the token that stands for them, which has a dot, until that one is dropped as well. A group may be
    spread over several grids. Cells for which there is no token, as their padding was cut away, are blank.

    Args:
        pictures: what each of `report.images[image].shapes` covers: a picture (see `as_seen`), the tiles of
            one (see `tiles_as_seen`), or frames of a video.
        report: of the prefill that read the image.
        image: its number in the report.

    Raises:
        VitcopError: there is not one picture for each grid.
    """
    pictures = [pictures] if isinstance(pictures, Image.Image) else pictures
    shapes, total = report.images[image].shapes, report.image_lengths[image]
    if len(pictures) != len(shapes):
        raise VitcopError(f"overlay needs one picture for each of the {len(shapes)} grids; got {len(pictures)}.")
    grids = _grids(pictures, report.images[image])
    groups_of_stages = _groups_of_stages(report, image)
    survivors = dict.fromkeys(token for groups in groups_of_stages for token in groups)
    colors = {token: _color(number) for number, token in enumerate(survivors)}

    columns = [_Column("As the model sees it", f"{total} tokens", [grid.seen() for grid in grids])]
    for stage, groups in zip(report.stages, groups_of_stages, strict=True):
        title = f"Before layer {stage.layer}" if stage.layer else "Entering the decoder"
        panels = [grid.panel(stage.kept(image), groups, colors) for grid in grids]
        columns.append(_Column(title, f"{stage.after[image]} of {total} tokens", panels))
    cells = sum(math.prod(shape) for shape in shapes)
    return _page(columns, _legend(merging=bool(survivors), blanks=total < cells))


def _groups_of_stages(report: Report, image: int) -> list[Groups]:
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


def _color(number: int) -> Color:
    """A bright colour; steps of the golden ratio keep any number of hues apart."""
    red, green, blue = colorsys.hsv_to_rgb(0.58 + number * 0.618034, 0.85, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


@dataclass(frozen=True)
class _Grid:
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


def _grids(pictures: Sequence[Image.Image], image: Grids) -> list[_Grid]:
    """What is drawn of an image, from a picture of each of its grids."""
    places: list[dict[int, Place]] = [{} for _ in pictures]
    for token, (number, row, column) in enumerate(image.cells):
        places[number][token] = column, row
    shortest_side = max(SMALLEST_SIDE, min(SHORTEST_SIDE, TALLEST // len(pictures)))
    grids = []
    for picture, (rows, columns), tokens in zip(pictures, image.shapes, places, strict=True):
        cell = -(-shortest_side // min(rows, columns))
        size = columns * cell, rows * cell
        grids.append(_Grid(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), cell, tokens))
    return grids


def _tinted(picture: Image.Image, color: Color, share: float) -> Image.Image:
    return Image.blend(picture, Image.new("RGB", picture.size, color), share)


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
class _Column:
    """The panels of one stage, one per grid."""

    title: str
    caption: str
    panels: Sequence[Image.Image]

    @property
    def width(self) -> int:
        texts = TITLE.getlength(self.title), TEXT.getlength(self.caption)
        return max(*map(math.ceil, texts), *(panel.width for panel in self.panels))


def _page(columns: Sequence[_Column], legend: Image.Image) -> Image.Image:
    """Columns side by side, each below its title and caption, and what their colours mean below them."""
    width, heights = max(column.width for column in columns), [panel.height for panel in columns[0].panels]
    tops = [MARGIN + 2 * LINE, *(GAP + height for height in heights)]
    *tops, bottom = accumulate(tops)
    inside = max(len(columns) * (width + GAP) - GAP, legend.width)
    page = Image.new("RGB", (2 * MARGIN + inside, bottom + legend.height + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    for number, column in enumerate(columns):
        left = MARGIN + number * (width + GAP)
        draw.text((left, MARGIN), column.title, INK, TITLE)
        draw.text((left, MARGIN + LINE), column.caption, PALE_INK, TEXT)
        for top, panel in zip(tops, column.panels, strict=True):
            page.paste(panel, (left, top))
    page.paste(legend, (MARGIN, bottom))
    return page


def _legend(*, merging: bool, blanks: bool) -> Image.Image:
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
    grid = _Grid(plain, SWATCH, {token: (token, 0) for token in range(tokens)})
    return grid.panel(kept, groups or {}, {0: _color(0)})
