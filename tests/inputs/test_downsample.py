"""Down-sampling finds the largest picture that fits, by what processors really write."""

import pytest
import torch
from families.base import IMAGE
from PIL import Image
from processors import PROCESSORS, QWEN
from transformers import Qwen2VLImageProcessorPil

from vitcop import BudgetError
from vitcop.inputs.downsample import SHORTEST_SIDE, downsample

PATCH = 4


class NativeResolution:
    """A processor that writes a placeholder for each whole patch, at least `least` of them, and one for each row."""

    image_token, image_token_id, separator = "<image>", IMAGE, IMAGE - 1

    def __init__(self, least: int = 1) -> None:
        self.least = least

    def __call__(self, text: str, images: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
        assert (text, return_tensors) == (self.image_token, "pt")
        rows, columns = images.height // PATCH, images.width // PATCH
        tokens = [IMAGE] * max(self.least, rows * columns) + [self.separator] * rows
        return {"input_ids": torch.tensor([[1, *tokens]])}


@pytest.mark.parametrize("retention", [1 / 9, 0.3, 0.77])
@pytest.mark.parametrize("size", [(120, 80), (80, 120), (96, 96), (300, 20)])
def test_the_largest_picture_that_fits(size, retention):
    picture, share = downsample(Image.new("RGB", size), NativeResolution(), retention)
    total = (size[0] // PATCH) * (size[1] // PATCH)

    def tokens(side: int) -> int:
        width, height = (round(length * side / max(size)) for length in size)
        return (width // PATCH) * (height // PATCH)

    side = max(picture.size)
    assert picture.size == tuple(round(length * side / max(size)) for length in size)
    assert share == tokens(side) / total <= retention < tokens(side + 1) / total


def test_a_picture_that_fits_stays_as_it_is():
    picture = Image.new("RGB", (120, 80))
    assert downsample(picture, NativeResolution(), 1.0) == (picture, 1.0)
    tiny = Image.new("RGB", (2, 2))
    assert downsample(tiny, NativeResolution(), 1.0) == (tiny, 1.0)


def test_the_smallest_picture_sets_a_floor():
    with pytest.raises(BudgetError, match=r"retention=0\.1.* of the smallest picture the processor makes 0\.1042 of"):
        downsample(Image.new("RGB", (96, 96)), NativeResolution(least=60), 0.1)


class Qwen(NativeResolution):
    """Qwen-VL's own image processor, whose other parts are not built without torchvision."""

    def __call__(self, text: str, images: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
        grid = Qwen2VLImageProcessorPil(**QWEN)(images, return_tensors=return_tensors)["image_grid_thw"]
        return {"input_ids": torch.full((1, int(grid.prod()) // QWEN["merge_size"] ** 2), IMAGE)}


def test_native_resolution_gets_down_to_the_fewest_pixels_that_the_settings_allow():
    picture = Image.new("RGB", (300, 200))
    assert downsample(picture, Qwen(), 1 / 2)[1] == (3 * 2) / (5 * 3)
    with pytest.raises(BudgetError, match=r"of the smallest picture the processor makes 0\.1333 of"):
        downsample(picture, Qwen(), 0.1)


@pytest.mark.parametrize("name", PROCESSORS)
def test_what_real_processors_make_of_smaller_pictures(name):
    """Those that fit each picture to the same size, and tilers that scale up, save nothing."""
    PROCESSORS[name].skip_without_its_needs()
    processor = PROCESSORS[name].build()
    large = Image.new("RGB", (224, 224))
    try:
        picture, share = downsample(large, processor, 0.9)
    except BudgetError as error:
        assert "saves nothing" in str(error)
        fitted = {"llava", "llava with registers", "gemma3", "paligemma", "video_llava", "idefics3", "smolvlm"}
        assert (PROCESSORS[name].family or name) in fitted
    else:
        assert SHORTEST_SIDE <= max(picture.size) < 224
        assert 0 < share <= 0.9
