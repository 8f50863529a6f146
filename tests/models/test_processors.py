"""What transformers' own processors write is pruned correctly: no input here is made by hand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import pytest
import torch
from families import FAMILIES
from families.base import IMAGE, VIDEO
from families.molmo2 import MARGINS
from PIL import Image
from processors import (
    FRAMES,
    GEMMA4,
    GLM_IMAGES,
    GLM_VIDEOS,
    GRID,
    IDEFICS,
    LFM2_VL,
    MINICPMV,
    PROCESSORS,
    QWEN,
    RETENTION,
    SIZES,
    TILES,
    VIDEOS,
    WORDS,
    pixels,
    square,
)

import vitcop
from vitcop.costs.plan import Planner
from vitcop.models import (
    family_of,
    gemma4,
    glm4v,
    lfm2_vl,
    minicpmv,
    molmo2,
    qwen2_vl,
    qwen3_vl,
    qwen_omni,
    video_llama_3,
)
from vitcop.pictures.seen import pictures_of_grids
from vitcop.quality import Subject, Suite
from vitcop.quality.contenders import Contest
from vitcop.quality.reader import Reader

ROWS = {
    "pictures": [("wide",), ("tall", "wide")],
    "videos": [("clip",), ("film", "clip")],
    "both": [("wide", "clip"), ("film", "tall")],
}
CASES = [
    (name, kind)
    for name, written in PROCESSORS.items()
    for kind in ROWS
    if kind == "pictures" or (written.frames and (kind == "videos" or written.mixes))
]
VISUALS = [
    (name, visual)
    for name, written in PROCESSORS.items()
    for visual in ("wide", "tall", "film")
    if visual != "film" or written.frames
]
# A tokenizer that has no tokens for the markers of tiles writes several, of which the last is always the same.
IN_WORDS = "idefics3 with markers in words"
AROUND = {token: number for token, number in IDEFICS.items() if token not in {*TILES, "<global-img>"}}
PROCESSORS[IN_WORDS] = replace(PROCESSORS["idefics3"], tokens=AROUND, family="idefics3")
CASES.append(pytest.param(IN_WORDS, "pictures"))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_prompts_of_the_processor(name, kind):
    """Each picture or video is one image, in its row, that keeps what it was asked to and what it keeps alone."""
    written = PROCESSORS[name]
    written.skip_without_its_needs()
    rows = [row[: written.films] for row in ROWS[kind]] if kind == "videos" else ROWS[kind]
    model = FAMILIES[written.family or name].model()

    def report_of(rows):
        inputs = written.inputs(rows)
        model.generate(**inputs, max_new_tokens=3, do_sample=False, suppress_tokens=[IMAGE, VIDEO])
        return pruning.report

    with vitcop.prune(model, vitcop.ViTCoP(RETENTION)) as pruning:
        report = report_of(rows)
        alone = [report_of([row]) for row in rows]
    assert list(zip(report.modalities, report.rows, report.image_lengths, strict=True)) == written.expected(rows)
    for image, (row, tokens) in enumerate(zip(report.rows, report.image_lengths, strict=True)):
        assert abs(report.average_retention(image) - RETENTION) * tokens <= 1
        own = report.rows[:image].count(row)
        for stage, stage_alone in zip(report.stages, alone[row].stages, strict=True):
            assert stage.kept(image) == stage_alone.kept(own)


@dataclass(frozen=True)
class Recorder(vitcop.Random):
    """Remembers the visual tokens that it is shown."""

    seen: list[vitcop.VisualTokens] = field(default_factory=list)

    def select(self, tokens, budget):
        self.seen.append(tokens)
        return super().select(tokens, budget)


@pytest.mark.parametrize(("name", "visual"), VISUALS)
def test_places_are_those_in_the_picture(name, visual):
    """Paint a quarter of a picture or frame: no tokens change as much as those that are said to stand there."""
    written = PROCESSORS[name]
    written.skip_without_its_needs()
    family = FAMILIES[name]  # which an older transformers may lack
    model, method = family.model(), Recorder(retention=0.5, layer=0)
    attention = tuple(map(type, family_of(model).observed.values()))
    for module in model.modules():
        if isinstance(module, attention):  # leave every patch to itself, so that paint shows where it is
            *_, last = (child for child in module.modules() if isinstance(child, torch.nn.Linear))
            torch.nn.init.zeros_(last.weight)

    def tokens_of(paint=None):
        with torch.no_grad():
            model(**written.inputs([(visual,)], paint))
        return method.seen[-1]

    with vitcop.prune(model, method) as pruning:
        before = tokens_of()
        shapes = torch.tensor([shape for image in pruning.report.images for shape in image.shapes])
        for paint in product(range(FRAMES if visual in VIDEOS else 1), (0, 1), (0, 1)):
            of_frame = paint[0] // family.frames_per_grid * written.cut
            grid = of_frame if visual in VIDEOS else range(len(shapes))[written.thumbnail]
            change = (tokens_of(paint).keys - before.keys).flatten(1).norm(dim=1)
            centre = before.grid + 0.5 / shapes[grid]
            quarter = (centre > 0.5 - 1e-6).long() @ torch.tensor([2, 1])
            of_quarters = [change[(before.segments == grid) & (quarter == number)].mean() for number in range(4)]
            assert torch.stack(of_quarters).argmax() == 2 * paint[1] + paint[2]


@pytest.mark.parametrize("name", PROCESSORS)
def test_what_grids_show_is_drawn_in_its_place(name):
    """Paint a quarter of a picture: there the grid that shows all of it becomes darker, and nowhere else as much."""
    written = PROCESSORS[name]
    written.skip_without_its_needs()
    model = FAMILIES[written.family or name].model()

    def drawn(paint=None):
        inputs = written.inputs([("tall",)], paint)
        with torch.no_grad():
            model(**inputs)
        picture = Image.fromarray(pixels("tall", paint)[0])
        (grids,) = pictures_of_grids([picture], pruning.report, written.build(), inputs.get("pixel_values"))
        assert len(grids) == len(pruning.report.images[0].shapes)
        return np.asarray(grids[written.thumbnail].convert("L").resize((32, 32)), float)

    with vitcop.prune(model, vitcop.Random(0.5)) as pruning:
        change = drawn() - drawn((0, 1, 0))
    quarters = change.reshape(2, 16, 2, 16).mean((1, 3)).flatten()
    assert quarters.argmax() == 2 and quarters[2] > 3 * np.delete(quarters, 2).max()


# Plans know only the defaults of processors, of which the ones above have other numbers.
DEFAULTS = {
    "internvl": replace(PROCESSORS["internvl"], images=("GotOcr2ImageProcessor", square(84))),
    "llama4": replace(PROCESSORS["llama4"], images=("Llama4ImageProcessor", square(84))),
    "aya_vision": replace(PROCESSORS["aya_vision"], images=("GotOcr2ImageProcessor", square(48))),
    "cohere2_vision": replace(
        PROCESSORS["cohere2_vision"], images=("Cohere2VisionImageProcessor", {"patch_size": 3} | square(48))
    ),
    **{
        name: replace(
            PROCESSORS[name],
            images=(image_processor, {"size": {"longest_edge": 4 * 48}, "max_image_size": {"longest_edge": 48}}),
            tokens=IDEFICS | {f"<row_{row}_col_{column}>": 10 * row + column + 90 for row, column in GRID},
        )
        for name, image_processor in (("idefics3", "Idefics3ImageProcessor"), ("smolvlm", "SmolVLMImageProcessor"))
    },
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_an_evaluation_asks_prompts_in_batches(name):
    written = PROCESSORS[name]
    written.skip_without_its_needs()
    model, processor = FAMILIES[written.family or name].model(), written.build()
    reader = Reader(model, processor, Suite.of("builtin", 8).cases[:3], batch=2)
    assert len(reader.read(None).answers) == 3


def test_an_evaluation_plans_for_the_size_that_the_processor_makes():
    """Where a family takes pictures as they are given: of 112 pixels, whatever the scenes and the config have."""
    written = PROCESSORS["llava with registers"]
    written.skip_without_its_needs()
    subject = Subject("tiny", FAMILIES["llava with registers"].model(), written.build())
    contest = Contest(subject, Suite.of("builtin", 8), batch=2)
    assert contest.planner.geometry.image.shapes == ((8, 8),) and contest.picture.size != (112, 112)


# Line breaks that the tokenizer here drops.
BREAKS = {
    "gemma3": {"wide": 2, "tall": 2},
    "paligemma": {"wide": 1, "tall": 1},
    "idefics3": {"wide": 2, "tall": 4},
    "smolvlm": {"wide": 2, "tall": 4},
    "minicpmv4_6": {"tall": 1},
    "minicpmv4_7": {"tall": 1},
}


@pytest.mark.parametrize(
    ("name", "visual"), [case for case in VISUALS if case[1] != "film" or len(PROCESSORS[case[0]].frames) == 1]
)
def test_planned_tokens_are_those_of_the_processor(name, visual, monkeypatch):
    written = DEFAULTS.get(name, PROCESSORS[name])
    written.skip_without_its_needs()
    monkeypatch.setattr(qwen2_vl.Qwen2VLImageProcessorPil, "size", QWEN["size"])
    monkeypatch.setattr(qwen2_vl, "VIDEO_SIZE", QWEN["size"])
    monkeypatch.setattr(qwen_omni, "VIDEO_SIZE", QWEN["size"])
    monkeypatch.setattr(qwen3_vl, "VIDEO_SIZE", QWEN["size"] | {"longest_edge": 5120})
    monkeypatch.setattr(video_llama_3.VideoLlama3ImageProcessorPil, "size", QWEN["size"])
    monkeypatch.setattr(video_llama_3, "VIDEO_SIZE", QWEN["size"] | {"longest_edge": 5120})
    monkeypatch.setattr(glm4v.Glm4vImageProcessorPil, "size", GLM_IMAGES["size"])
    monkeypatch.setattr(glm4v, "VIDEO_SIZE", GLM_VIDEOS["size"])
    monkeypatch.setattr(gemma4.Gemma4ImageProcessorPil, "max_soft_tokens", GEMMA4["max_soft_tokens"])
    monkeypatch.setattr(lfm2_vl, "PROCESSOR", LFM2_VL)
    monkeypatch.setattr(minicpmv.MiniCPMV4_6ImageProcessorPil, "scale_resolution", MINICPMV["scale_resolution"])
    monkeypatch.setattr(molmo2, "MARGINS", MARGINS)
    width, height = SIZES[visual]
    frames = FRAMES if visual in VIDEOS else None
    planner = Planner.of(FAMILIES[name].model().config, height=height, width=width, frames=frames)
    inputs = written.inputs([(visual,)])
    planner = replace(planner, size=planner.family.encoded_size(planner.size, inputs))
    ids = inputs["input_ids"][0]
    placeholders = int(((ids == IMAGE) | (ids == VIDEO)).sum())
    assert planner.geometry.image.placeholders == placeholders
    if name in ("qwen3_vl", "qwen3_5", "glm4v", "glm46v", "gemma4", "video_llama_3", "molmo2") and frames:
        return  # time stamps are words of their own number
    words = len(WORDS) - 1 + int(ids[0] == 1)  # <s>, where it is not left to the tokenizer
    assert planner.geometry.markers == len(ids) - placeholders - words + BREAKS.get(name, {}).get(visual, 0)
