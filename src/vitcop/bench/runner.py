"""Dense and pruned in turn, in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from ..engine import prune
from ..environment import device_name, versions
from ..errors import VitcopError
from ..inputs.downsample import downsample
from ..methods.random import Random
from ..models import ModelFamily, Size, family_of
from ..selection.pruner import Pruner
from .ceilings import Ceilings, measure_ceilings
from .memory import peak_bytes
from .phases import PHASES, cache_of, read_prompt, time_phases
from .prompt import Prompt, make_prompt, random_picture
from .results import DENSE, DOWNSAMPLE, Benchmark, Block, Refusal, Row, Setting
from .roofline import prefill_seconds
from .stopwatch import Stopwatch

_STEPS = 33  # of the predicted curve, down to 1/256
Told = Callable[[str, int], None]
"""Is told what runs next, and how often it is told in all."""
Kept = Callable[[Benchmark], None]
"""Gets what has been measured so far, whenever that is one block more."""


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        name: of the model, for the record.
        weights: "random weights" or "loaded".
        model: unpruned.
        processor: of the model.
    """

    name: str
    weights: str
    model: PreTrainedModel
    processor: Any


@dataclass(frozen=True)
class Course:
    """How it is measured.

    Attributes:
        methods: as `Pruner.named` takes them, or "downsample".
        retentions: that the methods are asked for.
        batches: prompts at a time.
        repeats: rounds in which each takes its turn, after one that warms up.
        decode_tokens: steps of decoding in each.
        text_tokens: behind the picture.
        size: of the picture; None is the family's usual one.
    """

    methods: Sequence[str]
    retentions: Sequence[float]
    batches: Sequence[int]
    repeats: int = 5
    decode_tokens: int = 16
    text_tokens: int = 64
    size: Size | None = None


def run_benchmark(subject: Subject, course: Course, told: Told, kept: Kept = lambda so_far: None) -> Benchmark:
    """Measure every batch size at every retention.

    Args:
        kept: for who cannot be sure that the run comes to its end.

    Raises:
        UnsupportedModelError: the model cannot be pruned.
        VitcopError: the GPU runs out of memory.
    """
    try:
        with torch.no_grad():
            return _Run(subject, course, told).benchmark(kept)
    except torch.OutOfMemoryError as error:
        raise VitcopError("The GPU runs out of memory; ask for smaller --batches or a narrower --dtype.") from error


@dataclass(frozen=True)
class _Contestant:
    """A method on the whole picture, or the dense model on a picture of its own.

    Attributes:
        share: of the dense prompt's placeholders that enter the decoder.
    """

    name: str
    prompt: Prompt
    method: Pruner | None
    share: float = 1.0


