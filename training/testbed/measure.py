"""``python -m training.testbed.measure`` asks the testbed, unpruned, and writes what it can do into its card."""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from training.testbed.sources import drawn_shelf, stamp_shelf
from vitcop import photos, testbed
from vitcop.photos.compose import compose
from vitcop.photos.shelf import Shelf
from vitcop.quality import Suite
from vitcop.quality.reader import Reader
from vitcop.quality.suite import WORLDS, World
from vitcop.testbed.model import CARD

NPM = Path("build/testbed/npm")
SCORES = Path(__file__).parent / "scores.json"
QUESTIONS, BATCH = 240, 20
BEGIN, END = "<!-- scores: made by `python -m training.testbed.measure` -->\n", "<!-- end of scores -->\n"
SUITES = {
    "photos": "renderings",
    "stamps": "photographs",
    "held-out drawings": "drawings by a hand never shown in training",
    "held-out stamps": "photographs of other things of the same names, never shown in training",
}


@dataclass(frozen=True)
class Score:
    """Of one type of question in one suite; shares of ``asked``."""

    suite: str
    type: str
    asked: int
    right: float
    guessed: float
    blind: float


def world(shelf: Shelf, number: int) -> World:
    """Scenes of a shelf, on the backgrounds of the test."""

    def draw(seed: int, size: int):
        return compose(np.random.default_rng((number, seed)), shelf, size)

    return replace(WORLDS["photos"], draw=draw)


def measure(npm: Path) -> list[Score]:
    WORLDS["stamps"] = world(stamp_shelf(held_out=False), 2)
    WORLDS["held-out stamps"] = world(stamp_shelf(held_out=True), 3)
    WORLDS["held-out drawings"] = world(drawn_shelf(npm), 4)
    model, processor = testbed.build()
    model.to(torch.bfloat16)
    scores = []
    for name in SUITES:
        suite = Suite.of(name, QUESTIONS, types=photos.TYPES)
        reader = Reader(model, processor, suite.cases, BATCH)
        answers = {"right": reader.read(None).answers, "blind": reader.read_blind().answers, "guessed": suite.guesses()}
        for kind in suite.types:
            of_kind = [number for number, case in enumerate(suite.cases) if case.type == kind]
            shares = {
                way: sum(given[number] == suite.cases[number].answer for number in of_kind) / len(of_kind)
                for way, given in answers.items()
            }
            scores.append(Score(name, kind, len(of_kind), **shares))
            print(scores[-1], flush=True)
    return scores


def table(scores: list[Score]) -> str:
    by_type: dict[str, dict[str, Score]] = {}
    for score in scores:
        by_type.setdefault(score.type, {})[score.suite] = score
    lines = ["| question | " + " | ".join(SUITES.values()) + " |", "| --- |" + " ---: |" * len(SUITES)]
    for kind, of_suite in by_type.items():
        cells = [
            f"{100 * s.right:.0f} ({100 * s.guessed:.0f}, {100 * s.blind:.0f})"
            for s in (of_suite[name] for name in SUITES)
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_card(scores: list[Score]) -> None:
    before, rest = CARD.read_text(encoding="utf-8").split(BEGIN)
    CARD.write_text(before + BEGIN + table(scores) + END + rest.split(END)[1], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--npm", type=Path, default=NPM, help="folder of the emoji packages")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    scores = measure(options.npm)
    SCORES.write_text(json.dumps([asdict(score) for score in scores], indent=1) + "\n", encoding="utf-8")
    write_card(scores)


if __name__ == "__main__":
    main()
