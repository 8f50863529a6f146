"""The overlay shows every token in its place, as what became of it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn import CELL, COLORS, COLUMNS, ROWS, is_grey, mosaic, report_of, stage
from families import FAMILIES, lfm2_vl, molmo2
from families.base import Visual
from PIL import Image
from torch.nn.functional import pad
from transformers import AutoProcessor, LlavaNextImageProcessorPil
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

from vitcop import StageReport, VitcopError, builtin
from vitcop.models import family_of
from vitcop.models.grids import SEPARATOR, Grids
from vitcop.pictures.drawing import GAP, LINE, MARGIN, PAPER, TITLE, _wrapped
from vitcop.pictures.overlay import as_seen, overlay, overlay_of_prompt, tiles_as_seen, tiles_of_pictures
from vitcop.pictures.seen import pictures_of_grids


def drawn(*stages: StageReport) -> Image.Image:
    return overlay(mosaic(COLORS, COLUMNS), report_of(Grids.full((ROWS, COLUMNS)), *stages))


def pixel(
    page: Image.Image,
    panel: int,
    token: int,
    across: float = 0.3,
    down: float = 0.3,
    grid: int = 0,
    columns: int = COLUMNS,
) -> tuple[int, int, int]:
    """A colour in a token's cell; by default of a place that neither the outline nor the dot covers."""
    left = MARGIN + panel * (COLUMNS * CELL + GAP) + token % columns * CELL
    top = MARGIN + 2 * LINE + grid * (ROWS * CELL + GAP) + token // columns * CELL
    return page.getpixel((left + round(across * CELL), top + round(down * CELL)))


def test_kept_tokens_keep_their_colours_and_dropped_ones_are_grey():
    page = drawn(stage(0, index=[0, 1, 2, 3, 4, 5], keep=[0, 2, 3]), stage(2, index=[0, 2, 3], keep=[1]))
    assert [pixel(page, 0, token) for token in range(6)] == COLORS
    for panel, kept in ((1, {0, 2, 3}), (2, {2})):
        colors = [pixel(page, panel, token) for token in range(6)]
        assert [colors[token] for token in kept] == [COLORS[token] for token in kept]
        assert [is_grey(color) for color in colors] == [token not in kept for token in range(6)]


def test_white_paper_that_was_dropped_does_not_look_like_paper():
    paper = Image.new("RGB", (COLUMNS * CELL, ROWS * CELL), "white")
    page = overlay(paper, report_of(Grids.full((ROWS, COLUMNS)), stage(0, index=[0, 1, 2, 3, 4, 5], keep=[0])))
    for token in range(6):
        colors = {pixel(page, 1, token, across=across / 40, down=0.5) for across in range(1, 40)}
        assert colors == {PAPER} if token == 0 else len(colors) > 1 and PAPER not in colors


def test_a_word_that_is_wider_than_the_page_goes_over_several_lines():
    words = "what", "x" * 300, "is"
    lines = list(_wrapped(" ".join(words), 500))
    assert all(TITLE.getlength(line) <= 500 for line in lines)
    assert "".join("".join(lines).split()) == "".join(words)
    assert lines[-1].endswith("x is") and list(_wrapped("wide", 1)) == list("wide")


def test_every_image_of_a_prompt_has_its_row_below_the_heading():
    first, second = (stage(0, list(range(6)), kept) for kept in ([0, 1], [4, 5]))
    both = StageReport(
        0, (6, 6), (2, 2), torch.cat([first.index] * 2), torch.cat([first.keep, second.keep + 6]), None, None
    )
    grid = Grids.full((ROWS, COLUMNS))
    report = replace(report_of(grid, both), images=(grid, grid), modalities=("image",) * 2, rows=(0, 0))
    question = "what is it that stands beside the words of a question which is far too long for a line? " * 2
    page = overlay_of_prompt([[mosaic(COLORS, COLUMNS)], [mosaic(COLORS[::-1], COLUMNS)]], report, [question, "red"])
    plain = overlay_of_prompt([[mosaic(COLORS, COLUMNS)], [mosaic(COLORS[::-1], COLUMNS)]], report)
    heading = page.height - plain.height
    assert page.width == plain.width and heading == 3 * LINE + GAP  # the question takes two lines
    assert page.crop((0, heading, *page.size)).tobytes() == plain.tobytes()
    for row, colors, kept in ((0, COLORS, {0, 1}), (1, COLORS[::-1], {4, 5})):
        below = plain.crop((0, row * (2 * LINE + ROWS * CELL + GAP), *plain.size))
        assert [pixel(below, 0, token) for token in range(6)] == colors
        assert {token for token in range(6) if not is_grey(pixel(below, 1, token))} == kept


