"""The examples run as docs/examples.md says, and print what stands there."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from clips import greys, write_clip
from families.base import IMAGE, Visual
from oracle import masked_dense_logits, pruned_logits
from PIL import Image
from tiny import FAMILIES, KEEP_ONLY, LLAVA
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature

import vitcop
from vitcop.builtin import EXAMPLE_PICTURE, MODEL_PATH, example_question
from vitcop.scenes import scene
from vitcop.selection import registry

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
RUNS = [block for block in re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if "$ python" in block]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder to work in; what examples define is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # where sizes and answers are others
    monkeypatch.setattr(registry, "_defined", {**registry._defined})
    known = {*vitcop.FAMILIES}
    yield tmp_path
    for name in {*vitcop.FAMILIES} - known:
        del vitcop.FAMILIES[name]


def run(command, monkeypatch):
    """What `python` does with a script of examples/."""
    _, script, *arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    return runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.mark.parametrize("block", RUNS, ids=lambda block: Path(shlex.split(block)[2]).stem)
def test_commands_print_what_stands_below_them(block, folder, monkeypatch, capsys):
    (folder / "pictures").mkdir()
    for seed in range(3):
        scene(seed, "test").picture.save(folder / "pictures" / f"scene{seed}.png")
    (folder / "pictures" / "notes.png").write_text("no picture")
    command, *shown = block.splitlines()
    if "quantised" in command and find_spec("torchao") is None:
        pytest.skip("needs torchao, which brings nothing else")
    run(command.removeprefix("$ "), monkeypatch)
    said = capsys.readouterr().out
    for line in shown:
        if line.startswith("$ cat "):
            said = (folder / line.removeprefix("$ cat ")).read_text(encoding="utf-8")
        else:
            assert line in said.splitlines()


def test_ids_alone_ask_what_a_whole_prompt_does():
    model = AutoModelForImageTextToText.from_pretrained(MODEL_PATH, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(MODEL_PATH)
    content = [{"type": "image"}, {"type": "text", "text": example_question()}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=prompt, images=Image.open(EXAMPLE_PICTURE), return_tensors="pt")
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    with vitcop.prune(model, vitcop.ViTCoP(retention=1 / 9)):
        prefix = vitcop.ImagePrefix(model, **inputs)
        names = {"torch": torch, "processor": processor, "prefix": prefix, "text": prompt.partition("<image>")[2]}
        exec(block, names)
        assert torch.equal(names["output"], model.generate(**inputs, max_new_tokens=64, do_sample=False))


def test_every_example_is_on_the_page():
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert scripts == {*re.findall(r"python examples/(\w+\.py)", PAGE)}
    assert scripts - {"reinvest.py"} == {Path(shlex.split(block)[2]).name for block in RUNS}


class Processor:
    """Makes two grids of 3 x 3 tokens of every four frames, for the tiny Qwen2-VL."""

    chat_template = "given"

    def apply_chat_template(self, messages, add_generation_prompt):
        return "a prompt"

    def __call__(self, text, videos, **ignored):
        pixels = torch.randn(len(videos[0]), 3, 24, 24, generator=torch.Generator().manual_seed(0))
        family, video = FAMILIES["qwen2_vl"], Visual("video", 0, True, pixels)
        ids = torch.tensor([[1, *family.tokens(video), 7]])
        return BatchFeature({"input_ids": ids} | family.token_kinds(ids) | family.inputs([[video]]))

    def batch_decode(self, tokens, skip_special_tokens):
        return ["an answer"]


def test_twice_the_frames_cost_the_decoder_as_much(folder, monkeypatch, capsys):
    """The model in the box takes no videos."""
    model = FAMILIES["qwen2_vl"].model()
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda *given, **settings: model)
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *given, **settings: Processor())
    write_clip(folder / "clip.mp4", greys(20))
    run("python examples/reinvest.py clip.mp4 what? --model tiny --frames 4", monkeypatch)
    assert capsys.readouterr().out.splitlines() == [
        "4 frames, 18 of 18 visual tokens in a layer: an answer",
        "8 frames, 18 of 36 visual tokens in a layer: an answer",
    ]


def test_the_family_of_the_example_is_pruned_as_a_mask_would():
    defined = runpy.run_path(str(ROOT / "examples" / "own_family.py"))
    model = defined["PoolingLlava"].of(LLAVA.model())
    pixels = LLAVA.visual("image", 0, seed=1).pixels
    inputs = {"input_ids": torch.tensor([[1, 5, *[IMAGE] * 9, 7, 8]]), "pixel_values": pixels}
    report, pruned = pruned_logits(model, inputs, KEEP_ONLY["three_stages"])
    assert report.images[0].shapes == ((3, 3),)
    for after, before in zip(
        pruned, masked_dense_logits(model, inputs, KEEP_ONLY["three_stages"], report), strict=True
    ):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
