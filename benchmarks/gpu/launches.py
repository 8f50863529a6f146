"""How many kernels the selection launches, which is what a prompt by itself pays for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import vitcop

from .stages import each_stage
from .subjects import METHODS, Subject, thin_shape, tiny_family
from .task import Task

COUNTED = ("vitcop", "visionzip", "random")
SHAPES = ("llava-1.5-7b", "llava-next-13b")


def run(task: Task) -> None:
    """Count them stage by stage, and of a whole prefill beside the dense one's."""
    subjects = [tiny_family("llava")] if task.rehearsal else [thin_shape(name) for name in SHAPES]
    counts = task.found["counts"] = {}
    for subject in task.in_time(subjects):
        counts[subject.name] = found = _counts(subject, task.device)
        for method, count in found.items():
            stages = ", ".join(f"{stage['launches']} before layer {stage['layer']}" for stage in count["stages"])
            task.found["lines"].append(f"{subject}, {method}: {count['whole']['launches']} launches; {stages or '-'}")


def _counts(subject: Subject, device: torch.device) -> dict[str, dict[str, Any]]:
    model, inputs = subject.on(device, torch.bfloat16)
    with torch.no_grad():
        found = {"dense": _of(lambda: model(**inputs, logits_to_keep=1), device)}
        for name in COUNTED:
            with vitcop.prune(model, METHODS[name]) as pruning:
                found[name] = _of(lambda: model(**inputs, logits_to_keep=1), device)
            assert pruning.report is not None
            for stage, count in zip(pruning.report.stages, found[name]["stages"], strict=True):
                count["layer"] = stage.layer
    return found


def _of(forward: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Of the forward, and of its stages by themselves, in a second one: profilers cannot be nested."""
    forward()  # what is launched once only, to set things up, is not counted
    stages: list[dict[str, int]] = []

    def watched(work: Callable[[], Any]) -> Any:
        result, count = counted(work, device)
        stages.append(count)
        return result

    _, whole = counted(forward, device)
    with each_stage(watched):
        forward()
    return {"whole": whole, "stages": stages}


def counted(work: Callable[[], Any], device: torch.device) -> tuple[Any, dict[str, int]]:
    """The result, and the calls that launched a kernel, copied or set memory, and the operators behind them."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as profiler:
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
    names = [event.name for event in profiler.events()]
    return result, {
        # Of the runtime and of the driver: cudaLaunchKernel, cudaLaunchKernelExC, cuLaunchKernel, cuLaunchKernelEx.
        "launches": sum("LaunchKernel" in name for name in names),
        "copies": sum("Memcpy" in name and name.startswith("cu") for name in names),
        "fills": sum("Memset" in name and name.startswith("cu") for name in names),
        "operators": sum(name.startswith("aten::") for name in names),
    }