def test_a_report_draws_itself_of_what_its_processor_showed_the_model():
    report = report_of(Grids.full((ROWS, COLUMNS)), stage(0, list(range(6)), [0, 5]))
    picture = Image.new("RGB", (3 * COLUMNS * CELL, ROWS * CELL), "white")
    picture.paste(mosaic(COLORS, COLUMNS), (COLUMNS * CELL, 0))
    crop = {"height": 2 * CELL, "width": 3 * CELL}
    cropping = SimpleNamespace(do_center_crop=True, size={"shortest_edge": 2 * CELL}, crop_size=crop)
    page = report.overlay(picture, SimpleNamespace(image_processor=cropping), heading=["what is left?"])
    expected = overlay_of_prompt([[mosaic(COLORS, COLUMNS)]], report, ["what is left?"])
    assert page.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("pictures", "grids", "modalities", "complaint"),
    [
        (2, [1], ["image"], "of 1 pictures, and is drawn on as many; got 2"),
        (1, [2], ["image"], "give the processor and its pixel values"),
        (2, [1, 1], ["image", "video"], "a video and pictures"),
    ],
)
def test_what_would_be_drawn_in_the_wrong_place_is_refused(pictures, grids, modalities, complaint):
    images = tuple(Grids.full(*[(ROWS, COLUMNS)] * count) for count in grids)
    report = replace(report_of(images[0]), images=images, modalities=tuple(modalities))
    with pytest.raises(VitcopError, match=complaint):
        report.overlay([mosaic(COLORS, COLUMNS)] * pictures)


def test_tiles_of_several_pictures_are_told_apart():
    tiles = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2)
    padded = torch.stack([tiles[:3], torch.cat([tiles[3:], tiles[:1]])])
    for pixel_values in (tiles, tiles[None], padded):
        first, second = tiles_of_pictures(pixel_values, [3, 2])
        assert first[:, 0, 0, 0].tolist() == [0, 1, 2] and second[:, 0, 0, 0].tolist() == [3, 4]
    with pytest.raises(VitcopError, match=r"not those of 3 \+ 3 tiles"):
        tiles_of_pictures(tiles, [3, 3])


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


def test_every_grid_has_a_row_and_groups_go_across():
    """The second grid has 2 x 2 cells, of which the lower left is no token; a separator stands before it."""
    second = [(90, 40, 160), (160, 90, 40), (0, 0, 0), (40, 160, 90)]
    tokens = torch.tensor([True, True, False, True])
    tile = Grids.full((2, 2))
    tile = Grids(tile.shapes, tile.segments[tokens], tile.places[tokens])
    image = Grids.join([Grids.full((ROWS, COLUMNS)), Grids.separator(), tile])
    assert image.segments[6] == SEPARATOR
    merging = stage(
        2, index=[0, 1, 2, 3, 4, 5, 6, 7, 8], keep=[1, 7], merge=[-1] * 5 + [1, -1, -1, 1]
    )  # 5 and 8 into 7
    page = overlay([mosaic(COLORS, COLUMNS), mosaic(second, 2)], report_of(image, merging))

    def tile_pixel(panel: int, cell: int, **place: float) -> tuple[int, int, int]:
        return pixel(page, panel, cell, grid=1, columns=2, **place)

    assert [pixel(page, 0, token) for token in range(6)] == COLORS
    assert [tile_pixel(0, cell) for cell in (0, 1, 3)] == [second[cell] for cell in (0, 1, 3)]
    assert tile_pixel(0, 2) == tile_pixel(1, 2) == PAPER

    assert pixel(page, 1, 1) == COLORS[1] and tile_pixel(1, 1) == second[1]
    assert all(is_grey(pixel(page, 1, token)) for token in (0, 2, 3, 4)) and is_grey(tile_pixel(1, 0))
    assert not is_grey(pixel(page, 1, 5)) and not is_grey(tile_pixel(1, 3))
    edges = {pixel(page, 1, 5, across=0.01), tile_pixel(1, 1, across=0.01), tile_pixel(1, 3, down=0.99)}
    assert edges == {tile_pixel(1, 1, across=0.5, down=0.5)}  # the dot
    assert pixel(page, 1, 5, across=0.5, down=0.5) == pixel(page, 1, 5)
    assert tile_pixel(1, 3, across=0.5, down=0.5) == tile_pixel(1, 3)


