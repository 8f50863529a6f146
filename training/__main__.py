"""``python -m training`` trains, measures and ships the model, and goes on after a stop."""

import argparse
from pathlib import Path

import torch

from training import guard
from training.card import write_card
from training.evaluate import evaluate
from training.export import export, export_example
from training.model import SIDE
from training.pretrain_vision import BATCH as VISION_BATCH
from training.pretrain_vision import pretrain
from training.train import BATCH, DEPTHS, checkpoint, load, train
from training.vocabulary import make_tokenizer
from vitcop.scenes.questions import PER_SCENE

VISION_STEPS = 2000
DECODER_STEPS = (2400, 700)  # at each of DEPTHS
QUESTIONS = 2000  # of the test


def recipe(folder: Path) -> list[str]:
    """What the checkpoints say was done, a line for each stage."""
    lines = []
    files = [folder / "vision.pt", *(checkpoint(folder, depth) for depth in DEPTHS)]
    for file in files:
        state = torch.load(file, weights_only=True)
        steps, minutes = state["step"], state["seconds"] / 60
        if file == files[0]:
            what = "the encoder, to tell from [CLS] and from the patches what a scene holds"
            seen = f"{steps * VISION_BATCH:,} pictures"
        else:
            what = f"the projector and a decoder of {file.stem.removeprefix('decoder-')} layers"
            seen = f"{steps * BATCH:,} pictures, up to {sum(PER_SCENE.values())} questions behind each"
        lines.append(f"{what}: {steps:,} steps, {seen}, {minutes:.0f} minutes")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/training"), help="checkpoints")
    parser.add_argument("--target", type=Path, default=Path("src/vitcop/builtin"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--earlier", type=Path, help="an earlier model, whose encoder to begin from")
    options = parser.parse_args()

    pretrain(options.folder, VISION_STEPS, options.threads, options.earlier)
    train(options.folder, DECODER_STEPS, options.threads)
    model = load(options.folder, DEPTHS[-1])
    scores = evaluate(model, QUESTIONS)
    parameters = sum(weight.numel() for weight in model.parameters())
    card = write_card(scores, recipe(options.folder), parameters, len(make_tokenizer()), SIDE * SIDE)
    export_example(model, options.target)
    export(model, card, options.target)
    guard.store(scores.guarded)
    print(card)


if __name__ == "__main__":
    main()
