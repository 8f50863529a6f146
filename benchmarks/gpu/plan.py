"""The parts of the run in order of worth, and how long each may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MINUTES = 8.0
SHAPES = ("llava-1.5-7b", "llava-next-13b", "qwen2.5-vl-7b")


@dataclass(frozen=True)
class Part:
    """Something to run in a process of its own, so that what breaks it, a poisoned GPU included, breaks no other.

    Attributes:
        name: in the record.
        module: whose `run` it is.
        estimate: seconds that it should take on an H100, the ten for imports included; nobody has measured it.
        most: seconds after which it is stopped.
        options: of `run`.
        is_needed: whether the others cannot run if it fails.
    """

    name: str
    module: str
    estimate: float
    most: float
    options: Mapping[str, str] = field(default_factory=dict)
    is_needed: bool = False


PARTS = (
    Part("environment", "benchmarks.gpu.environment", 20, 60, is_needed=True),
    # Some 220 cases of about 15 forwards, bound by launches: 0.3 s each.
    Part("parity", "benchmarks.gpu.parity", 80, 120),
    Part("waits", "benchmarks.gpu.waits", 20, 40),
    Part("launches", "benchmarks.gpu.launches", 25, 45),
    # A pass is a prompt and 8 tokens; the dense model takes one a round, each of three methods two, to be timed from
    # inside as well. 0.3 s a pass at batch 1, where 8 forwards of 32 layers wait for their launches, and 0.4 s at
    # batch 8: 4 blocks of 5 rounds of 7, and 10 s to make 14 GB of weights.
    Part("llava-1.5-7b", "benchmarks.gpu.speed", 75, 130, {"shape": SHAPES[0]}),
    # 2,944 tokens of 26 GFLOP each: 0.15 s at batch 1, 1.1 s at batch 8 at 550 TFLOP/s, a third and a ninth of it
    # pruned, and 0.3 s to decode: 4 blocks of 3 rounds of 7, and 15 s to make 27 GB of weights.
    Part("llava-next-13b", "benchmarks.gpu.speed", 105, 150, {"shape": SHAPES[1]}),
    # Its encoder attends window by window: 0.1 s more a pass. 2 blocks of 5 rounds of 7, at batch 1.
    Part("qwen2.5-vl-7b", "benchmarks.gpu.speed", 60, 90, {"shape": SHAPES[2]}),
)
"""Estimates add up to less than `MINUTES`; a part that takes longer takes it from the last ones."""
