"""The `vitcop` command, on the model in the box."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from clips import RATE, greys, number_of, write_clip
from families import FAMILIES
from PIL import Image
from stand_in import StandIn
from transformers.utils import is_torchvision_available
from transformers.video_utils import VideoMetadata
from typer.testing import CliRunner

import vitcop
from vitcop import builtin, cli
from vitcop.cli import common
from vitcop.pictures.drawing import GAP, LINE, MARGIN

EXAMPLE = json.loads(Path(builtin.__file__).with_name("example.json").read_text())


def run(*arguments: object):
    return CliRunner().invoke(cli.app, ["run", *map(str, arguments)])


def top_of_panels(heading: int) -> int:
    """Of a page whose heading has so many lines, in pixels."""
    return MARGIN + heading * LINE + GAP + 2 * LINE


def test_a_bare_run_prints_the_answer_and_nothing_else_on_stdout():
    result = run()
    assert result.exit_code == 0, result.output
    assert result.stdout == EXAMPLE["answer"] + "\n"
    question, summary = result.stderr.splitlines()
    assert question == EXAMPLE["question"] and summary.startswith("vitcop: ")


def test_json_holds_what_was_asked_and_answered_and_how_long_it_took(tmp_path):
    result = run("--compare", "--retention", "1/3", "--json", tmp_path / "run.json")
    assert result.exit_code == 0, result.output
    held = json.loads((tmp_path / "run.json").read_text())
    assert (held["question"], held["answer"], held["dense_answer"]) == (EXAMPLE["question"], *[EXAMPLE["answer"]] * 2)
    assert (held["method"], held["retention"]) == ("vitcop", 1 / 3)
    assert held["report"]["images"][0]["tokens"] == 324
    assert (
        set(held["seconds_to_first_token"]) == {"dense", "pruned"} and min(held["seconds_to_first_token"].values()) > 0
    )


def test_positions_are_the_methods_unless_they_are_given(tmp_path):
    for given, taken in (("default", "compact"), ("keep", "keep")):
        result = run("--method", "visionzip", "--positions", given, "--json", tmp_path / "run.json")
        assert result.exit_code == 0, result.output
        assert json.loads((tmp_path / "run.json").read_text())["positions"] == taken
    assert "Known: compact, default, keep." in run("--positions", "both").stderr


def test_every_image_goes_into_the_prompt_and_onto_the_overlay(tmp_path):
    files = tmp_path / "red.png", tmp_path / "blue.png"
    for file, color in zip(files, ("#d02020", "#2020d0"), strict=True):
        Image.new("RGB", (432, 432), color).save(file)
    asked = [option for file in files for option in ("--image", file)]
    result = run(*asked, "--json", tmp_path / "run.json", "--overlay", tmp_path / "kept.png")
    assert result.exit_code == 0, result.output
    held = json.loads((tmp_path / "run.json").read_text())
    assert held["question"] == common.PICTURES_QUESTION
    assert [image["tokens"] for image in held["report"]["images"]] == [324, 324]
    assert "of 648 visual tokens" in result.stderr
    page, side = Image.open(tmp_path / "kept.png"), 18 * 27
    first = top_of_panels(heading=2)
    tops = first, first + side + GAP + 2 * LINE
    assert [page.getpixel((MARGIN + 9, top + 9)) for top in tops] == [(208, 32, 32), (32, 32, 208)]


def test_help_does_not_wait_for_torch():
    script = "import sys, vitcop.cli; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def table_of(stdout: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in stdout.splitlines()]
    return {row[0]: row[1:] for row in reversed(cells) if len(row) == 3}


def test_compare_puts_dense_beside_pruned_and_overlay_draws_every_stage(tmp_path):
    result = run("--compare", "--method", "knorm", "--retention", "1/3", "--overlay", tmp_path / "kept.png")
    assert result.exit_code == 0, result.output
    table = table_of(result.stdout)
    assert table[""] == ["dense", "knorm"]
    assert table["visual tokens, layers 0-1"] == ["324", "324"]
    assert table["visual tokens, layers 2-19"] == ["324", "84"]
    dense, pruned = (int(cell.removesuffix(" bytes").replace(",", "")) for cell in table["KV cache of the prompt"])
    assert dense - pruned == (324 - 84) * 18 * 2 * 128 * 4  # layers, keys and values, width, float32
    assert all(float(cell.removesuffix(" ms")) > 0 for cell in table["time to first token"])
    Image.open(tmp_path / "kept.png").verify()


def test_a_video_is_read_answered_compared_and_drawn(tmp_path, monkeypatch):
    family = FAMILIES["qwen2_vl"]
    processor = StandIn(family, family.visual("video", size=0, seed=0))
    loaded = []
    monkeypatch.setattr(cli.run, "load", lambda *asked: loaded.append(asked) or (family.model(), processor))
    clip, page = write_clip(tmp_path / "clip.mp4", greys(20)), tmp_path / "kept.png"
    options = ["--frames", 4, "--model", "own", "--method", "knorm", "--retention", "1/2", "--compare"]
    placed = ["--device", "cpu", "--dtype", "bfloat16", "--max-new-tokens", 3]
    result = run("--video", clip, *options, *placed, "--overlay", page)
    assert result.exit_code == 0, result.output
    assert loaded == [("own", "video", "cpu", "bfloat16")]
    assert processor.content == [{"type": "video"}, {"type": "text", "text": common.VIDEO_QUESTION}]
    (frames,) = processor.visuals.pop("videos")
    assert [number_of(frame) for frame in frames] == [2, 7, 12, 17]
    (metadata,) = processor.visuals.pop("video_metadata")
    assert VideoMetadata(**metadata).timestamps == [number / RATE for number in (2, 7, 12, 17)]
    assert processor.visuals == {"do_sample_frames": False}
    table = table_of(result.stdout)
    assert table["answer"] == ["3 tokens"] * 2
    assert table["visual tokens, layers 0-1"] == ["18", "18"]  # two grids of 3 x 3, each of two frames
    assert int(table["visual tokens, layers 2-7"][1]) < 18
    tops = top_of_panels(heading=3), top_of_panels(heading=3) + 480 + GAP
    rows = [Image.open(page).crop((MARGIN, top, MARGIN + 480, top + 480)) for top in tops]
    assert [number_of(row) for row in rows] == [7, 17]


def test_the_overlay_of_a_picture_in_tiles_shows_the_tiles(tmp_path, monkeypatch):
    family = FAMILIES["llava_next"]
    visual = family.visual("image", size=0, seed=0)
    visual.pixels[:] = torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None]
    monkeypatch.setattr(cli.run, "load", lambda *asked: (family.model(), StandIn(family, visual)))
    result = run("--method", "knorm", "--retention", "1/2", "--overlay", tmp_path / "kept.png")
    assert result.exit_code == 0, result.output
    page = Image.open(tmp_path / "kept.png")
    top = top_of_panels(heading=2)
    colors = [page.getpixel((MARGIN + 240, top + row * (480 + GAP) + 240)) for row in range(3)]
    assert colors == [(51, 51, 0), (102, 153, 51), (153, 255, 102)]


@pytest.mark.parametrize(
    ("arguments", "question"), [(["--image", "own.png"], common.GENERAL_QUESTION), (["what is it?"], "what is it?")]
)
def test_the_example_question_is_for_the_example_picture_only(arguments, question, tmp_path, monkeypatch):
    def refuse(**inputs):
        raise ValueError("of no matter here")

    monkeypatch.setattr(cli.run, "load", lambda *asked: (None, refuse))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("own.png")
    assert f"question {question!r}" in run(*arguments).stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--retention", "0"], "above 0 and at most 1"),
        (["--retention", "2"], "above 0 and at most 1"),
        (["--retention", "abc"], "'abc'"),
        (["--retention", "1/0"], "'1/0'"),
        (["--method", "fastv", "--retention", "0.001"], "the smallest that fastv"),  # known only once it runs
        (["--method", "vitcp"], "Did you mean 'vitcop'?"),
        (["--image", "missing.png"], "missing.png: No such file"),
        (["--image", "."], "directory"),
        (["--image", "text.png"], "text.png is not a picture"),
        (["--image", "cut.png"], "truncated"),
        (["--image", "broken.ppm"], "Cannot read broken.ppm"),
        (["--image", "a\nb\x1b[1m.png"], r"a\nb\x1b[1m.png"),
        (["--image", "https://example.com/cat.png"], "https://example.com/cat.png is an address: download it first"),
        (["--video", "https://example.com/cat.mp4"], "https://example.com/cat.mp4 is an address: download it first"),
        (["--overlay", "missing/kept.png"], "no folder missing"),
        (["--overlay", "a\nb/kept.png"], r"no folder a\nb"),
        (["--overlay", "kept.xyz"], "'kept.xyz'"),
        (["--overlay", "folder.png"], "is a folder"),
        (["--image", "tiny.png", "--overlay", "tiny.png"], "overwrite tiny.png"),
        (["--model", "./missing"], "no such folder"),
        (["--model", "qwen2.5-vl-7b"], "a shape without weights"),
        (["--model", "llama"], "Models of type 'llama' take no pictures"),
        (["--model", "vip"], "unknown model type 'vipllava'. Did you mean 'llava'?"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--dtype", "bfloat"], "Did you mean 'bfloat16'?"),
        (["--json", "missing/run.json"], "--json cannot be written: there is no folder missing"),
        (["--image", "tiny.png", "--image", "text.png"], "text.png is not a picture"),
        (["--image", "tiny.png", "--json", "tiny.png"], "overwrite tiny.png"),
        (["--model", "empty"], "config.json"),
        (["--model", "weightless"], "weightless"),
        pytest.param(
            ["--model", "torchless"],
            "processor of 'torchless' needs torchvision: pip install torchvision",
            marks=pytest.mark.skipif(is_torchvision_available(), reason="torchvision is there"),
        ),
        (["--video", "clip.mp4", "--image", "tiny.png"], "give one of them"),
        (["--video", "clip.mp4", "--frames", "0"], "from 1 to 2048; got 0"),
        (["--frames", "3"], "--frames goes with a video"),
        (["--video", "text.png"], "text.png is not a video, or of a kind that is not read"),
        (["--video", "clip.mp4", "--model", "weightless"], "take no videos, or only as pictures of their own"),
        (["is <image> a word?"], "question"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("no picture")
    Path("folder.png").mkdir()
    Path("broken.ppm").write_bytes(b"P6\n6\xef 4\n255\n" + 24 * b"x")
    Image.new("RGB", (8, 8)).save("tiny.png")
    Path("cut.png").write_bytes(builtin.EXAMPLE_PICTURE.read_bytes()[:3000])
    write_clip(Path("clip.mp4"), greys(1))
    types = {"llama": "llama", "vip": "vipllava", "empty": None, "weightless": "llava", "torchless": "qwen2_vl"}
    for folder, model_type in types.items():
        Path(folder).mkdir()
        Path(folder, "config.json").write_text(json.dumps({"model_type": model_type} if model_type else {}))
    for kind, name in (("image", "preprocessor"), ("video", "video_preprocessor")):
        settings = {f"{kind}_processor_type": f"Qwen2VL{kind.capitalize()}Processor"}
        Path("torchless", f"{name}_config.json").write_text(json.dumps(settings))
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert complaint in result.stderr
    assert not Path("kept.xyz").exists()


def test_methods_lists_all_and_explains_one(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    listed = CliRunner().invoke(cli.app, ["methods"]).stdout
    assert all(re.search(rf"^ {name} ", listed, re.MULTILINE) for name in vitcop.METHODS)
    explained = CliRunner().invoke(cli.app, ["methods", "vitcop"]).stdout
    assert "arXiv 2601.17818" in explained and "    radius = 0.6\n" in explained
    assert "paper, 64 tokens: 172 from layer 0, 77 from layer 2, 15 from layer 22 on; 63.6 on average" in explained
    misspelt = CliRunner().invoke(cli.app, ["methods", "vitcap"])
    assert (misspelt.exit_code, misspelt.stdout) == (2, "") and "Did you mean 'vitcop'?" in misspelt.stderr


def test_an_option_is_one_thing_in_all_commands():
    kinds = defaultdict(set)
    for command in cli.app.registered_commands:
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            if name != "return":
                kind, said = get_args(hint)
                option = (said.param_decls or [f"--{name.replace('_', '-')}"])[0]
                several = "with commas" in said.help
                assert not several or option.endswith("s"), f"several with commas are called in the plural: {option}"
                kinds[option].add((frozenset(get_args(kind) or [kind]) - {type(None)}, several))
    assert {option: found for option, found in kinds.items() if len(found) > 1} == {}


def test_version():
    assert CliRunner().invoke(cli.app, ["--version"]).stdout == f"vitcop {vitcop.__version__}\n"
