"""What both training stages share: seeds, batches of scenes, the learning rate, checkpoints."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vitcop.scenes import Scene, scene


class Scenes(Dataset[Any]):
    """Training scenes from seed ``first`` on, each made into tensors by ``encode``."""

    def __init__(self, first: int, count: int, encode: Callable[[Scene], Any]) -> None:
        self.first, self.count, self.encode = first, count, encode

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.encode(scene(self.first + index))


def batches(
    first_seed: int,
    steps: int,
    batch: int,
    encode: Callable[[Scene], Any],
    collate: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Any]:
    """``steps`` batches of fresh scenes; no scene comes twice. A worker process draws them."""
    if steps == 0:
        return iter(())
    scenes = Scenes(first_seed, steps * batch, encode)
    return iter(DataLoader(scenes, batch, num_workers=1, collate_fn=collate, prefetch_factor=4))


def prepare(seed: int, threads: int) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # denormals in fading gradients slow a CPU down many times


def half_precision() -> torch.autocast:
    """Matrix products in bfloat16, which halves the time of a step on a CPU that has them."""
    return torch.autocast("cpu", torch.bfloat16)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up to ``peak``, then a cosine down to a hundredth of it after ``steps``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class Trainer:
    """AdamW over ``module`` with a schedule, gradient clipping, a log and resumable checkpoints."""

    def __init__(
        self,
        module: nn.Module,
        file: Path,
        steps: int,
        peak: float,
        warmup: int = 200,
        decay: float = 0.05,
    ) -> None:
        self.module, self.file, self.steps = module, file, steps
        self.peak, self.warmup = peak, warmup
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        groups = [
            {"params": [w for w in weights if w.ndim >= 2], "weight_decay": decay},
            {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
        ]
        self.weights = weights
        self.optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
        self.step, self.seconds = 0, 0.0
        self._sums: dict[str, float] = {}
        self._logged = 0
        if file.exists():
            state = torch.load(file, weights_only=True)
            module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]
        self._clock = time.monotonic()

    def update(self, loss: torch.Tensor, report: dict[str, float]) -> None:
        """One optimiser step on ``loss``; ``report`` is averaged into the next line of the log."""
        rate = learning_rate(self.step, self.steps, self.peak, self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        for name, value in {"loss": loss.item(), **report}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if self.step % 50 == 0:
            self._log()
        if self.step % 100 == 0 or self.step == self.steps:
            self.save()

    def _log(self) -> None:
        count = self.step - self._logged if self._logged else 50
        self._logged = self.step
        self._tick()
        values = "  ".join(f"{name} {total / count:.3f}" for name, total in self._sums.items())
        print(f"{self.step:6d}/{self.steps}  {self.seconds / 60:5.1f} min  {values}", flush=True)
        self._sums = {}

    def _tick(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._clock
        self._clock = now

    def save(self) -> None:
        self._tick()
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.file)
