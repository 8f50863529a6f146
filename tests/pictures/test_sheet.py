"""The contact sheet shows of every entry what is alive in the last layer, at its place on the page."""

from drawn import COLORS, COLUMNS, ROWS, is_grey, mosaic, report_of, stage

from vitcop.models.grids import Grids
from vitcop.pictures.drawing import GAP, LINE, MARGIN, PAPER
from vitcop.pictures.sheet import LONGEST_SIDE, Entry, contact_sheet

CELL = LONGEST_SIDE // COLUMNS
DENSE = ()
DROPPING = (stage(0, [0, 1, 2, 3, 4, 5], [0, 2, 4]), stage(2, [0, 2, 4], [1, 2]))
MERGING = (stage(0, [0, 1, 2, 3, 4, 5], [1, 4], merge=[-1, -1, -1, -1, 1, 1]),)  # 4 and 5 into 4


def entry(stages, grids: int = 1) -> Entry:
    picture, shapes = mosaic(COLORS, COLUMNS), [(ROWS, COLUMNS)] * grids
    return Entry("a method", "some tokens", [picture] * grids, report_of(Grids.full(*shapes), *stages))


def pixel(page, row: int, column: int, token: int) -> tuple[int, int, int]:
    left = MARGIN + column * (LONGEST_SIDE + GAP) + token % COLUMNS * CELL
    top = MARGIN + row * (2 * LINE + ROWS * CELL + GAP) + 2 * LINE + token // COLUMNS * CELL
    return page.getpixel((left + round(0.3 * CELL), top + round(0.3 * CELL)))


def test_what_is_alive_in_the_last_layer_of_each():
    page = contact_sheet([entry(stages) for stages in (DENSE, DROPPING, MERGING, DENSE, DROPPING, DROPPING)])
    for place in ((0, 0), (1, 0)):  # six stand three by three
        assert [pixel(page, *place, token) for token in range(6)] == COLORS
    for place in ((0, 1), (1, 1), (1, 2)):
        colors = [pixel(page, *place, token) for token in range(6)]
        assert [colors[token] for token in (2, 4)] == [COLORS[token] for token in (2, 4)]
        assert all(is_grey(colors[token]) for token in (0, 1, 3, 5))
    colors = [pixel(page, 0, 2, token) for token in range(6)]
    assert [colors[token] for token in (1, 4)] == [COLORS[token] for token in (1, 4)]
    assert not is_grey(colors[5]) and colors[5] != COLORS[5]
    assert page.width == 2 * MARGIN + 3 * LONGEST_SIDE + 2 * GAP


def test_frames_share_the_room_of_one_picture():
    page = contact_sheet([entry(DENSE, grids=4), entry(DENSE)])
    side = LONGEST_SIDE / 2
    for left, top in ((0, 0), (1, 0), (0, 1), (1, 1)):
        corner = MARGIN + left * (side + 4) + 9, MARGIN + 2 * LINE + top * (side * ROWS / COLUMNS + 4) + 9
        assert page.getpixel(tuple(map(round, corner))) == COLORS[0]
    assert page.getpixel((MARGIN + round(side) + 2, MARGIN + 2 * LINE + 9)) == PAPER
