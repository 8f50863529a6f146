"""Reports made by hand, and pictures whose cells can be told apart."""

import torch
from PIL import Image
from transformers import LlamaConfig

from vitcop import Report, StageReport
from vitcop.models.grids import Grids
from vitcop.pictures.drawing import SHORTEST_SIDE

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


def report_of(image: Grids, *stages: StageReport) -> Report:
    return Report(
        method="by hand",
        num_layers=4,
        images=(image,),
        modalities=("image",),
        rows=(0,),
        stages=stages,
        columns={},
        row_lengths={},
        prompt_lengths=(8,),
        decoder_config=LlamaConfig(),
        bytes_per_value=4,
    )


def mosaic(colors: list[tuple[int, int, int]], columns: int) -> Image.Image:
    """A picture that has these colours in its cells."""
    picture = Image.new("RGB", (columns, len(colors) // columns))
    picture.putdata(colors)
    return picture.resize((columns * CELL, picture.height * CELL), Image.Resampling.NEAREST)


def is_grey(color: tuple[int, int, int]) -> bool:
    return len(set(color)) == 1
