"""`vitcop serve` starts a server that answers the client of examples/serving as transformers would."""

import json
import os
import runpy
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest

pytest.importorskip("vllm", reason="needs vLLM; `make test-vllm` installs it in an environment of its own")

from openai import OpenAI

from vitcop import builtin

ASK = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "serving" / "ask.py"))["ask"]
PROMPT = 334  # tokens, of which 324 stand for the picture; vLLM begins no chat with <s>


@pytest.fixture
def url(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from vitcop.cli import app; app()", "serve", str(builtin.MODEL_PATH)]
    flags = ["--enforce-eager", "--dtype", "float32", "--max-num-seqs", "4", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "log"
    with log.open("w") as written:
        server = subprocess.Popen([*command, "--", *flags], stdout=written, stderr=subprocess.STDOUT, env=os.environ)
    try:
        while True:
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except URLError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def test_the_model_in_the_box_answers_a_client(url):
    example = json.loads(Path(builtin.__file__).with_name("example.json").read_text())
    answer = ASK(OpenAI(base_url=url, api_key="none"), builtin.EXAMPLE_PICTURE, example["question"])
    assert answer.choices[0].message.content.strip() == example["answer"]
    assert answer.usage.prompt_tokens == PROMPT - 324 + 36
