"""vLLM's OpenAI server with the model in the box gives clients that ask at once the answers of transformers."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from urllib.error import URLError

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

pytest.importorskip("vllm", reason="needs vLLM; `make test-vllm` installs it in an environment of its own")

import vitcop
from vitcop.builtin import MODEL_PATH
from vitcop.scenes import scene
from vitcop.vllm.served import engine_arguments

METHOD = vitcop.EarlyViTCoP(retention=1 / 9)
TOKENS = 324 // 9
QUESTIONS = [
    (drawn.picture, asked.text) for seed in range(3) for drawn in [scene(seed, "test")] for asked in drawn.questions[:3]
]
FLAGS = ["--enforce-eager", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "4"]


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as answer:
        return answer.read()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a server, and what it has written."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = engine_arguments(AutoConfig.from_pretrained(MODEL_PATH), METHOD)
    overrides = ["--hf-overrides", json.dumps(arguments["hf_overrides"])]
    place = ["--model", str(MODEL_PATH), "--served-model-name", "box", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *place, *FLAGS, *overrides]
    with log.open("w") as written:
        process = subprocess.Popen(
            command, stdout=written, stderr=subprocess.STDOUT, env=os.environ | {"VLLM_LOGGING_LEVEL": "INFO"}
        )
    while process.poll() is None:
        try:
            ask(f"http://127.0.0.1:{port}/health")
            break
        except URLError:
            time.sleep(0.5)
    assert process.poll() is None, log.read_text()[-3000:]
    yield f"http://127.0.0.1:{port}/v1/chat/completions", log
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def expected():
    """Answers in transformers, and tokens of the unpruned prompts."""
    model = AutoModelForImageTextToText.from_pretrained(MODEL_PATH, dtype="float32")
    processor, answers = AutoProcessor.from_pretrained(MODEL_PATH), []
    with vitcop.prune(model, METHOD):
        for picture, question in QUESTIONS:
            content = [{"type": "image"}, {"type": "text", "text": question}]
            chat = [{"role": "user", "content": content}]
            text = processor.apply_chat_template(chat, add_generation_prompt=True)
            inputs = processor(images=picture, text=text, return_tensors="pt")
            output = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            answers.append((processor.decode(output, skip_special_tokens=True).strip(), inputs["input_ids"].shape[1]))
    assert len({answer for answer, _ in answers}) > 3
    return answers


def as_client(url, picture, question):
    written = BytesIO()
    picture.save(written, "png")
    image = f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question}]
    body = {
        "model": "box",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 16,
        "add_special_tokens": True,  # the chat template of the model in the box writes none
    }
    answer = json.loads(ask(url, body))
    return answer["choices"][0]["message"]["content"].strip(), answer["usage"]["prompt_tokens"]


def test_clients_that_ask_at_once_get_the_answers_of_transformers(server, expected):
    url, log = server
    with ThreadPoolExecutor(2) as clients:
        answers = list(clients.map(lambda asked: as_client(url, *asked), QUESTIONS))
    assert answers == [(answer, prompt - 324 + TOKENS) for answer, prompt in expected]
    assert f"leaves {TOKENS} of the 324 placeholders of the first picture" in log.read_text()
