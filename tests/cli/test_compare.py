"""`vitcop compare`: every figure is that of a report, and every refusal is a row."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from clips import greys, write_clip
from families import FAMILIES
from families.base import IMAGE, TinyFamily
from PIL import Image
from processors import QWEN
from transformers import BatchFeature, Qwen2VLImageProcessorPil
from typer.testing import CliRunner

import vitcop
from vitcop import cli

QWEN_TINY = FAMILIES["qwen2_vl"]


def compare(*arguments: object):
    return CliRunner(env={"COLUMNS": "100"}).invoke(cli.app, ["compare", *map(str, arguments)])


def rows_of(stdout: str) -> dict[str, list[str]]:
    """First line of each row of the table: name -> average, GFLOP, MB, answer."""
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in stdout.splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) == 5 and row[0]}


class QwenProcessor:
    """Qwen2-VL's own image processor, and a tokenizer that writes what the tiny model needs."""

    chat_template, image_token, image_token_id = None, "<image>", IMAGE
    image_processor = Qwen2VLImageProcessorPil(**QWEN)
    video_processor = SimpleNamespace(do_center_crop=False)

    def __init__(self, family: TinyFamily) -> None:
        self.family = family

    def __call__(
        self,
        text: str,
        return_tensors: str,
        images: Image.Image | list[Image.Image] | None = None,
        **video: object,
    ) -> BatchFeature:
        if images is None:
            visual = self.family.visual("video", size=0, seed=0)
            made, tokens = self.family.inputs([[visual]]), self.family.tokens(visual)
        else:
            made = self.image_processor(images, return_tensors=return_tensors)
            counts = made["image_grid_thw"].prod(-1) // QWEN["merge_size"] ** 2
            tokens = [token for count in counts.tolist() for token in (*[IMAGE] * count, 8)][:-1]
        ids = torch.tensor([[1, *tokens, 7]])
        return BatchFeature({"input_ids": ids} | self.family.token_kinds(ids) | dict(made))

    def batch_decode(self, tokens: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        return ["an answer"]


@pytest.fixture
def tiny_qwen(monkeypatch):
    model, loads = QWEN_TINY.model(), []
    loaded = model, QwenProcessor(QWEN_TINY)
    monkeypatch.setattr(cli.compare, "load", lambda *asked: loads.append(asked) or loaded)
    return loads


def test_every_method_has_a_row_and_the_sheet_a_panel_for_each_answer(tmp_path):
    result = compare("--retention", "0.3", "--sheet", tmp_path / "sheet.png", "--json", tmp_path / "rows.json")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 100
    rows = rows_of(result.stdout)
    assert list(rows) == ["dense", *vitcop.METHODS, "downsample"]
    assert rows["dense"][0] == "100.0%" and rows["dense"][3] == "green"
    answered = [row for row in rows.values() if row[0] != "-"]
    assert all(abs(float(row[0].removesuffix("%")) - 30) < 1 for row in answered[1:])
    assert rows["downsample"][:3] == ["-"] * 3 and rows["downsample"][3].startswith("Down-sampling saves nothing")
    Image.open(tmp_path / "sheet.png").verify()
    held = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["name"] for row in held] == list(rows)
    assert [f"{row['average_retention']:.1%}" for row in held[:-1]] == [row[0] for row in answered]
    assert held[0]["answer"] == rows["dense"][3] and held[-1]["refusal"].startswith("Down-sampling saves nothing")


def test_a_method_that_cannot_reach_the_retention_says_so_and_the_others_answer():
    rows = rows_of(compare("--retention", "0.05", "--methods", "knorm, random").stdout)
    assert rows["knorm"][:3] == ["-"] * 3 and rows["knorm"][3].startswith("retention=0.05 is below 0.1028")
    assert rows["random"][0] == "4.9%" and "vitcop" not in rows


