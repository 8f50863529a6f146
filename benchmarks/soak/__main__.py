"""`python -m benchmarks.soak PART ... --requests N --out FOLDER`"""

from __future__ import annotations

import argparse
import json
import logging
from importlib import import_module
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from vitcop.builtin import MODEL_PATH

PARTS = {"threads": "threads", "prefix": "prefix", "eval": "evaluation", "app": "page"}


def main() -> None:
    """Soak the parts that are named, and exit with 1 if one of them is not sound."""
    parser = argparse.ArgumentParser(description="Thousands of requests, many of which fail or are given up.")
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("build/soak"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("vitcop").setLevel(logging.CRITICAL)  # the page logs each failure that was asked for
    model = AutoModelForImageTextToText.from_pretrained(MODEL_PATH, dtype="float32", trust_remote_code=False).eval()
    processor = AutoProcessor.from_pretrained(MODEL_PATH, trust_remote_code=False)
    given.out.mkdir(parents=True, exist_ok=True)
    sound = True
    for part in given.parts:
        outcome = import_module(f".{PARTS[part]}", __package__).soak(model, processor, given.requests)
        (given.out / f"{part}.json").write_text(json.dumps(outcome.to_dict(), indent=1) + "\n", encoding="utf-8")
        print(outcome, flush=True)
        sound &= outcome.sound
    raise SystemExit(not sound)


main()
