"""A picture of what pruning kept: the image as the model sees it, and what each stage left of it."""

from __future__ import annotations

import colorsys
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from .report import Report

Color = tuple[int, int, int]
Groups = dict[int, set[int]]  # a token that took others in -> all tokens it stands for, itself included

# Sizes are in pixels, and large because a page shows the overlay at less than half its size.
SHORTEST_SIDE = 480
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


def overlay(picture: Image.Image, report: Report, image: int = 0) -> Image.Image:
    """Draw what every stage left of a picture, side by side.

    Kept tokens have their colours and dropped ones are grey. Merged ones are tinted, and share an outline
    with the token that stands for them, which has a dot, until that one is dropped as well.

    Args:
        picture: the part of the image that its visual tokens cover; see `as_seen`.
        report: of the prefill that read the image.
        image: its number in the report.
    """
    (rows, columns), total = report.images[image].shapes[0], report.image_lengths[image]
    cell = -(-SHORTEST_SIDE // min(rows, columns))
    picture = picture.convert("RGB").resize((columns * cell, rows * cell), Image.Resampling.LANCZOS)
    groups_of_stages = _groups_of_stages(report, image)
    survivors = dict.fromkeys(token for groups in groups_of_stages for token in groups)
    colors = {token: _color(number) for number, token in enumerate(survivors)}

    panels = [("As the model sees it", f"{total} tokens", picture)]
    for stage, groups in zip(report.stages, groups_of_stages, strict=True):
        title = f"Before layer {stage.layer}" if stage.layer else "Entering the decoder"
        panel = _panel(picture, columns, stage.kept(image), groups, colors)
        panels.append((title, f"{stage.after[image]} of {total} tokens", panel))
    return _page(panels, merging=bool(survivors))


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


def _panel(
    picture: Image.Image, columns: int, kept: Collection[int], groups: Groups, colors: dict[int, Color]
) -> Image.Image:
    """The picture, every token shown as what became of it."""
    cell = picture.width // columns

    def mask(tokens: Iterable[int]) -> Image.Image:
        small = Image.new("L", (columns, picture.height // cell))
        for token in tokens:
            small.putpixel((token % columns, token // columns), 255)
        return small.resize(picture.size, Image.Resampling.NEAREST)

    panel = _tinted(picture.convert("L").convert("RGB"), DROPPED, 0.75)
    for token, members in groups.items():
        panel.paste(_tinted(picture, colors[token], 0.5), mask=mask(members))
    panel.paste(picture, mask=mask(kept))
    draw = ImageDraw.Draw(panel)
    for token, members in groups.items():
        _draw_outline(draw, members, columns, cell, colors[token])
        _draw_dot(draw, token, columns, cell, colors[token])
    return panel


def _tinted(picture: Image.Image, color: Color, share: float) -> Image.Image:
    return Image.blend(picture, Image.new("RGB", picture.size, color), share)


def _draw_outline(draw: ImageDraw.ImageDraw, members: Iterable[int], columns: int, cell: int, color: Color) -> None:
    """Draw the border of a group inside its cells, where it cannot cover that of a neighbouring group."""
    places = {(token % columns, token // columns) for token in members}
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


def _draw_dot(draw: ImageDraw.ImageDraw, token: int, columns: int, cell: int, color: Color) -> None:
    center = (token % columns + 0.5) * cell, (token // columns + 0.5) * cell
    draw.circle(center, cell / 5, fill=color, outline=PAPER, width=max(1, cell // 16))


def _page(panels: list[tuple[str, str, Image.Image]], *, merging: bool) -> Image.Image:
    """Panels in a row, each below its title and caption, and what their colours mean below them."""
    width, height = panels[0][2].size
    top = MARGIN + 2 * LINE
    bottom = top + height + GAP
    size = 2 * MARGIN - GAP + len(panels) * (width + GAP), bottom + SWATCH + MARGIN
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    for number, (title, caption, panel) in enumerate(panels):
        left = MARGIN + number * (width + GAP)
        draw.text((left, MARGIN), title, INK, TITLE)
        draw.text((left, MARGIN + LINE), caption, PALE_INK, TEXT)
        page.paste(panel, (left, top))

    legend = [("kept", _swatch(1, kept=[0])), ("dropped", _swatch(1, kept=[]))]
    if merging:
        legend.append(("merged into the token with the dot", _swatch(2, kept=[0], groups={0: {0, 1}})))
    left = MARGIN
    for text, swatch in legend:
        page.paste(swatch, (left, bottom))
        left += swatch.width + SWATCH // 2
        draw.text((left, bottom + SWATCH / 2), text, PALE_INK, TEXT, anchor="lm")
        left += round(draw.textlength(text, TEXT)) + 2 * SWATCH
    return page


def _swatch(tokens: int, kept: Collection[int], groups: Groups | None = None) -> Image.Image:
    plain = Image.new("RGB", (tokens * SWATCH, SWATCH), KEPT)
    return _panel(plain, tokens, kept, groups or {}, {0: _color(0)})