def test_both_numberings_have_a_row_where_the_entrance_drops_something(tiny_qwen, monkeypatch):
    asked = "--methods", "visionzip,fastv,knorm", "--retention", "0.11", "--positions"
    assert list(rows_of(compare(*asked, "compact").stdout)) == ["dense", "visionzip", "fastv", "knorm", "downsample"]
    monkeypatch.undo()  # Qwen's positions have several axes, and stay
    rows = rows_of(compare(*asked, "both").stdout)
    assert list(rows) == ["dense", "visionzip, keep", "visionzip, compact", "fastv", "knorm", "downsample"]
    assert rows["visionzip, keep"][:3] == rows["visionzip, compact"][:3]


def test_down_sampling_is_the_dense_model_on_fewer_tokens(tiny_qwen, tmp_path):
    Image.new("RGB", (64, 64), (200, 100, 50)).save(tmp_path / "own.png")
    result = compare("--image", tmp_path / "own.png", "--methods", "random", "--retention", "1/2")
    assert result.exit_code == 0, result.output
    assert len(tiny_qwen) == 1
    rows = rows_of(result.stdout)
    assert rows["random"][0] == "50.0%"
    assert rows["downsample"][0] == f"{4 / 16:.1%}"
    text = 2  # tokens
    sizes = [float(rows[name][2]) for name in ("dense", "downsample")]
    assert sizes[1] / sizes[0] == pytest.approx((4 + text) / (16 + text), rel=0.01)
    flops = [float(rows[name][1]) for name in ("dense", "random", "downsample")]
    assert flops[0] > flops[1] > flops[2]


def test_several_pictures_are_all_counted_and_all_down_sampled(tiny_qwen, tmp_path):
    files = tmp_path / "small.png", tmp_path / "large.png"
    for file, size in zip(files, (24, 32), strict=True):
        Image.new("RGB", (size, size)).save(file)
    images = [option for file in files for option in ("--image", file)]
    result = compare(*images, "--methods", "random", "--retention", "1/2", "--sheet", tmp_path / "sheet.png")
    assert result.exit_code == 0, result.output
    rows = rows_of(result.stdout)
    assert rows["random"][0] == f"{(4 + 8) / (9 + 16):.1%}"
    assert rows["downsample"][0] == f"{(4 + 4) / (9 + 16):.1%}"
    Image.open(tmp_path / "sheet.png").verify()


def test_a_number_of_tokens_leaves_small_pictures_alone(tiny_qwen, tmp_path):
    files = tmp_path / "small.png", tmp_path / "large.png"
    for file, size in zip(files, (24, 32), strict=True):
        Image.new("RGB", (size, size)).save(file)  # of 9 and 16 tokens
    images = [option for file in files for option in ("--image", file)]
    result = compare(*images, "--methods", "random", "--tokens", 10, "--json", tmp_path / "rows.json")
    assert result.exit_code == 0, result.output
    rows = rows_of(result.stdout)
    assert rows["random"][0] == f"{(9 + 10) / (9 + 16):.1%}"
    assert rows["downsample"][0] == f"{(9 + 9) / (9 + 16):.1%}"
    held = json.loads((tmp_path / "rows.json").read_text())
    assert held["tokens"] == 10 and "retention" not in held


def test_a_video_is_compared_but_not_down_sampled(tiny_qwen, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", greys(4))
    options = ["--frames", 4, "--methods", "random", "--retention", "1/2", "--sheet", tmp_path / "sheet.png"]
    result = compare("--video", clip, *options)
    assert result.exit_code == 0, result.output
    rows = rows_of(result.stdout)
    assert rows["random"][0] == "50.0%" and rows["downsample"][3].startswith("Down-sampling is for pictures")
    Image.open(tmp_path / "sheet.png").verify()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--methods", "vitcop,randon"], "unknown method 'randon'. Did you mean 'random'?"),
        (["--methods", ""], "--methods is one or more"),
        (["--methods", "all,foo"], "unknown method 'foo'"),
        (["--positions", "0"], "Known: both, compact, default, keep."),
        (["--retention", "2"], "above 0 and at most 1"),
        (["--retention", "abc"], "'abc'"),
        (["--retention", "1/9", "--tokens", "64"], "--retention and --tokens exclude each other"),
        (["--tokens", "0"], "at least 1; got 0"),
        (["--sheet", "missing/sheet.png"], "--sheet cannot be written: there is no folder missing"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, complaint):
    result = compare(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert complaint in result.stderr