class _Run:
    def __init__(self, subject: Subject, course: Course, told: Told) -> None:
        self.subject, self.course, self.told = subject, course, told
        self.model = subject.model
        self.family: ModelFamily = family_of(self.model)
        self.stopwatch = Stopwatch(self.model.device)
        self.picture = random_picture(course.size or self.family.default_size)
        # Eager attention multiplies all pairs, and so does what gets an explicit mask.
        masked = self.family.has_windows or self.family.has_blocks
        self.causal = self.family.decoder.config._attn_implementation != "eager" and not masked
        rounds = course.repeats + 1
        self.passes = len(course.batches) * len(course.retentions) * ((len(course.methods) + 1) * rounds + 1)

    def benchmark(self, kept: Kept) -> Benchmark:
        self.told("ceilings", self.passes + 1)
        self.ceilings: Ceilings = measure_ceilings(self.model.device, self.model.dtype, self.stopwatch)
        measured = Benchmark(self._setting(), ())
        for batch in self.course.batches:
            for retention in self.course.retentions:
                measured = replace(measured, blocks=(*measured.blocks, self._block(batch, retention)))
                kept(measured)
        return measured

    def _block(self, batch: int, retention: float) -> Block:
        dense = _Contestant(DENSE, self._prompt(self.picture, batch), None)
        refusals: list[Refusal] = []
        entered: list[tuple[_Contestant, dict[str, Any]]] = []

        def tell(contestant: str) -> None:
            self.told(f"batch {batch}, retention {retention:.3g}: {contestant}", self.passes + 1)

        tell(DENSE)
        with prune(self.model, Random(retention=1.0)) as pruning:  # drops nothing, leaves the model alone, and reports
            read_prompt(self.model, dense.prompt)
        assert pruning.report is not None
        visual = pruning.report.image_lengths[0]
        for name in (DENSE, *self.course.methods):
            tell(name)
            try:
                contestant = dense if name == DENSE else self._contestant(name, dense, retention)
                entered.append((contestant, self._warm_up(contestant, dense, batch)))
            except VitcopError as error:
                if name == DENSE:
                    raise
                refusals.append(Refusal(name, str(error)))
        rounds: list[list[dict[str, float]]] = [[] for _ in entered]
        for turn in range(self.course.repeats):
            # Another goes first in each round, so that no one is always behind the same other.
            order = [(number + turn) % len(entered) for number in range(len(entered))]
            for (contestant, _), timed in ((entered[number], rounds[number]) for number in order):
                tell(contestant.name)
                timed.append(time_phases(self.model, contestant.prompt, contestant.method, self.stopwatch))
        rows = [
            Row(contestant.name, samples={phase: tuple(each[phase] for each in timed) for phase in PHASES}, **known)
            for (contestant, known), timed in zip(entered, rounds, strict=True)
        ]
        return Block(batch, retention, self._roofline(dense.prompt, batch, visual), tuple(rows), tuple(refusals))

    def _prompt(self, picture: Image.Image, batch: int) -> Prompt:
        course = self.course
        return make_prompt(self.model, self.subject.processor, picture, course.text_tokens, course.decode_tokens, batch)

    def _contestant(self, name: str, dense: _Contestant, retention: float) -> _Contestant:
        if name != DOWNSAMPLE:
            return _Contestant(name, dense.prompt, Pruner.from_dict({"method": name, "retention": retention}))
        picture, share = downsample(self.picture, self.subject.processor, retention)
        return _Contestant(name, self._prompt(picture, len(dense.prompt.continuation)), None, share)

    def _warm_up(self, contestant: _Contestant, dense: _Contestant, batch: int) -> dict[str, Any]:
        """Run it once, and tell what does not change from run to run."""
        layers, held = self.family.num_layers, list[int]()
        whole, tokens = [dense.prompt.length] * layers, [contestant.prompt.length] * layers
        average = contestant.share

        def work() -> None:
            cache = cache_of(read_prompt(self.model, contestant.prompt))
            layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
            held.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers))

        if contestant.method is None:
            peak = peak_bytes(self.model.device, work)
        else:
            with prune(self.model, contestant.method) as pruning:
                peak = peak_bytes(self.model.device, work)
            assert pruning.report is not None
            tokens, average = pruning.report.tokens(), pruning.report.average_retention()

        predicted = self._least(whole, batch) / self._least(tokens, batch)
        return {"average_retention": average, "predicted": predicted, "peak_bytes": peak, "kv_bytes": held[0]}

    def _roofline(self, prompt: Prompt, batch: int, visual: int) -> tuple[tuple[float, float], ...]:
        """Average retentions of each prompt's visual tokens, separators left out, and the speed-up predicted."""
        layers = self.family.num_layers
        dense = self._least([prompt.length] * layers, batch)
        kept = (max(1, round(visual * 2 ** (-step / 4))) for step in range(_STEPS))
        return tuple(
            (count / visual, dense / self._least([prompt.length - visual + count] * layers, batch))
            for count in dict.fromkeys(kept)
        )

    def _placeholders(self, prompt: Prompt) -> int:
        """Of each prompt."""
        return int(self.family.placeholders(prompt.inputs)["image"][0].sum())

    def _least(self, tokens: Sequence[int], batch: int) -> float:
        config, itemsize = self.family.decoder.config, self.model.dtype.itemsize
        return prefill_seconds(config, tokens, batch, itemsize, self.ceilings, causal=self.causal)

    def _setting(self) -> Setting:
        course, subject = self.course, self.subject
        prompt = self._prompt(self.picture, 1)
        return Setting(
            model=subject.name,
            weights=subject.weights,
            device=device_name(self.model.device),
            gpu=self.model.device.type == "cuda",
            threads=torch.get_num_threads(),
            dtype=str(self.model.dtype).removeprefix("torch."),
            attention=self.family.decoder.config._attn_implementation,
            versions=versions(),
            picture=self.picture.size,
            prompt_tokens=prompt.length,
            placeholders=self._placeholders(prompt),
            decode_tokens=course.decode_tokens,
            repeats=course.repeats,
            flops_per_second=self.ceilings.flops_per_second,
            bytes_per_second=self.ceilings.bytes_per_second,
        )
