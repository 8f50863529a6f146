"""Models come from anywhere: nothing of theirs is run, and what is broken about them is said in one line."""

import ast
import json
import re
import shutil
import struct
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vitcop
from vitcop import builtin, cli
from vitcop.cli.common import load

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(builtin.MODEL_PATH, tmp_path / "model")


def change(path: Path, **settings: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("command", ["plan", "run"])
def test_code_of_a_model_is_not_run_whatever_is_answered(command, folder):
    ran = folder / "ran"
    change(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    (folder / "own.py").write_text(
        f"open({str(ran)!r}, 'w')\nfrom transformers import LlavaConfig\nclass Config(LlavaConfig): pass\n"
    )
    result = CliRunner().invoke(cli.app, [command, "--model", str(folder)], input="y\n" * 9)
    assert not ran.exists()
    assert (result.exit_code, result.stdout) == (2, "") and result.stderr.count("\n") == 1
    assert "code of its own, which vitcop does not run" in result.stderr


def test_whatever_finds_its_class_by_the_model_is_told_not_to_run_code():
    """`from_pretrained` and `from_config` of AutoConfig, AutoModel..., AutoProcessor and AutoTokenizer."""
    files = [path for part in ("src", "training", "benchmarks", "examples") for path in (ROOT / part).rglob("*.py")]
    texts = {path: text for path in files if re.search(r"Auto\w+\.from_", text := path.read_text(encoding="utf-8"))}
    loads = [
        (path, node)
        for path, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and re.fullmatch(r"(\w+\.)?Auto\w+\.from_\w+", ast.unparse(node.func))
    ]
    told = [node for _, node in loads if "trust_remote_code=False" in map(ast.unparse, node.keywords)]
    assert len(told) == len(loads) >= 8, [f"{path}:{node.lineno}" for path, node in loads if node not in told]


@pytest.mark.parametrize("setting", ["attn_implementation", "_attn_implementation"])
def test_kernels_that_a_model_names_are_not_downloaded(setting, folder):
    change(folder / "config.json", **{setting: "kernels-community/flash-attn"})
    assert load(str(folder), "image")[0].config._attn_implementation == "sdpa"


def rename(header: dict, name: str) -> None:
    header[f"{name}.old"] = header.pop(name)


def reshape(header: dict, name: str) -> None:
    header[name]["shape"].append(1)


@pytest.mark.parametrize("damage", [rename, reshape])
def test_a_model_without_all_of_its_weights_is_not_filled_with_random_ones(damage, folder):
    file, part = folder / "model.safetensors", "layers.0.self_attn.q_proj.weight"
    content = file.read_bytes()
    end = 8 + struct.unpack_from("<Q", content)[0]
    header = json.loads(content[8:end])
    damage(header, f"language_model.model.{part}")
    written = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(written)) + written + content[end:])
    with pytest.raises(vitcop.VitcopError, match=rf"lacks 1 of its weights, .* such as model.language_model.{part};"):
        load(str(folder), "image")


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("model.safetensors", "", "header too small"),
        ("config.json", "[]", "Cannot load the model"),
        ("tokenizer.json", "{}", "KeyError: 'added_tokens'"),
        ("chat_template.jinja", "{{ raise_exception('no\\nway') }}", "chat template of the model fails: .*: no way"),
        ("chat_template.jinja", "{% for", "chat template of the model fails: TemplateSyntaxError"),
    ],
)
def test_a_broken_model_is_one_line(file, content, complaint, folder):
    (folder / file).write_text(content)
    result = CliRunner().invoke(cli.app, ["run", "--model", str(folder)])
    assert (result.exit_code, result.stdout) == (2, "") and result.stderr.count("\n") == 1
    assert re.search(complaint, result.stderr)
