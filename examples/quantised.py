"""A model whose weights torchao has quantised to 8 bits, pruned as any other: `pip install torchao`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import AutoModelForImageTextToText, AutoProcessor

import vitcop
from vitcop.builtin import EXAMPLE_PICTURE, MODEL_PATH, example_question
from vitcop.inputs.chat import Chat
from vitcop.inputs.pictures import read_picture


def main() -> None:
    """Quantise, prune, answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default=example_question())
    parser.add_argument("--picture", type=Path, default=EXAMPLE_PICTURE)
    parser.add_argument("--model", default=str(MODEL_PATH), help="default: the small model in the box")
    given = parser.parse_args()

    device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", "float32")
    model = AutoModelForImageTextToText.from_pretrained(given.model, dtype=dtype, trust_remote_code=False).to(device)
    processor = AutoProcessor.from_pretrained(given.model, trust_remote_code=False)
    chat = Chat.about((read_picture(given.picture),), given.question, model, processor)
    print("as loaded, dense:", chat.answer())
    quantize_(model, Int8WeightOnlyConfig())
    print("quantised, dense:", chat.answer())
    with vitcop.prune(model, vitcop.ViTCoP(retention=1 / 9)) as pruning:
        print("quantised, pruned:", chat.answer())
    print(pruning.report)


if __name__ == "__main__":
    main()
