"""The plug-in for lmms-eval answers as vitcop does, in one process and in two, and hides no error."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES
from tiny import GREEDY, ONE_IMAGE, batch
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

import vitcop
from vitcop import builtin
from vitcop.lmms import manifests
from vitcop.lmms.arguments import split_arguments

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "lmms_eval"
QUESTIONS = 23  # odd, so that one of two processes has one less
BOX = f"pretrained={builtin.MODEL_PATH},dtype=float32"
NAMES = [name for entry in manifests.MANIFESTS for name in (entry["model_id"], *entry.get("aliases", ()))]

needs_lmms_eval = pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not here: make test-lmms")


def test_its_manifests_import_nothing_heavy():
    script = (
        "import sys, vitcop.lmms.manifests; assert not {'torch', 'transformers', 'lmms_eval', 'typer'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_manifests_name_classes_that_are_there():
    paths = [path for entry in manifests.MANIFESTS for key, path in entry.items() if key.endswith("class_path")]
    assert len(paths) == 7
    for path in paths:
        module, _, name = path.rpartition(".")
        tree = ast.parse(Path(find_spec(module).origin).read_text())
        assert name in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


def test_arguments_are_told_apart():
    given = {"method": "pyramiddrop", "retention": "1/3", "layers": "[4,9,14]", "dtype": "float32", "batch_size": 1}
    method, others = split_arguments(given, ["dtype", "batch_size", "device"])
    assert method == vitcop.PyramidDrop(retention=1 / 3, layers=(4, 9, 14))
    assert others == {"dtype": "float32", "batch_size": 1}
    assert split_arguments({"method": "visionzip", "positions": "keep"}, [])[0].positions == "keep"
    assert split_arguments({"retention": 1, "dtype": "auto"}, ["dtype"]) == (None, {"dtype": "auto"})


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"method": "vitcap"}, "Did you mean 'vitcop'?"),
        ({"method": "vitcop", "retenton": 0.1}, "unknown argument 'retenton'. Did you mean 'retention'?"),
        ({"method": "vitcop", "layer": 2}, "unknown argument 'layer'"),
        ({"method": "fastv", "positions": "kept"}, "positions of FastV is 'compact' or 'keep'"),
        ({"method": "fastv", "layer": "two"}, "layer of FastV is a whole number or None"),
        ({"method": "pyramiddrop", "layers": "[4;9;14]"}, "layers is a list such as [8,16,24]"),
        ({"method": "vitcop", "retention": "a third"}, "retention is a fraction such as 1/9"),
        ({"method": "vitcop", "retention": 0}, "above 0 and at most 1"),
        ({"retention": 0.1}, "retention needs a method"),
    ],
)
def test_arguments_that_cannot_be_are_refused(given, complaint):
    with pytest.raises(vitcop.VitcopError) as raised:
        split_arguments(given, ["device"])
    assert complaint in str(raised.value)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A working directory with the questions in it, where lmms-eval is started."""
    folder = tmp_path_factory.mktemp("lmms")
    command = [sys.executable, EXAMPLE / "write_scenes.py", "--questions", str(QUESTIONS)]
    subprocess.run(command, cwd=folder, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@cache
def own_answers(method: vitcop.Pruner | None) -> tuple[dict[int, str], float]:
    """What vitcop's own loop makes of the questions, and the share that is right."""
    from vitcop.scenes import scene

    model = AutoModelForImageTextToText.from_pretrained(builtin.MODEL_PATH, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(builtin.MODEL_PATH)
    scenes = (scene(seed, "test") for seed in count())
    asked = ((drawn.picture, question) for drawn in scenes for question in drawn.questions)
    pruning = vitcop.prune(model, method) if method else None
    answers, right = {}, 0
    for number, (picture, question) in enumerate(islice(asked, QUESTIONS)):
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(images=picture, text=prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        answers[number] = processor.decode(new, skip_special_tokens=True)
        right += answers[number].strip() == question.answer
    if pruning:
        pruning.remove()
    return answers, right / QUESTIONS


def evaluate(arguments: str, **options: object) -> tuple[dict[int, str], float]:
    """What lmms-eval makes of them, in this process."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(EXAMPLE), include_defaults=False)
    results = simple_evaluate(
        "vitcop_llava_hf", arguments, tasks=["vitcop_scenes"], task_manager=tasks, device="cpu", **options
    )
    answers = {sample["doc_id"]: sample["filtered_resps"][0] for sample in results["samples"]["vitcop_scenes"]}
    return answers, results["results"]["vitcop_scenes"]["accuracy,none"]


@needs_lmms_eval
@pytest.mark.parametrize(
    ("arguments", "method", "simple"),
    [
        ("", None, False),
        (",method=vitcop,retention=1/9", vitcop.ViTCoP(retention=1 / 9), False),
        (",method=knorm,retention=0.3,layer=4", vitcop.KNorm(retention=0.3, layer=4), True),
    ],
)
def test_one_process_answers_as_vitcop_does(scenes, arguments, method, simple):
    from lmms_eval import evaluator  # noqa: F401  # which takes all sinks away when it is imported
    from loguru import logger

    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    assert evaluate(BOX + arguments, force_simple=simple) == own_answers(method)
    logger.remove(sink)
    said = [line for line in lines if "of the visual tokens on average" in line]
    if method is None:
        assert not said
    else:
        assert len(said) == 1 and said[0].startswith(method.name) and f"in {QUESTIONS} prompts" in said[0]
        assert abs(float(said[0].split()[1].removesuffix("%")) / 100 - method.retention) < 1 / 324


@needs_lmms_eval
def test_two_processes_answer_as_one(scenes):
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes=2"]
    launch += ["--main_process_port=0"]  # any that is free
    command = [*launch, "-m", "lmms_eval", "--model", "vitcop_llava_hf", "--tasks", "vitcop_scenes", "--log_samples"]
    options = ["--include_path", EXAMPLE, "--output_path", "two"]
    method = ["--model_args", f"{BOX},method=vitcop,retention=1/9"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, *options, *method], env=environment, capture_output=True, text=True)
    # accelerate can run one process where two were asked for, and lmms-eval exits with 0 when it has failed.
    assert "prompts of process 0" in done.stdout and "prompts of process 1" in done.stdout, done.stdout + done.stderr
    (log,) = Path("two").glob("*/*_samples_vitcop_scenes.jsonl")
    samples = [json.loads(line) for line in log.read_text().splitlines()]
    (scores,) = Path("two").glob("*/*_results.json")
    answers, accuracy = own_answers(vitcop.ViTCoP(retention=1 / 9))
    assert {sample["doc_id"]: sample["filtered_resps"] for sample in samples} == answers
    assert json.loads(scores.read_text())["results"]["vitcop_scenes"]["accuracy,none"] == accuracy


@needs_lmms_eval
def test_errors_are_raised_where_lmms_eval_scores_an_empty_answer(scenes):
    with pytest.raises(vitcop.BudgetError, match="the smallest that fastv"):  # known only once the model runs
        evaluate(f"{BOX},method=fastv,retention=0.001")


@needs_lmms_eval
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("simple", [False, True])
def test_every_name_refuses_what_it_does_not_know(name, simple):
    from lmms_eval.models import get_model

    kind = get_model(name, force_simple=simple)
    with pytest.raises(vitcop.VitcopError, match="unknown argument 'retenton'"):
        kind.create_from_arg_string("pretrained=none,method=vitcop,retenton=1/9", {"batch_size": 1})
    with pytest.raises(vitcop.VitcopError, match="No checkpoint is named"):
        kind.create_from_arg_string("method=vitcop")


@needs_lmms_eval
@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("vitcop_llava_onevision", "llava_onevision"),
        ("vitcop_qwen2_5_vl", "qwen2_5_vl"),
        ("vitcop_qwen3_vl", "qwen3_vl"),
        ("vitcop_internvl", "internvl"),
    ],
)
def test_every_name_loads_a_stock_model_and_prunes_it(name, family, tmp_path, monkeypatch):
    """Without its processor, which needs torchvision in all of these."""
    from lmms_eval.models import get_model

    processor = SimpleNamespace(tokenizer=SimpleNamespace(padding_side="left"))
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *names, **settings: processor)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *names, **settings: processor.tokenizer)
    FAMILIES[family].model().save_pretrained(tmp_path)
    model = get_model(name).create_from_arg_string(f"pretrained={tmp_path},method=knorm,retention=0.75,layer=4")
    inputs = batch([ONE_IMAGE], family=FAMILIES[family])
    inputs["pixel_values"] = inputs["pixel_values"].to(model.model.dtype)
    model.model.generate(**inputs, **GREEDY)
    report = model._pruning.report
    assert report.method == "knorm" and [stage.layer for stage in report.stages] == [4]
    network = model.model
    model.clean()
    with vitcop.prune(network, vitcop.KNorm()):  # it is no longer pruned
        pass