def test_many_grids_make_a_page_that_is_not_too_tall_and_whose_titles_keep_apart():
    frames = [Image.new("RGB", (8, 8))] * 16
    stages = [stage(layer, list(range(64)), list(range(32))) for layer in (0, 1, 2)]
    page = overlay(frames, report_of(Grids.full(*[(2, 2)] * 16), *stages))
    assert page.height < 3500
    pitch = (page.width - 2 * MARGIN + GAP) // 4
    for column in range(1, 4):
        left = MARGIN + column * pitch
        between = page.crop((left - GAP, 0, left, MARGIN + 2 * LINE))
        assert between.getcolors() == [(between.width * between.height, PAPER)]


def test_a_strip_makes_a_page_that_is_not_too_wide():
    tokens = list(range(109))
    page = overlay(Image.new("RGB", (1500, 10)), report_of(Grids.full((1, 109)), stage(0, tokens, tokens[:9])))
    assert page.width < 10_000


def test_a_picture_too_many_raises():
    with pytest.raises(VitcopError, match="one picture for each of the 2 grids; got 1"):
        overlay(Image.new("RGB", (4, 4)), report_of(Grids.full((2, 2), (2, 2))))


def test_tiles_as_seen_undoes_what_the_image_processor_did():
    side = {"height": 32, "width": 32}
    processor = LlavaNextImageProcessorPil(size=side, crop_size=side, image_grid_pinpoints=[[64, 64]])
    across, down = np.linspace(0, 255, 64), np.linspace(255, 0, 64)
    channels = np.broadcast_arrays(across[None], down[:, None], 128)
    picture = Image.fromarray(np.stack(channels, -1).astype(np.uint8))
    pixel_values = processor(picture, return_tensors="pt")["pixel_values"]
    boxes = [(0, 0, 32, 32), (32, 0, 64, 32), (0, 32, 32, 64), (32, 32, 64, 64)]
    expected = [picture.resize((32, 32), Image.Resampling.BICUBIC), *map(picture.crop, boxes)]
    for shape in (pixel_values, pixel_values[0]):
        tiles = tiles_as_seen(shape, processor)
        for tile, wanted in zip(tiles, expected, strict=True):
            assert np.abs(np.asarray(tile, float) - np.asarray(wanted, float)).max() < 4
    with pytest.raises(VitcopError, match="No picture of these tiles"):
        tiles_as_seen(pixel_values.flatten(1), processor)


