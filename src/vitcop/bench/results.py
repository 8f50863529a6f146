"""What was measured, as plain data: JSON holds all of it, and tables and plots are made of nothing else."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..records import taken

DENSE, DOWNSAMPLE = "dense", "downsample"
SPED_UP = ("prefill", "first_token", "decode")


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    lowest: float
    highest: float

    @staticmethod
    def of(samples: Sequence[float]) -> Spread:
        return Spread(statistics.median(samples), min(samples), max(samples))


@dataclass(frozen=True)
class Setting:
    """What all measurements of a run have in common.

    Attributes:
        model: name of the shape, folder or Hugging Face name.
        weights: "random weights" or "loaded".
        device: name of the CPU or GPU.
        gpu: which of them it is.
        threads: of the CPU that torch uses.
        dtype: of the weights.
        attention: implementation in the decoder.
        versions: of vitcop, torch, transformers and python.
        picture: width and height in pixels.
        prompt_tokens: of the dense prompt.
        placeholders: of them, what the picture became.
        decode_tokens: steps of decoding in each repeat.
        repeats: measurements of each thing.
        flops_per_second, bytes_per_second: the ceilings of the device, measured in this run.
    """

    model: str
    weights: str
    device: str
    gpu: bool
    threads: int
    dtype: str
    attention: str
    versions: dict[str, str]
    picture: tuple[int, int]
    prompt_tokens: int
    placeholders: int
    decode_tokens: int
    repeats: int
    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Row:
    """One contestant.

    Attributes:
        method: its name, or "dense" or "downsample".
        average_retention: share of the visual tokens alive, averaged over the decoder layers.
        samples: seconds of each phase, one for every repeat; see `phases.time_phases`.
        predicted: prefill speed-up that the roofline gives.
        peak_bytes: most memory held until the first token, over weights and inputs.
        kv_bytes: keys and values of the prompts.
    """

    method: str
    average_retention: float
    samples: Mapping[str, Sequence[float]]
    predicted: float
    peak_bytes: int
    kv_bytes: int

    def seconds(self, phase: str) -> Spread:
        return Spread.of(self.samples[phase])


@dataclass(frozen=True)
class Refusal:
    """A contestant that cannot take part, and why."""

    method: str
    reason: str


@dataclass(frozen=True)
class Block:
    """What was measured in turn, so that it can be compared.

    Attributes:
        batch: prompts.
        retention: that the methods were asked for.
        roofline: average retentions, and the prefill speed-up predicted where all is dropped at the entrance.
        rows: the dense model first.
        refusals: of the methods that are missing.
    """

    batch: int
    retention: float
    roofline: tuple[tuple[float, float], ...]
    rows: tuple[Row, ...]
    refusals: tuple[Refusal, ...]

    def speedup(self, row: Row, phase: str) -> Spread:
        """How many times as fast as the dense model in the same round."""
        pairs = zip(self.rows[0].samples[phase], row.samples[phase], strict=True)
        return Spread.of([dense / own for dense, own in pairs])

    def achieved(self, row: Row) -> float:
        """Share of the predicted prefill speed-up."""
        return self.speedup(row, "prefill").median / row.predicted

    @property
    def same_work(self) -> Spread:
        """Seconds of the encoder on the whole picture, the same for all: they tell how quiet the device was."""
        rows = [row for row in self.rows if row.method != DOWNSAMPLE]
        return Spread.of([seconds for row in rows for seconds in row.samples["vision"]])

    @property
    def encoder_share(self) -> float:
        """Of the time that the dense model takes until the first token."""
        dense = self.rows[0]
        return dense.seconds("vision").median / dense.seconds("first_token").median

    def tokens_per_second(self, row: Row) -> float:
        """Decoded by the whole batch."""
        return self.batch / row.seconds("decode").median


@dataclass(frozen=True)
class Benchmark:
    """A run: all batch sizes and retentions."""

    setting: Setting
    blocks: tuple[Block, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON; what follows from the samples is there as well, for who reads it."""
        blocks = []
        for block in self.blocks:
            values = dataclasses.asdict(block) | {"encoder_share": block.encoder_share}
            for row, value in zip(block.rows, values["rows"], strict=True):
                value["seconds"] = {phase: dataclasses.asdict(row.seconds(phase)) for phase in row.samples}
                value["speedup"] = {phase: dataclasses.asdict(block.speedup(row, phase)) for phase in SPED_UP}
                value["achieved"] = block.achieved(row)
                value["tokens_per_second"] = block.tokens_per_second(row)
            blocks.append(values)
        return {"setting": dataclasses.asdict(self.setting), "blocks": blocks}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Benchmark:
        """What `to_dict` gave, also after a way through JSON."""
        blocks = [
            Block(
                batch=block["batch"],
                retention=block["retention"],
                roofline=tuple((share, predicted) for share, predicted in block["roofline"]),
                rows=tuple(taken(Row, row) for row in block["rows"]),
                refusals=tuple(taken(Refusal, refusal) for refusal in block["refusals"]),
            )
            for block in values["blocks"]
        ]
        picture = tuple(values["setting"]["picture"])
        return Benchmark(taken(Setting, {**values["setting"], "picture": picture}), tuple(blocks))
