"""The model in the box: a small vision-language model and an example for it, which need no download."""

from __future__ import annotations

import json
from pathlib import Path

MODEL_PATH = Path(__file__).parent / "model"
EXAMPLE_PICTURE = Path(__file__).parent / "example.png"


def example_question() -> str:
    """A question about `EXAMPLE_PICTURE` that the model was trained to answer."""
    return json.loads(Path(__file__).with_name("example.json").read_text(encoding="utf-8"))["question"]
