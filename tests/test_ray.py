"""The Ray Data recipe gives the answers of a plain loop, and fails where it cannot."""

import os
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import vitcop
from vitcop.builtin import MODEL_PATH

ray = pytest.importorskip("ray", reason="needs ray[data]; `make test-ray` installs it in an environment of its own")
import pyarrow as pa
import pyarrow.parquet as pq

from examples.ray_data import answer as recipe
from examples.ray_data.make_questions import rows

RECIPE = Path(__file__).parent.parent / "examples" / "ray_data"
METHOD = vitcop.ViTCoP(retention=0.2)
QUESTIONS = [row for seed in range(3) for row in rows(seed)]


@pytest.fixture(autouse=True)
def in_time():
    """Ray waits without an end for what it cannot have."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("Ray waits, for CPUs or for an actor that goes on dying"))
    signal.alarm(3600)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="error")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = 3000  # else the first actor that is ready may do it all
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def expected():
    """Of a loop over `generate`, one question at a time."""
    model = AutoModelForImageTextToText.from_pretrained(MODEL_PATH, dtype="float32")
    processor, answers = AutoProcessor.from_pretrained(MODEL_PATH), {}
    with vitcop.prune(model, METHOD):
        for row in QUESTIONS:
            prompt = f"USER: <image>\n{row['question']} ASSISTANT:"
            inputs = processor(images=Image.open(BytesIO(row["picture"])), text=prompt, return_tensors="pt")
            output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
            answers[row["id"]] = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert len(set(answers.values())) > 3
    return answers


@pytest.mark.parametrize(("actors", "batch_size"), [(1, 8), (2, 8), (2, 3)])
def test_answers_are_those_of_a_plain_loop(actors, batch_size, cluster, expected, monkeypatch, tmp_path):
    class Signed(recipe.Answerer):
        def __call__(self, batch):
            answers, rows = super().__call__(batch), len(batch["id"])
            kept = self.pruning.report.average_retention()
            return answers | {"process": np.full(rows, os.getpid()), "kept": np.full(rows, kept)}

    monkeypatch.setattr(recipe, "Answerer", Signed)
    pq.write_table(pa.Table.from_pylist(QUESTIONS), tmp_path / "questions.parquet")
    questions = ray.data.read_parquet(tmp_path)
    given = recipe.answer(questions, str(MODEL_PATH), METHOD, actors=actors, batch_size=batch_size).take_all()
    assert len(given) == len(QUESTIONS)
    assert {row["id"]: row["answer"] for row in given} == expected
    assert len({row["process"] for row in given}) == actors
    assert all(row["kept"] < 0.21 for row in given)


def test_files_in_and_out(tmp_path, expected):
    """Both scripts, as a user runs them; answers that are there already are not mixed with new ones."""
    questions, answers = tmp_path / "questions", tmp_path / "answers"
    quiet = {"text": True, "capture_output": True}
    made = [RECIPE / "make_questions.py", str(questions), "--scenes", "3"]
    subprocess.run([sys.executable, *made], check=True, **quiet)
    ask = [RECIPE / "answer.py", str(questions), str(answers), "--actors", "2", "--retention", "0.2"]
    subprocess.run([sys.executable, *ask], check=True, **quiet)
    table = pq.read_table(answers).to_pylist()
    assert {row["id"]: row["answer"] for row in table} == expected
    again = subprocess.run([sys.executable, *ask], check=False, **quiet)
    assert again.returncode and str(answers) in again.stderr
    assert pq.read_table(answers).num_rows == len(QUESTIONS)


def test_broken_picture_fails_the_job_by_name(cluster):
    picture = QUESTIONS[3]["picture"]
    data = picture.index(b"IDAT")
    torn = picture[: data - 4] + (16).to_bytes(4, "big") + picture[data:]  # for which Pillow raises no OSError
    questions = ray.data.from_items([*QUESTIONS[:3], QUESTIONS[3] | {"id": "torn", "picture": torn}])
    with pytest.raises(ray.exceptions.RayTaskError, match="picture of row 'torn'"):
        recipe.answer(questions, str(MODEL_PATH), METHOD, actors=1, batch_size=2).take_all()


def test_actor_that_dies_again_and_again_fails_the_job(cluster, monkeypatch):
    class Killed(recipe.Answerer):
        def __call__(self, batch):
            os._exit(1)

    monkeypatch.setattr(recipe, "Answerer", Killed)
    with pytest.raises(ray.exceptions.ActorDiedError):
        recipe.answer(ray.data.from_items(QUESTIONS[:2]), str(MODEL_PATH), METHOD, actors=1).take_all()


@pytest.mark.parametrize("asked", [{"actors": 3}, {"actors": 1, "threads": 3}, {"actors": 1, "device": "cuda"}])
def test_what_does_not_fit_is_refused(asked, cluster):
    with pytest.raises(ValueError, match=r"do not fit into 3 CPUs and 0 GPUs; take fewer"):
        recipe.answer(ray.data.from_items(QUESTIONS[:1]), str(MODEL_PATH), METHOD, **asked)
