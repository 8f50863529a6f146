"""README, CONTRIBUTING and docs: blocks run as they stand, but for what the tables here say, and links lead on."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import torch
import typer
import yaml
from families import FAMILIES
from PIL import Image
from typer.testing import CliRunner

import vitcop
from docs.pages import DOCS, ROOT, pages
from vitcop import builtin, cli
from vitcop.lmms.arguments import split_arguments
from vitcop.lmms.manifests import MANIFESTS
from vitcop.scenes import scene
from vitcop.selection import registry

TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in pages()}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(page, kind, block) for page, text in TEXTS.items() for kind, block in FENCE.findall(text)]
INLINE = [(page, code) for page, text in TEXTS.items() for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BOX = str(builtin.MODEL_PATH)

IN_PLACE_OF = {"llava-hf/llava-1.5-7b-hf": BOX, "Qwen/Qwen2.5-VL-3B-Instruct": BOX, '"cuda"': '"cpu"'}
"""What would be downloaded, and what there may be none of."""
SMALLER = {
    "plan": {"--quality 0.97": "--quality 0.5 --methods knorm"},
    "bench": {
        "vitcop bench": "vitcop bench --methods random --retentions 1/9 --repeats 1 --decode-tokens 1",
        "--model llava-1.5-7b": f"--model {BOX}",
        "--model llava-onevision-0.5b": f"--model {BOX}",
        "--retentions 1/3,1/9": "--retentions 1/9",
        "--batches 1,4,8": "--batches 2",
        "--batches 1,8": "--batches 2",
    },
    "eval": {
        "vitcop eval": "vitcop eval --methods random --retentions 1/9 --questions 5",
        "--questions 200": "--questions 5",
    },
}
"""What would take 28 GB or minutes. What stands twice then counts as the page has it."""
NOT_RUN = {
    "--video": "the model in the box takes no videos; tests/cli/test_cli.py runs one",
    "--model testbed": "needs what it is made of; `make test-testbed`",
    "testbed.build()": "needs what it is made of; `make test-testbed`",
    "python examples/": "tests/test_examples.py has all of them",
    "prefix.generate": "tests/test_examples.py",
    "vitcop app": "does not end; `make test-app`",
    "vitcop serve": "tests/cli/test_serve.py has all of them",
}
ONE_RUN = {
    "vitcop: 11.22% of the visual tokens": "what a run of lmms-eval logs; `make test-lmms`",
    "Promised: pyramiddrop": "what a run of minutes found",
}
"""Blocks of output that no command stands in front of."""


def blocks(kind: str) -> list[object]:
    """Those of a kind, each called by its page."""
    return [pytest.param(block, id=page) for page, of_kind, block in BLOCKS if of_kind == kind]


def with_what_is_here(text: str, names: dict[str, str]) -> str:
    for name, here in names.items():
        text = text.replace(name, here)
    return text


def invoke(words: list[str]) -> str:
    result = CliRunner(env={"COLUMNS": "100"}).invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder with all files that the pages take for granted."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("street.jpg", "before.jpg", "after.jpg"):
        Image.open(builtin.EXAMPLE_PICTURE).convert("RGB").save(folder / name)
    (folder / "mine.py").write_text(own_method(TEXTS["README.md"]))
    shutil.copy(ROOT / "benchmarks" / "runs" / "llava-onevision-0.5b-cpu.json", folder / "out.json")
    with (folder / "mine.jsonl").open("w") as file:
        for number in range(10):
            drawn = scene(9_000_000 + number, "test")
            drawn.picture.save(folder / f"{number}.png")
            asked = drawn.questions[number % len(drawn.questions)]
            file.write(json.dumps({"picture": f"{number}.png", "question": asked.text, "answer": asked.answer}) + "\n")
    return folder


@pytest.fixture(scope="module")
def done() -> list[list[str]]:
    """Commands that ran at the desk, which several pages have."""
    return []


@pytest.fixture
def at_the_desk(desk, monkeypatch) -> Path:
    monkeypatch.chdir(desk)
    monkeypatch.setattr(registry, "_defined", {**registry._defined})
    # A clean install does not have it, and transformers needs it for `device_map`.
    monkeypatch.setattr("transformers.integrations.accelerate.is_accelerate_available", lambda *version: False)
    return desk


def own_method(page: str) -> str:
    return re.search(r"```python\n([^`]*?class Mine.*?)```", page, re.DOTALL)[1]


def given(block: str) -> dict[str, object]:
    """What a block goes on from, where it does not begin from nothing."""
    if "METRICS" in block:
        metrics = ast.literal_eval(re.search(r"METRICS = ({.*?\n})", block, re.DOTALL)[1])
        for name, score in (("dense", 2.0), ("vitcop-192", 2.0), ("vitcop-128", 1.0), ("vitcop-64", 0.5)):
            results = {task: {f"{metric},none": score for metric in of_task} for task, of_task in metrics.items()}
            file = Path("results") / name / "model" / "20261127_results.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"results": results}))
    if "skip_repeated_patches" in block:
        return {"vitcop": vitcop, "model": FAMILIES["qwen2_5_vl"].build("sdpa")}
    if "model = " in block or not re.search(r"[( ]model, ", block):
        return {}
    loaded: dict[str, object] = {}
    exec(
        "import vitcop\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f"model = AutoModelForImageTextToText.from_pretrained({BOX!r})\n"
        f"processor = AutoProcessor.from_pretrained({BOX!r})",
        loaded,
    )
    return loaded


@pytest.mark.parametrize("block", blocks("python"))
def test_python(block, at_the_desk, capsys):
    for part, reason in NOT_RUN.items():
        if part in block:
            pytest.skip(reason)
    before = given(block)
    file = at_the_desk / "block.py"
    file.write_text(with_what_is_here(block, IN_PLACE_OF | {", 0.97)": ", 0.5)"}))
    names = runpy.run_path(str(file), before, run_name="block")
    said = capsys.readouterr().out
    if "print(pruning.report)" in block and names["pruning"].report:
        assert str(names["pruning"].report) in said
    if "METRICS" in block:
        assert [line for line in said.splitlines() if line.startswith("mean")] == [
            "mean: 100.0%",
            "mean: 50.0%",
            "mean: 25.0%",
        ]
    for value in names.values():
        if isinstance(value, type) and issubclass(value, vitcop.Pruner) and value.__module__ == "block":
            model = tiny.LLAVA.model()
            with torch.no_grad(), vitcop.prune(model, value(retention=1 / 2)) as pruning:
                model(**tiny.batch(tiny.RAGGED))
            assert pruning.report.overall_retention == pytest.approx(1 / 2, abs=1 / tiny.TOKENS_PER_IMAGE)


def commands(block: str) -> Iterator[str]:
    """Lines that call something of ours."""
    yield from (line for line in block.replace("\\\n", " ").splitlines() if line.startswith("vitcop "))


@pytest.mark.parametrize("block", [each for each in blocks("sh") if any(commands(each.values[0]))])
def test_commands(block, at_the_desk, done):
    for command in commands(block):
        if any(part in command for part in NOT_RUN):
            continue
        name = command.split()[1]
        words = shlex.split(with_what_is_here(command, SMALLER.get(name, {}) | IN_PLACE_OF), comments=True)
        if words not in done:
            invoke(words[1:])
            done.append(words)
        for file in re.findall(r"(?<=--)(?:overlay|json|plot|sheet|html) (\S+)", command):
            assert (at_the_desk / file).stat().st_size


LMMS = re.compile(r"^ *(lmms-eval|accelerate|run) ", re.MULTILINE)


@pytest.mark.parametrize("block", [each for each in blocks("sh") if LMMS.search(each.values[0])])
def test_what_lmms_eval_is_asked(block, at_the_desk):
    """Methods and settings are read as the plug-in reads them, and models are those that it has."""
    function = next(text for _, kind, text in BLOCKS if kind == "sh" and "run() {" in text).split('run ""')[0]
    script = block if "run() {" in block else function + block
    (at_the_desk / "bin").mkdir(exist_ok=True)
    for name in ("lmms-eval", "accelerate"):
        stub = at_the_desk / "bin" / name
        stub.write_text(f'#!{sys.executable}\nimport json, sys\nprint("asked", json.dumps(sys.argv[1:]))\n')
        stub.chmod(0o755)
    script = "\n".join(line for line in script.splitlines() if not line.startswith(("vitcop ", "pip ", "make ")))
    path = {**os.environ, "PATH": f"{at_the_desk / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-eu", "-c", script], env=path, capture_output=True, text=True, check=True)
    asked = [json.loads(line.removeprefix("asked ")) for line in done.stdout.splitlines()]
    assert asked
    known = {name for manifest in MANIFESTS for name in (manifest["model_id"], *manifest.get("aliases", ()))}
    for words in asked:
        options = dict(pairwise(words))
        if options["--model"] != "openai_compatible":
            assert options["--model"] in known
            split_arguments(dict(pair.split("=") for pair in options["--model_args"].split(",")), ["pretrained"])


def test_what_a_command_prints_is_what_stands_below_it():
    for _, kind, block in BLOCKS:
        if not kind and not any(part in block for part in (*ONE_RUN, *NOT_RUN)):
            command, *shown = block.splitlines()
            printed = [line.replace("│", " ").split() for line in invoke(shlex.split(command)[2:]).splitlines()]
            assert shown and all(line.split() in printed for line in shown), printed


def test_nothing_else_stands_in_blocks():
    assert {kind for _, kind, _ in BLOCKS} == {"", "json", "python", "sh", "toml"}
    for _, kind, block in BLOCKS:
        if kind == "json":
            assert {"picture", "question"} <= {*json.loads(block)}
        if kind == "toml":
            assert registry.GROUP in tomllib.loads(block)["project"]["entry-points"]


def mentioned() -> Iterator[str]:
    """Commands anywhere, in blocks or in running text."""
    for _, kind, block in BLOCKS:
        if kind == "sh":
            yield from block.replace("\\\n", " ").splitlines()
    yield from (" ".join(code.split()) for _, code in INLINE)


def test_commands_targets_extras_and_names_exist():
    known = typer.main.get_command(cli.app).commands
    targets = re.findall(r"^([\w-]+(?: [\w-]+)*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {target for line in targets for target in line.split()}
    for line in mentioned():
        own = line.split(" -- ")[0].split(" # ")[0]
        if command := re.match(r"vitcop ([a-z]+)\b", own):
            options = {option for each in known[command[1]].params for option in each.opts}
            assert {*re.findall(r"(?<=\s)--[\w-]+", own)} <= options, line
        if target := re.match(r"make ([\w-]+)$", own.split(" PYTHON=")[0].strip()):
            assert target[1] in targets, line
        for extra in re.findall(r"vitcop\[(\w+)\]", line):
            assert extra in PROJECT["optional-dependencies"], line
        if name := re.match(r"vitcop(?:\.[A-Za-z_]+)+", line):
            first, *rest = name[0].split(".")
            place = import_module(first)
            for part in rest:
                place = getattr(place, part) if hasattr(place, part) else import_module(f"{place.__name__}.{part}")


def slugs(page: Path) -> set[str]:
    """Anchors of the headings of a page, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page",
    [*pages(), ROOT / "CHANGELOG.md", *sorted(ROOT.glob("examples/*/README.md"))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_links_lead_to_something(page):
    text = re.sub(r"`[^`]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in slugs(target), link


def test_the_site_has_every_page_and_every_name():
    def files(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for each in entry.values() if isinstance(entry, dict) else entry:
                yield from files(each)

    shown = sorted(files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    own = [file for file in shown if not file.startswith(PROJECT["urls"]["Repository"])]
    assert own == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
    assert sorted(re.findall(r"^::: vitcop\.(\w+)$", TEXTS["docs/api.md"], re.MULTILINE)) == sorted(vitcop.__all__)


def test_there_is_one_address_and_one_example():
    address = PROJECT["urls"]["Repository"]
    installed = {
        command for _, kind, block in BLOCKS if kind == "sh" for command in re.findall(r"git\+(\S+?)\"", block)
    }
    assert installed == {address} and f"git+{address}" in TEXTS["README.md"]
    assert f"repository-code: {address}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert all(url.startswith(address) for url in PROJECT["urls"].values())
    assert own_method(TEXTS["README.md"]) == own_method(TEXTS["docs/add_a_method.md"])