def test_tiles_in_patches_are_put_together_again():
    """As LFM2-VL's processor makes them: two tiles and a thumbnail of another shape, and a small picture, padded."""
    tall, wide, small = (3, 3), (2, 4), (1, 2)
    generator = torch.Generator().manual_seed(0)
    pictures = [
        torch.randint(0, 256, (3, lfm2_vl.SIDE * rows, lfm2_vl.SIDE * columns), generator=generator)
        for rows, columns in (tall, tall, wide, small)
    ]
    values = torch.stack([lfm2_vl.patches(picture / 255 * 2 - 1) for picture in pictures])
    made_by = SimpleNamespace(downsample_factor=2, encoder_patch_size=4, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = SimpleNamespace(image_processor=made_by)
    report = replace(
        report_of(Grids.full((2, 2))),
        images=(Grids.full(tall, tall, wide), Grids.full(small)),
        modalities=("image",) * 2,
    )
    seen = pictures_of_grids([Image.new("RGB", (8, 8))] * 2, report, processor, values)
    assert list(map(len, seen)) == [3, 1]
    for tile, picture in zip([*seen[0], *seen[1]], pictures, strict=True):
        assert np.array_equal(np.asarray(tile), picture.permute(1, 2, 0).numpy())
    with pytest.raises(VitcopError, match="not those of 4 tiles"):
        pictures_of_grids([Image.new("RGB", (8, 8))] * 2, report, processor, values[:3])


def test_slices_are_those_of_the_processor():
    """Of pictures, and of the frames of a video that the model sees, of which each has its own."""
    made_by = MiniCPMV4_6ImageProcessorPil(patch_size=4, scale_resolution=52)
    processor = SimpleNamespace(image_processor=made_by, video_processor=made_by)
    across, down = np.linspace(0, 255, 180), np.linspace(0, 255, 240)
    gradients = np.broadcast_arrays(across[None], down[:, None])
    frames = [
        Image.fromarray(np.stack([*gradients, 0 * down[:, None] + blue * across[None]], -1).astype(np.uint8))
        for blue in (0, 0.5, 1)
    ]
    made = [made_by(frame, return_tensors="pt") for frame in frames]
    (sizes, *_) = [tuple(map(tuple, each["target_sizes"].tolist())) for each in made]
    assert len(sizes) == 1 + 3 * 3
    picture = replace(report_of(Grids.full(*sizes)), modalities=("image",))
    video = replace(picture, images=(Grids.full(*sizes, *sizes),), modalities=("video",))
    (seen,) = pictures_of_grids(frames[:1], picture, processor, None)
    (film,) = pictures_of_grids(frames, video, processor, None)
    for parts, of in ((seen, made[0]), (film[: len(sizes)], made[0]), (film[len(sizes) :], made[2])):
        ends = [4 * rows * columns for rows, columns in sizes]
        for part, values, (rows, columns) in zip(parts, of["pixel_values"][0].split(ends, -1), sizes, strict=True):
            wanted = values.unflatten(-1, (rows, columns, 4)).permute(2, 1, 3, 4, 0).reshape(4 * rows, 4 * columns, 3)
            size = 4 * columns, 4 * rows
            drawn = np.asarray(part.resize(size, Image.Resampling.BICUBIC), float)
            assert np.abs(drawn - 127.5 * (wanted.numpy() + 1)).max() < 8


def test_several_videos_are_not_drawn():
    report = replace(report_of(Grids.full((2, 2))), images=(Grids.full((2, 2)),) * 2, modalities=("image", "video"))
    with pytest.raises(VitcopError, match="several videos, or with a video and pictures"):
        pictures_of_grids([Image.new("RGB", (8, 8))] * 2, report, None, None)


@pytest.mark.skipif("molmo2" in molmo2.MISSING, reason="an older transformers has no Molmo 2")
def test_crops_that_overlap_are_drawn_once():
    """Molmo 2's: each shows what its tokens are pooled from, and beside each other they are the picture, then white."""
    family, patch = FAMILIES["molmo2"], molmo2.PATCH
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 256, (5, 3, family.side * patch, family.side * patch), generator=generator)
    inputs = family.inputs([[Visual("image", 1, True, tiles / 255 * 2 - 1)]])

    class Processor(SimpleNamespace):
        def __call__(self, picture, return_tensors):
            return inputs

    made_by = Processor(
        overlap_margins=molmo2.MARGINS,
        pooling_size=[family.pooling] * 2,
        patch_size=patch,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    (image,) = family_of(family.model()).grids("image", inputs)
    picture, processor = Image.new("RGB", (8, 8)), SimpleNamespace(image_processor=made_by)
    ((thumbnail, *crops),) = pictures_of_grids([picture], report_of(image), processor, None)
    own = [slice(patch * part.start, patch * part.stop) for part in (family.own(0, 2), family.own(1, 2))]
    rows = [torch.cat([tiles[1 + 2 * row + column][:, :, own[column]] for column in (0, 1)], 2) for row in (0, 1)]
    whole = torch.cat([rows[row][:, own[row]] for row in (0, 1)], 1)
    drawn = np.concatenate([np.concatenate(list(map(np.asarray, row)), 1) for row in (crops[:2], crops[2:])])
    token = family.pooling * patch
    for pixels, wanted in ((np.asarray(thumbnail), tiles[0]), (drawn, whole)):
        white = -wanted.shape[1] % token
        assert white and np.array_equal(pixels, pad(wanted, (0, white) * 2, value=255).permute(1, 2, 0).numpy())
    with pytest.raises(VitcopError, match="makes 25 tokens of the picture, and the report is of 4"):
        pictures_of_grids([picture], report_of(Grids.full((2, 2))), processor, None)


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
