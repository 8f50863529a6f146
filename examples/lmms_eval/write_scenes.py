"""Writes questions about generated scenes, of the test split of the model in the box, as the task reads them."""

import argparse
from itertools import count, islice
from pathlib import Path

from datasets import Dataset, Features, Image, Value

from vitcop.scenes import scene

FEATURES = Features({"picture": Image()} | {name: Value("string") for name in ("question", "answer", "type")})


def questions():
    """All of them, scene after scene."""
    for seed in count():
        drawn = scene(seed, "test")
        for question in drawn.questions:
            yield {
                "picture": drawn.picture,
                "question": question.text,
                "answer": question.answer,
                "type": question.type,
            }


def main() -> None:
    """Write as many questions as the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, nargs="?", default=Path("build/scenes.parquet"))
    parser.add_argument("--questions", type=int, default=200)
    options = parser.parse_args()
    options.path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(islice(questions(), options.questions))
    Dataset.from_list(rows, features=FEATURES).to_parquet(options.path)


if __name__ == "__main__":
    main()
