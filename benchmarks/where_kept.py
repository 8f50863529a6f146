"""Where in a picture methods keep tokens, on things or beside them, and whether the question changes it.

`python -m benchmarks.where_kept testbed fastv,pyramiddrop,knorm,random` prints a table; docs/testbed.md quotes it.
"""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict
from statistics import fmean
from typing import Any

import torch

import vitcop
from vitcop import builtin
from vitcop.cli.common import TESTBED, load
from vitcop.inputs.prompts import prompt_about
from vitcop.quality import Case, Suite

SCENES, QUESTIONS = 8, 2


def look(model: Any, processor: Any, method: vitcop.Pruner, scenes: list[list[Case]]) -> tuple[float, ...]:
    """Of the tokens that the first stage leaves: how many, their mean row (0 at the top, 1 at the bottom), how much
    more often than by chance they show a thing, and how many of those of two questions are the same, of all of both.
    """
    counts, rows, things, same = [], [], [], []
    pixels = model.config.vision_config.patch_size
    for cases in scenes:
        chosen = []
        for case in cases:
            prompt = prompt_about(case.question, processor, "image")
            inputs = processor(text=prompt, images=case.picture(), return_tensors="pt")
            with torch.inference_mode(), vitcop.prune(model, method) as pruning:
                model(**inputs)
            stage = pruning.report.stages[0]
            side, kept = round(stage.before[0] ** 0.5), stage.kept(0)
            shown = torch.as_tensor(case.owner(side, pixels)).flatten() > 0
            counts.append(len(kept))
            rows.append(fmean(token // side for token in kept) / (side - 1))
            things.append(float(shown[kept].float().mean() / shown.float().mean()))
            chosen.append(set(kept))
        same += [len(one & other) / len(one | other) for one, other in itertools.combinations(chosen, 2)]
    return fmean(counts), fmean(rows), fmean(things), fmean(same)


def main() -> None:
    """Print the table of a model, "testbed" or the one in the box."""
    name, methods = sys.argv[1], sys.argv[2].split(",")
    if name not in (TESTBED, "builtin"):
        sys.exit(f"{name}: the models are {TESTBED} and builtin.")
    model, processor = load(TESTBED if name == TESTBED else str(builtin.MODEL_PATH), "image", "cpu", "float32")
    asked = defaultdict(list)
    for case in Suite.of("photos" if name == TESTBED else "builtin", 10 * SCENES, seed=1).cases:
        asked[case.scene].append(case)
    scenes = [cases[:QUESTIONS] for cases in asked.values() if len(cases) >= QUESTIONS][:SCENES]
    print("| | tokens left | mean row | things, times chance | same for two questions |\n" + "| ---: " * 5 + "|")
    for method in methods:
        found = look(model, processor, vitcop.Pruner.named(method)(retention=1 / 9), scenes)
        print(f"| {method} | {found[0]:.0f} | " + " | ".join(f"{value:.2f}" for value in found[1:]) + " |", flush=True)


if __name__ == "__main__":
    main()
