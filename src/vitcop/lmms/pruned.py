"""What vitcop adds to each wrapper of lmms-eval: its arguments, its pruning, and errors that are raised."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState
from lmms_eval.api.model import lmms
from loguru import logger

from ..engine import prune
from ..errors import VitcopError
from ..report import Report
from .arguments import split_arguments


class Pruned(lmms):
    """A stock model in lmms-eval, with its visual tokens pruned. Stands before lmms-eval's wrapper among the bases.

    Args:
        pretrained: folder or Hugging Face name of the checkpoint.
        device: where to; if none is given, or if there are several processes, what accelerate gives this process.
        arguments: `method`, the settings of that method, and what lmms-eval's wrapper takes.

    Raises:
        VitcopError: an argument is not known, or has a value that cannot be.
    """

    def __init__(self, pretrained: str = "", device: str | None = None, **arguments: Any) -> None:
        if not pretrained:
            raise VitcopError("No checkpoint is named; add one to the model arguments as pretrained=...")
        taken = inspect.signature(super().__init__).parameters.values()
        names = [parameter.name for parameter in taken if parameter.kind is not parameter.VAR_KEYWORD]
        method, others = split_arguments(arguments, names)
        device = _device(device)
        # Given, because what lmms-eval has for no device_map is refused by transformers, or needs a GPU.
        super().__init__(**{"pretrained": pretrained, "device": device, "device_map": device} | others)
        self._pruning = prune(self.model, method) if method else None
        self._retention = _TrueRetention()

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """The answers of lmms-eval's wrapper. Errors of `generate` are raised, not scored as empty answers."""
        with self._watched_generate():
            try:
                answers: list[Any] = super().generate_until(requests)
            except _Escape as escape:
                error = escape.error
            else:
                if self._pruning is not None:
                    logger.info(f"{self._pruning.method.name}: {self._retention} of process {self.rank}")
                return answers
        raise error

    def clean(self) -> None:
        """Give up the model, as lmms-eval does once all is answered."""
        if self._pruning is not None:
            self._pruning.remove()
        super().clean()

    @contextmanager
    def _watched_generate(self) -> Iterator[None]:
        model, generate = self.model, self.model.generate

        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                output = generate(*args, **kwargs)
            except Exception as error:
                raise _Escape(error) from error
            if self._pruning is not None:
                self._retention.add(self._pruning.report)
            return output

        model.generate = watched
        try:
            yield
        finally:
            del model.generate


class _Escape(BaseException):
    """Carries an error past the `except Exception` of lmms-eval's wrappers."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _TrueRetention:
    """Share of the visual tokens that was alive, averaged over decoder layers, of all prompts so far."""

    def __init__(self) -> None:
        self.alive = self.all = self.prompts = 0
        self.last: Report | None = None

    def add(self, report: Report | None) -> None:
        if report is None or report is self.last:  # a prompt without a picture leaves the report before it
            return
        self.last = report
        self.alive += sum(report.all_visual_tokens)
        self.all += report.num_layers * sum(report.image_lengths)
        self.prompts += len(report.prompt_lengths)

    def __str__(self) -> str:
        if not self.prompts:
            return "nothing was pruned, since there are no visual tokens in the prompts"
        return f"{self.alive / self.all:.2%} of the visual tokens on average in {self.prompts} prompts"


def _device(asked: str | None) -> str:
    state = PartialState()
    return str(state.device) if asked is None or state.num_processes > 1 else asked
