"""How far others could prune before it hurt: what they measured, by model and task, and a warning below it.

Nothing here was measured by this project, and no number is from memory: each was read where its source says.
docs/floors.md shows them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .figures import percent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("vitcop")

Kind = Literal["reading", "grounding", "general"]
TASKS: dict[str, Kind] = {
    "TextVQA": "reading",
    "OCRBench": "reading",
    "ChartQA": "reading",
    "DocVQA": "reading",
    "InfoVQA": "reading",
    "RefCOCO/+/g": "grounding",
    "GQA": "general",
    "POPE": "general",
    "MME": "general",
}
"""What a task asks for. RefCOCO/+/g is the mean over the splits of the three."""

KEPT = 0.9
"""Share of the dense score that makes a floor."""

NEAREST = {
    "llava_next": "llava",
    "llava_next_video": "llava_next",
    "qwen2_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen2_5_vl",
    "qwen3_vl_moe": "qwen3_vl",
}
"""The model type that stands in for one of which no task of a kind was measured."""

SMALLEST = 200_000_000
"""Parameters below which nothing is said of a model: what others measured has 7 billion and more, and what is as small
as this is a test, or the model in the box."""


@dataclass(frozen=True)
class Checkpoint:
    """A model that was pruned.

    Attributes:
        name: as sources call it.
        model_type: its `config.model_type`.
    """

    name: str
    model_type: str


@dataclass(frozen=True)
class Source:
    """Where numbers stand.

    Attributes:
        paper: by the name of its method or benchmark.
        arxiv: its number.
        seen: what was read: the paper, its abstract alone, or what somebody else copied from its tables.
    """

    paper: str
    arxiv: str
    seen: Literal["paper", "abstract", "copy"] = "paper"


@dataclass(frozen=True)
class Measurement:
    """What a pruned model still scored.

    Attributes:
        checkpoint: that was pruned.
        task: one of `TASKS`.
        method: that pruned. Of each table it is the best at this retention of those that train nothing, or one that
            shows how far apart they are.
        counted: how much was kept, as the source counts it.
        retention: the same as `retention` means it, the share of the visual tokens alive, averaged over the decoder
            layers; None where the source leaves that open.
        dense, pruned: scores on the scale of the source; where it gives shares of the dense score, that is 100.
        source: where they stand, in `table` of it, if that has a number.
    """

    checkpoint: Checkpoint
    task: str
    method: str
    counted: str
    retention: float | None
    dense: float
    pruned: float
    source: Source
    table: str = ""

    @property
    def share(self) -> float:
        """Of the dense score."""
        return self.pruned / self.dense

    @property
    def holds(self) -> bool:
        """Whether that is enough for a floor."""
        return self.share >= KEPT


_LLAVA = Checkpoint("LLaVA-1.5-7B", "llava")
_NEXT = Checkpoint("LLaVA-NeXT-7B", "llava_next")
_ONEVISION = Checkpoint("LLaVA-OneVision-7B", "llava_onevision")
_QWEN2 = Checkpoint("Qwen2-VL-7B", "qwen2_vl")
_QWEN25 = Checkpoint("Qwen2.5-VL-7B", "qwen2_5_vl")
_QWEN3 = Checkpoint("Qwen3-VL-8B", "qwen3_vl")
_INTERNVL = Checkpoint("InternVL2.5-8B", "internvl")

_D2PRUNER = Source("D2Pruner", "2512.19443", "abstract")
_DART = Source("DART", "2502.11494")
_DIPRUNE = Source("DIPrune", "2610.08341")
_EADP = Source("EADP", "2607.02484")
_EFFIVLM = Source("EffiVLM-Bench", "2506.00479", "copy")
_IVC_PRUNE = Source("IVC-Prune", "2602.03060", "copy")
_MMTOK = Source("MMTok", "2508.18264")
_NUWA = Source("Nüwa", "2602.02951", "copy")
_PYRAMIDDROP = Source("PyramidDrop", "2410.17247", "copy")
_VFLOWOPT = Source("VFlowOpt", "2508.05211")

# DART keeps all tokens in the first two of 28 layers; PyramidDrop halves them three times, eight layers apart.
_THIRD, _TWO_NINTHS, _NINTH = ((2 + 26 * share) / 28 for share in (1 / 3, 2 / 9, 1 / 9))
_PYRAMID = (1 + 1 / 2 + 1 / 4 + 1 / 8) / 4

MEASUREMENTS = (
    Measurement(_LLAVA, "TextVQA", "MMTok", "192 of 576 tokens", 192 / 576, 58.2, 57.68, _MMTOK, "16"),
    Measurement(_LLAVA, "TextVQA", "MMTok", "64 of 576 tokens", 64 / 576, 58.2, 56.01, _MMTOK, "16"),
    Measurement(_LLAVA, "TextVQA", "MMTok", "32 of 576 tokens", 32 / 576, 58.2, 53.70, _MMTOK, "21"),
    Measurement(_LLAVA, "TextVQA", "MMTok", "16 of 576 tokens", 16 / 576, 58.2, 50.04, _MMTOK, "21"),
    Measurement(_LLAVA, "TextVQA", "none", "no token", 0.0, 58.2, 41.66, _MMTOK, "21"),
    Measurement(_LLAVA, "RefCOCO/+/g", "Nüwa", "192 of 576 tokens", 192 / 576, 100.0, 79.29, _NUWA, "6"),
    Measurement(_LLAVA, "RefCOCO/+/g", "Nüwa", "128 of 576 tokens", 128 / 576, 100.0, 75.20, _NUWA, "6"),
    Measurement(_LLAVA, "RefCOCO/+/g", "FastV", "128 of 576 tokens", 128 / 576, 100.0, 18.6, _NUWA, "6"),
    Measurement(_LLAVA, "RefCOCO/+/g", "Nüwa", "64 of 576 tokens", 64 / 576, 100.0, 47.19, _NUWA, "6"),
    Measurement(_LLAVA, "RefCOCO/+/g", "VisionZip", "64 of 576 tokens", 64 / 576, 100.0, 7.28, _NUWA, "6"),
    Measurement(_LLAVA, "GQA", "MMTok", "64 of 576 tokens", 64 / 576, 61.9, 58.29, _MMTOK, "16"),
    Measurement(_LLAVA, "POPE", "MMTok", "64 of 576 tokens", 64 / 576, 85.9, 85.77, _MMTOK, "16"),
    Measurement(_LLAVA, "MME", "MMTok", "64 of 576 tokens", 64 / 576, 1862.0, 1715.33, _MMTOK, "16"),
    Measurement(_NEXT, "TextVQA", "VisionZip", "640 of 2,880 tokens", 640 / 2880, 61.3, 60.2, _MMTOK, "18"),
    Measurement(_NEXT, "TextVQA", "VisionZip", "320 of 2,880 tokens", 320 / 2880, 61.3, 58.9, _MMTOK, "18"),
    Measurement(_NEXT, "TextVQA", "VisionZip", "160 of 2,880 tokens", 160 / 2880, 61.3, 56.2, _MMTOK, "18"),
    Measurement(_NEXT, "TextVQA", "VisionZip", "80 of 2,880 tokens", 80 / 2880, 61.3, 51.65, _MMTOK, "22"),
    Measurement(_NEXT, "TextVQA", "none", "no token", 0.0, 61.3, 37.77, _MMTOK, "22"),
    Measurement(_NEXT, "TextVQA", "PyramidDrop", "half, three times", _PYRAMID, 67.2, 67.0, _PYRAMIDDROP, "5"),
    Measurement(_NEXT, "ChartQA", "PyramidDrop", "half, three times", _PYRAMID, 64.0, 59.1, _PYRAMIDDROP, "5"),
    Measurement(_NEXT, "DocVQA", "PyramidDrop", "half, three times", _PYRAMID, 70.0, 65.6, _PYRAMIDDROP, "5"),
    Measurement(_NEXT, "GQA", "MMTok", "320 of 2,880 tokens", 320 / 2880, 64.2, 60.96, _MMTOK, "18"),
    Measurement(_NEXT, "POPE", "MMTok", "320 of 2,880 tokens", 320 / 2880, 86.4, 85.76, _MMTOK, "18"),
    Measurement(_NEXT, "MME", "MMTok", "320 of 2,880 tokens", 320 / 2880, 1842.0, 1799.33, _MMTOK, "18"),
    Measurement(_ONEVISION, "TextVQA", "VFlowOpt", "50 %", 0.5, 76.0, 75.1, _VFLOWOPT, "1"),
    Measurement(_ONEVISION, "TextVQA", "VFlowOpt", "25 %", 0.25, 76.0, 72.5, _VFLOWOPT, "1"),
    Measurement(_ONEVISION, "TextVQA", "VFlowOpt", "10 %", 0.1, 76.0, 60.2, _VFLOWOPT, "1"),
    Measurement(_ONEVISION, "ChartQA", "VFlowOpt", "50 %", 0.5, 80.0, 77.8, _VFLOWOPT, "1"),
    Measurement(_ONEVISION, "ChartQA", "VFlowOpt", "25 %", 0.25, 80.0, 69.1, _VFLOWOPT, "1"),
    Measurement(_ONEVISION, "ChartQA", "VFlowOpt", "10 %", 0.1, 80.0, 53.6, _VFLOWOPT, "1"),
    Measurement(_ONEVISION, "DocVQA", "VFlowOpt", "50 %", 0.5, 87.5, 90.0, _VFLOWOPT, "1"),
    Measurement(_ONEVISION, "DocVQA", "VFlowOpt", "25 %", 0.25, 87.5, 82.3, _VFLOWOPT, "1"),
    Measurement(_ONEVISION, "DocVQA", "VFlowOpt", "10 %", 0.1, 87.5, 56.1, _VFLOWOPT, "1"),
    Measurement(_ONEVISION, "OCRBench", "VisionZip", "40 %", 0.4, 595.0, 500.0, _EFFIVLM),
    Measurement(_ONEVISION, "OCRBench", "VisionZip", "10 %", 0.1, 595.0, 352.0, _EFFIVLM),
    Measurement(_ONEVISION, "GQA", "VFlowOpt", "10 %", 0.1, 62.2, 57.3, _VFLOWOPT, "1"),
    Measurement(_ONEVISION, "POPE", "VisionZip", "10 %", 0.1, 89.1, 86.1, _VFLOWOPT, "1"),
    Measurement(_ONEVISION, "MME", "VFlowOpt", "10 %", 0.1, 1581.0, 1464.0, _VFLOWOPT, "1"),
    Measurement(_QWEN2, "TextVQA", "DART", "33.3 % from layer 2", _THIRD, 82.1, 80.5, _DART, "4"),
    Measurement(_QWEN2, "TextVQA", "DART", "22.2 % from layer 2", _TWO_NINTHS, 82.1, 75.3, _DART, "4"),
    Measurement(_QWEN2, "TextVQA", "DART", "11.1 % from layer 2", _NINTH, 82.1, 61.8, _DART, "4"),
    Measurement(_QWEN2, "GQA", "DART", "22.2 % from layer 2", _TWO_NINTHS, 62.2, 58.5, _DART, "4"),
    Measurement(_QWEN2, "POPE", "DART", "22.2 % from layer 2", _TWO_NINTHS, 86.1, 82.1, _DART, "4"),
    Measurement(_QWEN2, "MME", "DART", "22.2 % from layer 2", _TWO_NINTHS, 2317.0, 2175.0, _DART, "4"),
    Measurement(_QWEN25, "TextVQA", "MMTok", "20 %", 0.2, 77.72, 70.49, _MMTOK, "20"),
    Measurement(_QWEN25, "TextVQA", "MMTok", "10 %", 0.1, 77.72, 63.90, _MMTOK, "20"),
    Measurement(_QWEN25, "OCRBench", "MMTok", "20 %", 0.2, 83.80, 59.60, _MMTOK, "20"),
    Measurement(_QWEN25, "OCRBench", "MMTok", "10 %", 0.1, 83.80, 43.60, _MMTOK, "20"),
    Measurement(_QWEN25, "TextVQA", "DivPrune", "512 of 1,296 tokens", 512 / 1296, 84.5, 78.8, _EADP, "3"),
    Measurement(_QWEN25, "TextVQA", "DivPrune", "256 of 1,296 tokens", 256 / 1296, 84.5, 74.0, _EADP, "3"),
    Measurement(_QWEN25, "ChartQA", "DivPrune", "512 of 1,296 tokens", 512 / 1296, 86.4, 77.1, _EADP, "3"),
    Measurement(_QWEN25, "ChartQA", "EADP", "256 of 1,296 tokens", 256 / 1296, 86.4, 67.4, _EADP, "3"),
    Measurement(_QWEN25, "ChartQA", "EADP", "128 of 1,296 tokens", 128 / 1296, 86.4, 51.9, _EADP, "3"),
    Measurement(_QWEN25, "OCRBench", "DivPrune", "512 of 1,296 tokens", 512 / 1296, 869.0, 760.0, _EADP, "3"),
    Measurement(_QWEN25, "OCRBench", "EADP", "256 of 1,296 tokens", 256 / 1296, 869.0, 668.0, _EADP, "3"),
    Measurement(_QWEN25, "OCRBench", "EADP", "128 of 1,296 tokens", 128 / 1296, 869.0, 556.0, _EADP, "3"),
    Measurement(_QWEN25, "RefCOCO/+/g", "IVC-Prune", "50 % of the cache", 0.5, 100.0, 99.6, _IVC_PRUNE),
    Measurement(_QWEN25, "RefCOCO/+/g", "FastV", "54 %", 0.54, 100.0, 84.7, _IVC_PRUNE),
    Measurement(_QWEN25, "RefCOCO/+/g", "DIPrune", "25 %", None, 100.0, 82.3, _DIPRUNE, "8"),
    Measurement(_QWEN25, "RefCOCO/+/g", "VScan", "25 %", None, 100.0, 80.7, _DIPRUNE, "8"),
    Measurement(_QWEN25, "RefCOCO/+/g", "FastV", "25 %", None, 100.0, 48.5, _DIPRUNE, "8"),
    Measurement(_QWEN25, "GQA", "MMTok", "20 %", 0.2, 60.48, 58.09, _MMTOK, "20"),
    Measurement(_QWEN25, "POPE", "VisionZip", "20 %", 0.2, 86.16, 83.38, _MMTOK, "20"),
    Measurement(_QWEN25, "MME", "MMTok", "20 %", 0.2, 2327.0, 2217.0, _MMTOK, "20"),
    Measurement(_QWEN3, "TextVQA", "EADP", "512 of 1,024 tokens", 512 / 1024, 83.8, 75.2, _EADP, "4"),
    Measurement(_QWEN3, "TextVQA", "EADP", "256 of 1,024 tokens", 256 / 1024, 83.8, 71.4, _EADP, "4"),
    Measurement(_QWEN3, "OCRBench", "EADP", "512 of 1,024 tokens", 512 / 1024, 855.0, 673.0, _EADP, "4"),
    Measurement(_QWEN3, "OCRBench", "EADP", "256 of 1,024 tokens", 256 / 1024, 855.0, 625.0, _EADP, "4"),
    Measurement(_QWEN3, "ChartQA", "EADP", "512 of 1,024 tokens", 512 / 1024, 82.3, 65.9, _EADP, "4"),
    Measurement(_QWEN3, "ChartQA", "EADP", "256 of 1,024 tokens", 256 / 1024, 82.3, 55.5, _EADP, "4"),
    Measurement(_QWEN3, "DocVQA", "EADP", "512 of 1,024 tokens", 512 / 1024, 94.5, 77.7, _EADP, "4"),
    Measurement(_QWEN3, "DocVQA", "EADP", "256 of 1,024 tokens", 256 / 1024, 94.5, 62.8, _EADP, "4"),
    Measurement(_QWEN3, "InfoVQA", "EADP", "512 of 1,024 tokens", 512 / 1024, 66.4, 49.9, _EADP, "4"),
    Measurement(_QWEN3, "InfoVQA", "EADP", "256 of 1,024 tokens", 256 / 1024, 66.4, 42.3, _EADP, "4"),
    Measurement(_QWEN3, "MME", "EADP", "256 of 1,024 tokens", 256 / 1024, 2440.2, 2202.4, _EADP, "4"),
    Measurement(_INTERNVL, "RefCOCO/+/g", "IVC-Prune", "50 % of the cache", 0.5, 100.0, 99.5, _IVC_PRUNE),
    Measurement(_INTERNVL, "RefCOCO/+/g", "FastV", "53 %", 0.53, 100.0, 90.1, _IVC_PRUNE),
    Measurement(_INTERNVL, "RefCOCO/+/g", "D2Pruner", "10 %, localization", None, 100.0, 85.7, _D2PRUNER),
)


@dataclass(frozen=True)
class Floor:
    """Of one task.

    Attributes:
        retention: the lowest at which anybody kept `KEPT` of the dense score, whatever the method; or, where nobody
            did, the highest that was tried.
        measured: what was measured there.
    """

    retention: float
    measured: Measurement

    def is_above(self, retention: float) -> bool:
        """Whether so little was not measured to be enough. Two digits count, as many as sources give."""
        ours, least = round(retention, 2), round(self.retention, 2)
        return ours < least if self.measured.holds else ours <= least

    def __str__(self) -> str:
        measured, retention = self.measured, f"{self.retention:.2f}"
        by = f"{measured.method}, {measured.checkpoint.name}, arXiv {measured.source.arxiv}"
        if measured.holds:
            return f"{retention} on {measured.task} ({by})"
        return f"more than {retention} on {measured.task} ({retention} left {percent(round(measured.share, 3))}: {by})"


def floors(model_type: str, kind: Kind) -> tuple[Floor, ...]:
    """The floor of every task of a kind that was measured of a model type, or else of the nearest; else none."""
    tried: dict[str, list[Floor]] = {}
    for measured in MEASUREMENTS:
        asked = measured.checkpoint.model_type == model_type and TASKS[measured.task] == kind
        if asked and measured.retention is not None:
            tried.setdefault(measured.task, []).append(Floor(measured.retention, measured))
    if not tried and model_type in NEAREST:
        return floors(NEAREST[model_type], kind)
    return tuple(map(_floor, tried.values()))


def _floor(tried: list[Floor]) -> Floor:
    holding = [floor for floor in tried if floor.measured.holds]
    if holding:
        return min(holding, key=lambda floor: floor.retention)
    return max(tried, key=lambda floor: (floor.retention, floor.measured.share))


def warning(model_type: str, retention: float) -> str | None:
    """What who prunes so far should know; None where it is above all floors, or none is known.

    It names the task that asks for most, one of reading and one of grounding.

    Args:
        model_type: `config.model_type`.
        retention: of the method.
    """
    kinds: tuple[Kind, ...] = ("reading", "grounding")
    above = ([floor for floor in floors(model_type, kind) if floor.is_above(retention)] for kind in kinds)
    hardest = [max(some, key=_demand) for some in above if some]
    if not hardest:
        return None
    return (
        f"Retention {retention:.2f} is below what others measured to leave {percent(KEPT)} of the dense score where a "
        f"model has to read or to point: {'; '.join(map(str, hardest))}. Those are their figures, by the methods "
        "named. For such questions keep more, or let questions of your own choose by `vitcop plan --quality`; see "
        "docs/floors.md."
    )


def _demand(floor: Floor) -> tuple[bool, float, float]:
    return not floor.measured.holds, floor.retention, -floor.measured.share


_warned: set[str] = set()


def warn(model: PreTrainedModel, retention: float) -> None:
    """Log the `warning` about a model, once in a process for each model type."""
    model_type = model.config.model_type
    text = None if model_type in _warned else warning(model_type, retention)
    if text and sum(weight.numel() for weight in model.parameters()) >= SMALLEST:
        _warned.add(model_type)
        logger.warning("%s", text)
