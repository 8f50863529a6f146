"""A method of one's own, in one's own file: it keeps the tokens that are least like the picture as a whole."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForImageTextToText, AutoProcessor

import vitcop
from vitcop.builtin import EXAMPLE_PICTURE, MODEL_PATH, example_question
from vitcop.inputs.chat import Chat
from vitcop.inputs.pictures import read_picture


@dataclass(frozen=True)
class Unusual(vitcop.ScorePruner, vitcop.LayerPruner):
    """Before one decoder layer, keeps the tokens whose hidden states differ most from the mean of their image."""

    def score(self, tokens: vitcop.VisualTokens) -> Tensor:
        """What is kept, most of all."""
        images = tokens.hidden_states.float().split(tokens.lengths)
        return torch.cat([-cosine_similarity(image, image.mean(0, keepdim=True)) for image in images])


def main() -> None:
    """Answer by it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default=example_question())
    parser.add_argument("--picture", type=Path, default=EXAMPLE_PICTURE)
    parser.add_argument("--model", default=str(MODEL_PATH), help="default: the small model in the box")
    given = parser.parse_args()

    device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", "float32")
    model = AutoModelForImageTextToText.from_pretrained(given.model, dtype=dtype, trust_remote_code=False).to(device)
    processor = AutoProcessor.from_pretrained(given.model, trust_remote_code=False)
    with vitcop.prune(model, Unusual(retention=1 / 3)) as pruning:
        print(Chat.about((read_picture(given.picture),), given.question, model, processor).answer())
    print(pruning.report)


if __name__ == "__main__":
    main()
