"""The example that measures servers starts a dense and a pruned one, and counts what their prompts hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vLLM; `make test-vllm` installs it in an environment of its own")

EXAMPLES = Path(__file__).parents[2] / "examples" / "serving"


def test_a_pruned_server_holds_a_ninth_of_each_picture(tmp_path):
    def run(script, *arguments):
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
        ran = subprocess.run(
            command, env=os.environ | {"PATH": path}, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        return ran.stdout

    run("make_model.py", tmp_path / "llava")
    asked = ["--rounds", 1, "--prompts", 2, "--concurrency", 2, "--text-tokens", 8, "--answer-tokens", 2]
    table = run("bench.py", tmp_path / "llava", *asked, "--", "--enforce-eager", "--dtype", "bfloat16")
    rows = {name: values for name, *values in (line[2:-2].split(" | ") for line in table.splitlines() if "|" in line)}
    dense, pruned, _ = rows["prompt tokens"]
    assert float(dense) - float(pruned) == 576 - 64
    assert rows["KV blocks of 128 tokens"][:2] == ["5", "1"]
