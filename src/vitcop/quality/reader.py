"""Puts the questions to a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from PIL import Image
from transformers import BatchFeature

from ..engine import prune
from ..inputs.prompts import prompt_about
from ..selection.pruner import Pruner
from .journal import Answered, Journal

MAX_NEW_TOKENS = 8


@runtime_checkable
class Asked(Protocol):
    """A question about a picture."""

    @property
    def question(self) -> str: ...

    def picture(self) -> Image.Image: ...


A = TypeVar("A", bound=Asked)


def plain(answer: str) -> str:
    """An answer as it is compared with others: in lower case, without a full stop."""
    return answer.strip().lower().rstrip(".")


class Reader(Generic[A]):
    """A model, its processor, and cases in batches, whose pictures are drawn and processed once.

    Args:
        batch: prompts at a time.
        max_new_tokens: after which an answer is cut off.
    """

    def __init__(
        self, model: Any, processor: Any, cases: Sequence[A], batch: int, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> None:
        self.model, self.processor, self.batch, self.max_new_tokens = model, processor, batch, max_new_tokens
        self.batches = [cases[first : first + batch] for first in range(0, len(cases), batch)]
        processor.tokenizer.padding_side = "left"
        self._inputs: list[Any] = []
        texts = [prompt_about(case.question, processor, "image") for case in cases]
        lengths = [len(tokens) for tokens in processor.tokenizer(texts)["input_ids"]]
        self.text_tokens = round(sum(lengths) / len(lengths)) - 1
        """Of a prompt, the picture's placeholder left out; the mean over the cases."""

    def processed(self, picture: Image.Image) -> Any:
        """What the processor makes of a prompt with this picture in place of the first case's."""
        return self._prompts(self.batches[0][:1], [picture])

    def read(self, pruner_for: Callable[[Sequence[A]], Pruner] | None, journal: Journal | None = None) -> Answered:
        """The answers, each batch under its pruner; None for the dense model."""
        if not self._inputs:
            self._inputs = [self._prompts(batch, [case.picture() for case in batch]) for batch in self.batches]

        def ask(number: int) -> Answered:
            batch = self.batches[number]
            with nullcontext() if pruner_for is None else prune(self.model, pruner_for(batch)) as pruning:
                answers = self._generate(self._inputs[number])
                report = None if pruning is None else pruning.report
            averages = [1.0 if report is None else report.average_retention(image) for image in range(len(batch))]
            return Answered(list(answers), averages)

        return self._all(ask, journal or Journal(None))

    def read_resized(self, size: tuple[int, int], average: float, journal: Journal | None = None) -> Answered:
        """The dense model's answers about pictures of another width and height."""

        def ask(number: int) -> Answered:
            batch = self.batches[number]
            pictures = [case.picture().resize(size, Image.Resampling.LANCZOS) for case in batch]
            return Answered(list(self._generate(self._prompts(batch, pictures))), [average] * len(batch))

        return self._all(ask, journal or Journal(None))

    def read_blind(self, journal: Journal | None = None) -> Answered:
        """The answers without any picture."""

        def ask(number: int) -> Answered:
            batch = self.batches[number]
            return Answered(list(self._generate(self._prompts(batch, None))), [0.0] * len(batch))

        return self._all(ask, journal or Journal(None))

    def _all(self, ask: Callable[[int], Answered], journal: Journal) -> Answered:
        answered = [journal.answer(partial(ask, number)) for number in range(len(self.batches))]
        return Answered(
            [answer for each in answered for answer in each.answers],
            [average for each in answered for average in each.averages],
        )

    def _prompts(self, batch: Sequence[A], pictures: list[Image.Image] | None) -> Any:
        modality = None if pictures is None else "image"
        texts = [prompt_about(case.question, self.processor, modality) for case in batch]
        # Gemma 3 takes a flat list for the pictures of one prompt.
        visual = {} if pictures is None else {"images": [[picture] for picture in pictures]}
        return self.processor(text=texts, padding=True, return_tensors="pt", **visual)

    @torch.inference_mode()
    def _generate(self, inputs: Any) -> Iterator[str]:
        # Of a copy, since `to` would move the original, and in the end all pictures of the suite would fill the GPU.
        inputs = BatchFeature(dict(inputs)).to(self.model.device, dtype=self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        texts = self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return map(plain, texts)
