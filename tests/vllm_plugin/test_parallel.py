"""Processes that have half of the heads each choose what one that has all of them does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vLLM; `make test-vllm` installs it in an environment of its own")

from setting import Reference, watching_methods

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava with registers", "qwen2_vl"])
def test_two_processes_answer_as_one(name):
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, str(HERE / "two_ranks.py"), name, str(1 / 3)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.removeprefix("ANSWERS ") for line in ran.stdout.splitlines() if line.startswith("ANSWERS")]
    answers, methods, reference = dict(map(json.loads, lines)), watching_methods(name, 1 / 3), Reference(name)
    assert answers.keys() == methods.keys(), ran.stderr[-2000:]
    assert answers == {method: reference.answers(pruner) for method, pruner in methods.items()}
