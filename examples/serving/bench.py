"""Measures a server dense and pruned, by vLLM's own `bench serve` with random pictures.

`python bench.py MODEL --method visionzip --retention 1/9 -- FLAGS` starts both servers with the same flags, one after
the other, as many times as there are rounds, and prints the medians, and of the ratios the lowest and the highest too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from vllm.benchmarks.serve import add_cli_args, main_async
from vllm.utils.argparse_utils import FlexibleArgumentParser

PORT = 18123
URL = f"http://127.0.0.1:{PORT}"
SECONDS_TO_START = 1800


def commands(asked: argparse.Namespace) -> dict[str, list[str]]:
    """What starts each server: the dense one as the pruned one, but for what vitcop says."""
    flags = [*asked.flags, "--host", "127.0.0.1", "--port", str(PORT)]
    options = ["--method", asked.method, "--retention", asked.retention, "--positions", asked.positions]
    printed = subprocess.check_output(["vitcop", "serve", asked.model, *options, "--print", "--", *flags], text=True)
    pruned = shlex.split(printed)
    return {"dense": pruned[: pruned.index("--hf-overrides")] + flags, "pruned": pruned}


@contextmanager
def running(command: list[str], log: Path) -> Iterator[None]:
    """A server, from when it answers."""
    with log.open("w") as lines:
        server = subprocess.Popen(command, stdout=lines, stderr=subprocess.STDOUT)
    try:
        begin = time.monotonic()
        while not answers():
            if server.poll() is not None or time.monotonic() - begin > SECONDS_TO_START:
                sys.exit(f"The server does not start; {log} says why.")
            time.sleep(1)
        yield
    finally:
        server.terminate()
        server.wait()


def answers() -> bool:
    """Whether there is a server that does."""
    try:
        return urlopen(f"{URL}/health").status == 200
    except URLError:
        return False


def block_size() -> int:
    """Tokens in a block of the server's KV cache."""
    found = re.search(
        r'^vllm:cache_config_info{.*\bblock_size="(\d+)"', urlopen(f"{URL}/metrics").read().decode(), re.M
    )
    assert found is not None
    return int(found[1])


def measured(asked: argparse.Namespace, seed: int) -> dict[str, float]:
    """One run of vLLM's bench."""
    options = {
        "backend": "openai-chat",
        "endpoint": "/v1/chat/completions",
        "base-url": URL,
        "model": asked.model,
        "dataset-name": "random-mm",
        "random-mm-base-items-per-request": 1,
        "random-mm-limit-mm-per-prompt": json.dumps({"image": 1, "video": 0}),
        "random-mm-bucket-config": f"{{({asked.side}, {asked.side}, 1): 1.0}}",
        "random-input-len": asked.text_tokens,
        "random-output-len": asked.answer_tokens,
        "num-prompts": asked.prompts,
        "max-concurrency": asked.concurrency,
        "num-warmups": asked.concurrency,
        "seed": seed,
    }
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    result = asyncio.run(main_async(parser.parse_args([*words, "--ignore-eos", "--save-detailed"])))
    if result["completed"] < asked.prompts:
        sys.exit(f"{asked.prompts - result['completed']} requests failed.")
    size = block_size()
    lengths = zip(result["input_lens"], result["output_lens"], strict=True)
    return {
        "prompt tokens": statistics.mean(result["input_lens"]),  # as the server counts them
        f"KV blocks of {size} tokens": statistics.mean(math.ceil((sum(length) - 1) / size) for length in lengths),
        "requests per second": result["request_throughput"],
        "median TTFT in ms": result["median_ttft_ms"],
    }


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--method", default="visionzip")
    parser.add_argument("--retention", default="1/9")
    parser.add_argument("--positions", default="default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--side", type=int, default=336, help="of the pictures, in pixels")
    parser.add_argument("--text-tokens", type=int, default=64)
    parser.add_argument("--answer-tokens", type=int, default=16)
    parser.add_argument("--logs", type=Path, default=Path("build/serving"))
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    asked = parser.parse_args(sys.argv[1:end], argparse.Namespace(flags=sys.argv[end + 1 :]))
    asked.logs.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, float]]] = {"dense": [], "pruned": []}
    for number in range(asked.rounds):
        for name, command in commands(asked).items():
            with running(command, asked.logs / f"{name}-{number}.log"):
                found[name].append(measured(asked, seed=number))
    print("| | dense | pruned | pruned / dense (lowest to highest) |\n| --- | ---: | ---: | --- |")
    for row in found["dense"][0]:
        dense, pruned = ([figures[row] for figures in found[name]] for name in ("dense", "pruned"))
        ratios = [after / before for before, after in zip(dense, pruned, strict=True)]
        middle, spread = statistics.median(ratios), f"{min(ratios):.3g} to {max(ratios):.3g}"
        print(f"| {row} | {statistics.median(dense):.4g} | {statistics.median(pruned):.4g} | {middle:.3g} ({spread}) |")


if __name__ == "__main__":
    main()
