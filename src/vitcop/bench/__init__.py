"""Measures what pruning gains: dense and pruned in turn, part by part, beside what the hardware would allow."""

from __future__ import annotations

from .results import DOWNSAMPLE, Benchmark, Block, Refusal, Row, Setting, Spread
from .runner import Course, Subject, run_benchmark
from .shapes import SHAPES

__all__ = [
    "DOWNSAMPLE",
    "SHAPES",
    "Benchmark",
    "Block",
    "Course",
    "Refusal",
    "Row",
    "Setting",
    "Spread",
    "Subject",
    "run_benchmark",
]
