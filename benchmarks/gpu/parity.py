"""Whether pruned models answer on the GPU what they must: as a dense one whose mask hides what was dropped.

Rounding has no fixed size, so it is measured: the pruned model and the masked dense one, both in the dtype in question,
are compared with the masked dense one in the next wider dtype. Both do the same arithmetic in another order, so both
are off by about as much; the pruned model may be off by twice as much. In float32, where that is some 1e-6, one token
too many or too few is thousands of times that. Where a method merges, which no mask can do, the reference is the pruned
model in the wider dtype with the same selections.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from oracle import masked_dense_logits, pruned_logits
from tiny import MERGING
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

import vitcop
from vitcop.models import Size

from .subjects import METHODS, Subject, thin_shape, tiny_family
from .task import Task

MOST = 2.0
WIDER = {torch.bfloat16: torch.float32, torch.float32: torch.float64}
FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_5_vl", "gemma3")
SHAPES = ("llava-1.5-7b", "llava-next-13b", "qwen2.5-vl-7b")


@dataclass(frozen=True)
class Backend:
    """How attention is computed, and in what.

    Attributes:
        kernel: the only one that sdpa may use.
    """

    name: str
    dtype: torch.dtype
    attention: str = "sdpa"
    kernel: SDPBackend | None = None

    @property
    def takes_masks(self) -> bool:
        """Whether any mask will do."""
        return self.kernel is None and self.attention == "sdpa"

    def chosen(self) -> AbstractContextManager[object]:
        return nullcontext() if self.kernel is None else sdpa_kernel(self.kernel)


FLOAT32 = Backend("float32, sdpa", torch.float32)
BFLOAT16 = Backend("bfloat16, sdpa", torch.bfloat16)
FLASH_KERNEL = Backend("bfloat16, sdpa's flash kernel", torch.bfloat16, kernel=SDPBackend.FLASH_ATTENTION)
FLASH_2 = Backend("bfloat16, flash_attention_2", torch.bfloat16, "flash_attention_2")


@dataclass(frozen=True)
class Case:
    """One comparison."""

    backend: Backend
    subject: Subject
    method: str

    def __str__(self) -> str:
        return f"{self.backend.name}, {self.subject}, {self.method}"


@dataclass(frozen=True, eq=False)
class Recorded(vitcop.Pruner):
    """A method that keeps what it selects, or selects again what another run of it kept."""

    method: vitcop.Pruner
    selections: list[vitcop.Selection]
    replays: bool = False

    @property
    def encoder_signals(self) -> tuple[vitcop.EncoderSignal, ...]:
        return self.method.encoder_signals

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        return self.method.budgets(num_tokens, num_layers, first_layer)

    def select(self, tokens: vitcop.VisualTokens, budget: tuple[int, ...]) -> vitcop.Selection:
        if not self.replays:
            self.selections.append(self.method.select(tokens, budget))
        return self.selections[tokens.stage]


def run(task: Task) -> None:
    """Compare all, and fail if some are off by more than rounding."""
    torch.backends.cudnn.allow_tf32 = False  # or the encoder's convolution alone would be off by 1e-4
    device, cases = task.device, list(_cases(task.rehearsal))
    outcomes = task.found["cases"] = []
    try:
        for case in task.in_time(cases):
            outcome: dict[str, Any] = {"case": str(case), "backend": case.backend.name}
            try:
                outcome |= _compare(case, device)
            except Exception:
                outcome["error"] = traceback.format_exc()
            outcomes.append(outcome)
    finally:
        task.found["lines"] += list(_summary(outcomes))
    bad = [outcome["case"] for outcome in outcomes if not outcome.get("ok")]
    if bad:
        raise AssertionError(f"{len(bad)} of {len(outcomes)} are off by more than rounding, or raise: {'; '.join(bad)}")


def _cases(rehearsal: bool) -> Iterable[Case]:
    if rehearsal:
        tiny_ones, thin_ones = [tiny_family("llava")], [thin_shape(SHAPES[2], Size(56, 112))]
        methods: Iterable[str] = ("vitcop", "fastv")
    else:
        tiny_ones, thin_ones = [tiny_family(name) for name in FAMILIES], [thin_shape(name) for name in SHAPES]
        methods = METHODS
    pairs = [(FLOAT32, tiny_ones), (FLASH_KERNEL, thin_ones), (BFLOAT16, tiny_ones)]
    if is_flash_attn_2_available():
        pairs.append((FLASH_2, tiny_ones + thin_ones))
    for backend, subjects in pairs:
        for subject in subjects:
            if backend.takes_masks or not subject.has_masks:
                yield from (Case(backend, subject, method) for method in methods)


def _compare(case: Case, device: torch.device) -> dict[str, Any]:
    backend, method = case.backend, METHODS[case.method]
    narrow = _prepared(case.subject, device, backend.dtype, backend.dtype, backend.attention)
    wide = _prepared(case.subject, device, backend.dtype, WIDER[backend.dtype])
    recorded = Recorded(method, [], positions=method.positions)
    with backend.chosen():
        report, pruned = pruned_logits(*narrow, recorded)
    masked = _prepared(case.subject, device, backend.dtype, backend.dtype)
    found, dense, wide_dense = map(
        _joined,
        (
            pruned,
            masked_dense_logits(*masked, method, report),
            masked_dense_logits(*wide, method, report),
        ),
    )
    expected = wide_dense
    if case.method in MERGING:
        expected = _joined(pruned_logits(*wide, replace(recorded, replays=True))[1])
    error, rounding = _distance(found, expected), _distance(dense, wide_dense)
    return {
        "error": error,
        "rounding": rounding,
        "largest": ((found - expected).abs().max() / expected.abs().max()).item(),
        "kept_alike": _kept_alike(report, *wide, method),
        "ok": error <= MOST * rounding,
    }


@cache
def _prepared(
    subject: Subject, device: torch.device, rounded: torch.dtype, dtype: torch.dtype, attention: str = "sdpa"
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Model and inputs on the device in `dtype`, with values that `rounded` has."""
    model, inputs = subject.on(device, rounded, dtype)
    if attention != "sdpa":
        model.set_attn_implementation(attention)
    return model, inputs


