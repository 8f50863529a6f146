"""Whether a stage waits for the GPU, told by CUDA; tests/engine/test_work.py tells it by the operators, on a CPU."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import vitcop

from .stages import each_stage
from .subjects import METHODS, Subject, tiny_family
from .task import Task

FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "gemma3")
READ = {"sparsevlm", "deft", "hawk", "dart", "cdpruner", "vispruner", "mmtok", "scope", "census"}
"""These read on the host in a loop or between steps, and may wait."""


def run(task: Task) -> None:
    """Run every method on every family, and fail if one waits that need not."""
    device = task.device
    families = FAMILIES[:1] if task.rehearsal else FAMILIES
    waits: dict[str, dict[str, str]] = {}
    task.found |= {"waits": waits, "may_wait": sorted(READ)}
    for subject in task.in_time([tiny_family(name) for name in families]):
        waits[subject.name] = _waits(subject, device)
    bad = [(name, method) for name, methods in waits.items() for method in methods if method not in READ]
    task.found["lines"].append(
        f"{len(METHODS)} methods, {len(waits)} families: {len(bad)} waits where there may be none; where there may: "
        + (", ".join(sorted({method for methods in waits.values() for method in methods} & READ)) or "none")
    )
    if bad:
        raise AssertionError(f"stages wait, or raise: {bad}")


def _waits(subject: Subject, device: torch.device) -> dict[str, str]:
    """The methods of which a stage waits for the device, and where."""
    model, inputs = subject.on(device, torch.bfloat16)
    found = {}
    for name, method in METHODS.items():
        try:
            with torch.no_grad(), vitcop.prune(model, method), each_stage(partial(_without_waiting, device)):
                model(**inputs)
        except Exception:
            found[name] = traceback.format_exc()
    return found


def _without_waiting(device: torch.device, work: Callable[[], Any]) -> Any:
    """Raises where the host waits for a GPU."""
    if device.type != "cuda":
        return work()
    torch.cuda.set_sync_debug_mode("error")
    try:
        return work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
