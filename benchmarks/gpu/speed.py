"""`vitcop bench` of one shape, whose JSON is written block by block, ready for benchmarks/runs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from rich.console import Console

from vitcop.bench import SHAPES, Benchmark, Block, Course, Row, Subject, run_benchmark
from vitcop.bench.random_weights import fill_shape, random_model
from vitcop.bench.table import tables
from vitcop.models import Size

from .records import write_json
from .subjects import thin
from .task import Task

METHODS = ("vitcop", "visionzip", "random")
RETENTIONS = (1 / 3, 1 / 9)
BATCHES = {"llava-1.5-7b": (1, 8), "llava-next-13b": (1, 8), "qwen2.5-vl-7b": (1,)}
ROUNDS = {"llava-1.5-7b": 5, "llava-next-13b": 3, "qwen2.5-vl-7b": 5}
DECODE_TOKENS = 8


def run(task: Task, shape: str) -> None:
    """Measure it, in fewer rounds if there is less time than they should take."""
    device, start = task.device, time.monotonic()
    rounds = ROUNDS[shape] if task.seconds >= task.estimate else 2
    if task.rehearsal:
        subject = Subject(f"{shape}, thin", "random weights", *fill_shape(thin(SHAPES[shape]), device, torch.float32))
        course = Course(METHODS, RETENTIONS[:1], (1,), repeats=1, decode_tokens=1, text_tokens=8, size=Size(112, 112))
    else:
        subject = Subject(shape, "random weights", *random_model(shape, device, torch.bfloat16))
        course = Course(METHODS, RETENTIONS, BATCHES[shape], rounds, DECODE_TOKENS)
    file = task.folder / f"{shape}-{device.type}.json"

    def told(what: str, total: int) -> None:
        print(f"{time.monotonic() - start:6.1f} s  {what}")

    def kept(so_far: Benchmark) -> None:
        write_json(file, so_far.to_dict())
        task.found["lines"] += list(_lines(so_far.blocks[-1]))
        task.save()

    benchmark = run_benchmark(subject, course, told, kept)
    Console(width=120).print(*tables(benchmark), sep="\n\n")


def _lines(block: Block) -> Iterator[str]:
    """What is most asked for."""
    dense = block.rows[0]
    for row in block.rows[1:]:
        yield (
            f"batch {block.batch}, {row.method} at {row.average_retention:.1%}: prefill {_ms(dense, row, 'prefill')}, "
            f"{block.speedup(row, 'prefill').median:.2f}x of {row.predicted:.2f}x predicted, selection "
            f"{row.seconds('selection').median * 1e3:.1f} ms, first token {_ms(dense, row, 'first_token')}, decode "
            f"{_ms(dense, row, 'decode')}, peak {row.peak_bytes / dense.peak_bytes:.0%}"
        )
    yield from (f"batch {block.batch}, {refusal.method}: {refusal.reason}" for refusal in block.refusals)


def _ms(dense: Row, row: Row, phase: str) -> str:
    return " to ".join(f"{which.seconds(phase).median * 1e3:.1f}" for which in (dense, row)) + " ms"
