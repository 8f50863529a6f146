"""The overlay shows every token in its place, as what became of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlamaConfig

from vitcop import Report, StageReport, builtin
from vitcop.models.grids import Grids
from vitcop.overlay import GAP, LINE, MARGIN, SHORTEST_SIDE, as_seen, overlay

ROWS, COLUMNS = 2, 3
CELL = SHORTEST_SIDE // ROWS
COLORS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200), (200, 30, 200)]


def stage(layer: int, index: list[int], keep: list[int], merge: list[int] | None = None) -> StageReport:
    return StageReport(
        layer=layer,
        before=(len(index),),
        after=(len(keep),),
        index=torch.tensor(index),
        keep=torch.tensor(keep),
        merge=None if merge is None else torch.tensor(merge),
        cluster=None,
    )


def drawn(*stages: StageReport) -> Image.Image:
    picture = Image.new("RGB", (COLUMNS, ROWS))
    picture.putdata(COLORS)
    report = Report(
        method="by hand",
        num_layers=4,
        images=(Grids.full((ROWS, COLUMNS)),),
        modalities=("image",),
        rows=(0,),
        stages=stages,
        layouts={},
        row_lengths={},
        prompt_lengths=(8,),
        decoder_config=LlamaConfig(),
        bytes_per_value=4,
    )
    return overlay(picture.resize((COLUMNS * CELL, ROWS * CELL), Image.Resampling.NEAREST), report)


def pixel(page: Image.Image, panel: int, token: int, across: float = 0.3, down: float = 0.3) -> tuple[int, int, int]:
    """A colour in a token's cell; by default of a place that neither the outline nor the dot covers."""
    left = MARGIN + panel * (COLUMNS * CELL + GAP) + token % COLUMNS * CELL
    top = MARGIN + 2 * LINE + token // COLUMNS * CELL
    return page.getpixel((left + round(across * CELL), top + round(down * CELL)))


def is_grey(color: tuple[int, int, int]) -> bool:
    return len(set(color)) == 1


def test_kept_tokens_keep_their_colours_and_dropped_ones_are_grey():
    page = drawn(stage(0, index=[0, 1, 2, 3, 4, 5], keep=[0, 2, 3]), stage(2, index=[0, 2, 3], keep=[1]))
    assert [pixel(page, 0, token) for token in range(6)] == COLORS
    for panel, kept in ((1, {0, 2, 3}), (2, {2})):
        colors = [pixel(page, panel, token) for token in range(6)]
        assert [colors[token] for token in kept] == [COLORS[token] for token in kept]
        assert [is_grey(color) for color in colors] == [token not in kept for token in range(6)]


@pytest.mark.parametrize("last", [4, 0])
def test_merged_tokens_share_an_outline_for_as_long_as_their_survivor_stays(last):
    entering = stage(0, index=[0, 1, 2, 3, 4, 5], keep=[0, 2, 4, 5])
    merging = stage(2, index=[0, 2, 4, 5], keep=[0, 2], merge=[-1, 1, 1, 1])  # 2 and 5 into 4
    page = drawn(entering, merging, stage(3, index=[0, 4], keep=[[0, 4].index(last)]))

    def has_group(panel: int) -> bool:
        tinted = [pixel(page, panel, token) for token in (2, 5)]
        edge = {
            pixel(page, panel, 4, across=0.01),  # left of the survivor
            pixel(page, panel, 5, down=0.99),
            pixel(page, panel, 2, down=0.01),
            pixel(page, panel, 5, across=0.01, down=0.01),  # the corner between 2 and 4
        }
        inner_borders = [pixel(page, panel, 5, across=0.01, down=0.5), pixel(page, panel, 5, down=0.01)]
        return len(edge) == 1 and not any(map(is_grey, tinted)) and inner_borders == [tinted[1]] * 2

    assert not has_group(1)
    assert has_group(2)
    assert pixel(page, 2, 4) == COLORS[4] != pixel(page, 2, 4, across=0.5, down=0.5)
    assert pixel(page, 2, 5) != COLORS[5]
    assert has_group(3) == (last == 4)
    assert pixel(page, 3, last) == COLORS[last]
    assert all(is_grey(pixel(page, 3, token)) for token in ({1, 3, 0} if last == 4 else {1, 2, 3, 4, 5}))


@pytest.mark.parametrize("size", [{"shortest_edge": 32}, {"shortest_edge": 40}, {"height": 40, "width": 50}])
def test_as_seen_shows_what_the_image_processor_leaves(size):
    kind = type(AutoProcessor.from_pretrained(builtin.MODEL_PATH).image_processor)
    processor = kind.from_pretrained(
        builtin.MODEL_PATH, size=size, crop_size={"height": 32, "width": 32}, do_normalize=False, do_rescale=False
    )
    across, down = np.linspace(0, 255, 320), np.linspace(0, 255, 200)
    channels = np.broadcast_arrays(across[None], down[:, None], 128)
    picture = Image.fromarray(np.stack(channels, -1).astype(np.uint8))
    pixels = np.stack(processor(picture)["pixel_values"])[0].transpose(1, 2, 0)
    seen = np.asarray(as_seen(picture, processor).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.abs(seen.astype(float) - pixels).max() < 4


def test_as_seen_is_everything_where_nothing_is_cropped():
    picture = Image.new("RGB", (3, 2))
    assert as_seen(picture, SimpleNamespace(do_center_crop=False)) is picture
