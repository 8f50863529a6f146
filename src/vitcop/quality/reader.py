"""Puts the questions to a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature

from ..engine import prune
from ..inputs.prompts import prompt_about
from ..selection.pruner import Pruner
from .suite import Case

MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class Answered:
    """What a model said to some cases.

    Attributes:
        answers: in lower case, without a full stop.
        average: share of the visual tokens alive, averaged over decoder layers and cases.
    """

    answers: tuple[str, ...]
    average: float


class Reader:
    """A model, its processor, and cases in batches, whose pictures are drawn and processed once."""

    def __init__(self, model: Any, processor: Any, cases: Sequence[Case], batch: int) -> None:
        self.model, self.processor, self.batch = model, processor, batch
        self.batches = [cases[first : first + batch] for first in range(0, len(cases), batch)]
        processor.tokenizer.padding_side = "left"
        self._inputs: list[Any] = []
        texts = [prompt_about(case.question, processor, "image") for case in cases]
        lengths = [len(tokens) for tokens in processor.tokenizer(texts)["input_ids"]]
        self.text_tokens = round(sum(lengths) / len(lengths)) - 1
        """Of a prompt, the picture's placeholder left out; the mean over the cases."""

    def read(self, pruner_for: Callable[[Sequence[Case]], Pruner] | None) -> Answered:
        """The answers, each batch under its pruner; None for the dense model."""
        if not self._inputs:
            self._inputs = [self._prompts(batch, [case.picture() for case in batch]) for batch in self.batches]
        answers: list[str] = []
        averages: list[float] = []
        for batch, inputs in zip(self.batches, self._inputs, strict=True):
            with nullcontext() if pruner_for is None else prune(self.model, pruner_for(batch)) as pruning:
                answers += self._generate(inputs)
                report = None if pruning is None else pruning.report
            averages += [1.0 if report is None else report.average_retention(image) for image in range(len(batch))]
        return Answered(tuple(answers), sum(averages) / len(averages))

    def read_resized(self, size: tuple[int, int], average: float) -> Answered:
        """The dense model's answers about pictures of another width and height."""
        answers: list[str] = []
        for batch in self.batches:
            pictures = [case.picture().resize(size, Image.Resampling.LANCZOS) for case in batch]
            answers += self._generate(self._prompts(batch, pictures))
        return Answered(tuple(answers), average)

    def read_blind(self) -> Answered:
        """The answers without any picture."""
        answers = [answer for batch in self.batches for answer in self._generate(self._prompts(batch, None))]
        return Answered(tuple(answers), 0.0)

    def _prompts(self, batch: Sequence[Case], pictures: list[Image.Image] | None) -> Any:
        modality = None if pictures is None else "image"
        texts = [prompt_about(case.question, self.processor, modality) for case in batch]
        # Gemma 3 takes a flat list for the pictures of one prompt.
        visual = {} if pictures is None else {"images": [[picture] for picture in pictures]}
        return self.processor(text=texts, padding=True, return_tensors="pt", **visual)

    @torch.inference_mode()
    def _generate(self, inputs: Any) -> Iterator[str]:
        # Of a copy, since `to` would move the original, and in the end all pictures of the suite would fill the GPU.
        inputs = BatchFeature(dict(inputs)).to(self.model.device, dtype=self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts = self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return (text.strip().lower().rstrip(".") for text in texts)