def _joined(logits: list[Tensor]) -> Tensor:
    """Logits of the survivors of the prompts and of the decoded tokens: (tokens, vocabulary) float64."""
    return torch.cat([part.flatten(0, -2) for part in logits]).double()


def _distance(found: Tensor, expected: Tensor) -> float:
    """Of all values together, relative to them."""
    return ((found - expected).norm() / expected.norm()).item()


def _kept_alike(report: vitcop.Report, model: PreTrainedModel, inputs: dict[str, Tensor], method: Any) -> float:
    """Share of the tokens kept behind the last stage that the model in the wider dtype keeps as well."""
    with torch.no_grad(), vitcop.prune(model, method) as pruning:
        model(**inputs, logits_to_keep=1)
    assert pruning.report is not None
    pairs = [
        (set(report.stages[-1].kept(i)), set(pruning.report.stages[-1].kept(i))) for i in range(len(report.images))
    ]
    return sum(len(own & other) for own, other in pairs) / sum(len(own) for own, _ in pairs)


def _summary(outcomes: list[dict[str, Any]]) -> Iterable[str]:
    for backend in dict.fromkeys(outcome["backend"] for outcome in outcomes):
        all_of_it = [outcome for outcome in outcomes if outcome["backend"] == backend]
        compared = [outcome for outcome in all_of_it if "ok" in outcome]
        good = sum(outcome["ok"] for outcome in compared)
        line = f"{backend}: {good} of {len(all_of_it)} within {MOST:.0f} times the rounding of the masked dense model"
        if compared:
            worst = max(compared, key=lambda outcome: outcome["error"] / outcome["rounding"])
            least = min(compared, key=lambda outcome: outcome["kept_alike"])
            line += (
                f"; at most {worst['error'] / worst['rounding']:.2f} times ({worst['case']}); largest deviation "
                f"{max(outcome['largest'] for outcome in compared):.1e}; kept alike "
                f"{sum(outcome['kept_alike'] for outcome in compared) / len(compared):.1%} on average, at least "
                f"{least['kept_alike']:.1%} ({least['case']})"
            )
        yield line
