"""``python -m training.testbed`` trains a piece of the testbed's adapter, and goes on from the last one."""

import argparse
from pathlib import Path

import torch

from training.testbed.sources import training_shelf
from training.testbed.trainer import LEVELS, Piece, Trainer
from vitcop import testbed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--npm", type=Path, default=Path("build/testbed/npm"), help="folder of the emoji packages")
    parser.add_argument("--file", type=Path, default=Path("build/testbed/adapter.pt"), help="checkpoint")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--pictures", type=int, default=4, help="in a step")
    parser.add_argument("--level", choices=LEVELS, default="whole")
    parser.add_argument("--easy", type=int, default=4, help="every so many steps one of easy pictures")
    parser.add_argument("--rates", type=float, nargs=2, default=(1.0, 1.0), help="first and last share of the rates")
    parser.add_argument("--unnamed", action="store_true", help="begin with a random projector")
    parser.add_argument("--adopt", type=Path, help="begin with an exported adapter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--export", type=Path, help="folder to write the adapter to")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    shelf = training_shelf(options.npm)
    named = not options.unnamed and options.adopt is None
    trainer = Trainer(shelf, options.file, options.seed, named, torch.device(options.device))
    if options.adopt is not None and not options.file.exists():
        trainer.adopt(options.adopt)
    first, last = options.rates
    trainer.train(
        Piece(options.steps, options.pictures, level=options.level, easy=options.easy, first=first, last=last)
    )
    if options.export is not None:
        testbed.save_adapter(trainer.model, options.export)


if __name__ == "__main__":
    main()
