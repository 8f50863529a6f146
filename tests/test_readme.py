"""The README's blocks run as they stand, but for what they would download and the GPU they would need."""

from __future__ import annotations

import re
import shlex
import tomllib

import pytest
from PIL import Image
from typer.testing import CliRunner

from docs.readme import README
from vitcop import builtin, cli

TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
BOX = str(builtin.MODEL_PATH)
IN_PLACE_OF = {"llava-hf/llava-1.5-7b-hf": BOX, "Qwen/Qwen2.5-VL-3B-Instruct": BOX, '"cuda"': '"cpu"'}
PICTURES = "street.jpg", "before.jpg", "after.jpg"

FEWER = {"1/3,1/9": "1/9"}
SMALLER = {
    "bench": FEWER | {"llava-1.5-7b": BOX, "--batch 1,8": "--batch 1 --repeats 1 --decode-tokens 1"},
    "eval": FEWER | {"--suite builtin": "--suite builtin --questions 5"},
}
"""What would take 28 GB or minutes."""
NOT_RUN = {
    "--video": "the model in the box takes no videos; tests/cli/test_cli.py runs one",
    "pip install": "sets up an environment",
    "make": "sets up an environment",
    "lmms-eval": "needs one of its own; `make test-lmms`",
    "--model testbed": "needs what it is made of; `make test-testbed`",
}


def commands() -> list[str]:
    """Lines of shell blocks, and what stands behind a prompt."""
    lines = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
    prompts = [line[2:] for kind, block in BLOCKS if not kind for line in block.splitlines() if line.startswith("$ ")]
    return [line for line in lines + prompts if line.strip()]


def with_what_is_here(text: str, names: dict[str, str]) -> str:
    for name, here in names.items():
        text = text.replace(name, here)
    return text


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A working directory that has the pictures which the README names."""
    for name in PICTURES:
        Image.open(builtin.EXAMPLE_PICTURE).convert("RGB").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "python"])
def test_python(block, pictures, monkeypatch, capsys):
    # A clean install does not have it, and transformers needs it for `device_map`.
    monkeypatch.setattr("transformers.integrations.accelerate.is_accelerate_available", lambda *version: False)
    names: dict[str, object] = {}
    exec(with_what_is_here(block, IN_PLACE_OF), names)
    if "pruning" in names:
        assert str(names["pruning"].report) in capsys.readouterr().out


@pytest.mark.parametrize("command", commands())
def test_shell(command, pictures, tmp_path):
    if any(part in command for part in NOT_RUN):
        pytest.skip(next(reason for part, reason in NOT_RUN.items() if part in command))
    _, name, *_ = shlex.split(command)
    here = with_what_is_here(command, IN_PLACE_OF | SMALLER.get(name, {}))
    program, *arguments = shlex.split(here, comments=True)
    assert program == "vitcop"
    result = CliRunner(env={"COLUMNS": "100"}).invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    files = [word for word in arguments if re.fullmatch(r"\w+\.(png|json)", word)]
    assert all((tmp_path / file).stat().st_size for file in files)


def test_what_a_command_prints_is_what_stands_below_it():
    for _, block in BLOCKS:
        if block.startswith("$ vitcop "):
            command, *shown = block.splitlines()
            result = CliRunner(env={"COLUMNS": "100"}).invoke(cli.app, shlex.split(command)[2:])
            printed = [line.replace("│", " ").split() for line in result.stdout.splitlines()]
            assert all(line.split() in printed for line in shown), result.stdout


def test_there_is_one_address():
    project = tomllib.loads((README.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project["urls"]["Repository"]
    assert f'pip install "vitcop @ git+{address}"' in TEXT
    assert f"repository-code: {address}\n" in (README.parent / "CITATION.cff").read_text(encoding="utf-8")
    assert all(url.startswith(address) for url in project["urls"].values())
