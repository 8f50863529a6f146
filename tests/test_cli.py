"""The `vitcop` command, on the model in the box."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import vitcop
from vitcop import builtin, cli

EXAMPLE = json.loads(Path(builtin.__file__).with_name("example.json").read_text())


def run(*arguments: object):
    return CliRunner().invoke(cli.app, ["run", *map(str, arguments)])


def test_a_bare_run_prints_the_answer_and_nothing_else_on_stdout():
    result = run()
    assert result.exit_code == 0, result.output
    assert result.stdout == EXAMPLE["answer"] + "\n"
    assert result.stderr.startswith("vitcop: ") and result.stderr.count("\n") == 1


def test_help_does_not_wait_for_torch():
    script = "import sys, vitcop.cli; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_compare_puts_dense_beside_pruned_and_overlay_draws_every_stage(tmp_path):
    result = run("--compare", "--method", "knorm", "--retention", "1/3", "--overlay", tmp_path / "kept.png")
    assert result.exit_code == 0, result.output
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in result.stdout.splitlines()]
    table = {row[0]: row[1:] for row in reversed(cells) if len(row) == 3}
    assert table[""] == ["dense", "knorm"]
    assert table["visual tokens, layers 0-1"] == ["144", "144"]
    assert table["visual tokens, layers 2-19"] == ["144", "37"]
    dense, pruned = (int(cell.removesuffix(" bytes").replace(",", "")) for cell in table["KV cache of the prompt"])
    assert dense - pruned == (144 - 37) * 18 * 2 * 96 * 4  # layers, keys and values, width, float32
    assert all(float(cell.removesuffix(" ms")) > 0 for cell in table["time to first token"])
    Image.open(tmp_path / "kept.png").verify()


@pytest.mark.parametrize(
    ("arguments", "question"), [(["--image", "own.png"], cli.GENERAL_QUESTION), (["what is it?"], "what is it?")]
)
def test_the_example_question_is_for_the_example_picture_only(arguments, question, tmp_path, monkeypatch):
    def refuse(**inputs):
        raise ValueError("of no matter here")

    monkeypatch.setattr(cli, "_load", lambda name: (None, refuse))
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
        (["--retention", "0.001"], "is possible"),  # known only once the model runs
        (["--method", "vitcp"], "Did you mean 'vitcop'?"),
        (["--image", "missing.png"], "missing.png: No such file"),
        (["--image", "."], "directory"),
        (["--image", "text.png"], "text.png is not a picture"),
        (["--image", "cut.png"], "truncated"),
        (["--image", "broken.ppm"], "Cannot read broken.ppm"),
        (["--overlay", "missing/kept.png"], "no folder missing"),
        (["--overlay", "kept.xyz"], "'kept.xyz'"),
        (["--overlay", "folder.png"], "is a folder"),
        (["--image", "tiny.png", "--overlay", "tiny.png"], "overwrite the picture"),
        (["--model", "./missing"], "no such folder"),
        (["--model", "llama"], "unknown model type 'llama'. Did you mean 'llava'?"),
        (["--model", "empty"], "config.json"),
        (["--model", "weightless"], "weightless"),
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
    for folder, config in (("llama", {"model_type": "llama"}), ("empty", {}), ("weightless", {"model_type": "llava"})):
        Path(folder).mkdir()
        Path(folder, "config.json").write_text(json.dumps(config))
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert complaint in result.stderr
    assert not Path("kept.xyz").exists()


def test_version():
    assert CliRunner().invoke(cli.app, ["--version"]).stdout == f"vitcop {vitcop.__version__}\n"


def test_pictures_are_read_as_a_viewer_shows_them(tmp_path):
    Image.new("I;16", (2, 2), 128 * 256).save(tmp_path / "deep.png")
    Image.new("RGBA", (2, 2), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    assert cli._read_picture(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)
    assert cli._read_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
