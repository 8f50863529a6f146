"""A contact sheet: what several methods kept of one picture, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from .drawing import PAPER, Column, Kept, colors_of, grids_of, groups_of_stages, has_blanks, legend_of, page_of

MOST_IN_A_ROW = 5
LONGEST_SIDE = 480  # of an image, in pixels, or a little more, since cells are whole pixels
RULE = 4  # pixels between the tiles or frames of one image


@dataclass(frozen=True)
class Entry:
    """What one method left of the first image of a prompt.

    Attributes:
        title, caption: stand above it.
        pictures: what each grid of the image covers, as `overlay` takes them.
        report: of the prefill that read the image.
    """

    title: str
    caption: str
    pictures: Sequence[Image.Image]
    report: Kept


def contact_sheet(entries: Sequence[Entry], heading: Sequence[str] = ()) -> Image.Image:
    """Draw what is alive in the last decoder layer, of every entry, in the colours of `overlay`.

    Tiles and frames of one image stand in a square, each smaller. Lines of a heading stand above all.
    """
    per_row = -(-len(entries) // -(-len(entries) // MOST_IN_A_ROW))  # rows of the same length, as far as that goes
    columns = [Column(entry.title, entry.caption, [_panel(entry)]) for entry in entries]
    rows = [columns[first : first + per_row] for first in range(0, len(columns), per_row)]
    merging = any(_groups(entry.report) for entry in entries)
    blanks = any(has_blanks(entry.report.images[0]) for entry in entries)
    return page_of(heading, rows, legend_of(merging=merging, blanks=blanks))


def _groups(report: Kept) -> dict[int, set[int]]:
    """The tokens that stand for others in the last decoder layer."""
    return groups_of_stages(report, image=0)[-1] if report.stages else {}


def _panel(entry: Entry) -> Image.Image:
    report = entry.report
    kept = report.stages[-1].kept() if report.stages else range(report.image_lengths[0])
    across = math.ceil(math.sqrt(len(entry.pictures)))
    slimmest = min(min(shape) / max(shape) for shape in report.images[0].shapes)
    grids = grids_of(entry.pictures, report.images[0], round(LONGEST_SIDE * slimmest / across))
    groups = _groups(report)
    panels = [grid.panel(kept, groups, colors_of(groups)) for grid in grids]
    return panels[0] if len(panels) == 1 else _mosaic(panels, across)


def _mosaic(panels: Sequence[Image.Image], across: int) -> Image.Image:
    """Panels in rows of so many, with a line between them."""
    width, height = (RULE + max(lengths) for lengths in zip(*(panel.size for panel in panels), strict=True))
    down = -(-len(panels) // across)
    page = Image.new("RGB", (across * width - RULE, down * height - RULE), PAPER)
    for number, panel in enumerate(panels):
        page.paste(panel, (number % across * width, number // across * height))
    return page
