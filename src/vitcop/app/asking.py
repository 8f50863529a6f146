"""A loaded model that many ask, one after another."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from ..costs.plan import Plan, Planner
from ..engine import prune
from ..inputs.chat import Chat, Subject, pictures_in
from ..inputs.video import Clip
from ..pictures.seen import pictures_of_grids
from ..report import Report
from ..selection.pruner import Pruner
from .observed import Observed
from .stages import stages_as_html


@dataclass(frozen=True)
class Answer:
    """What a model said, and what it was left with.

    Attributes:
        text: the answer.
        seconds: that the answer took, the vision encoder included.
        report: of the prompt; None for the dense model.
        stages: what was kept, as HTML.
    """

    text: str
    seconds: float
    report: Report | None = None
    stages: str = ""


@dataclass(frozen=True, eq=False)
class Model:
    """A model and its processor. Nothing of one question is left behind in it for the next.

    Attributes:
        name: that it is chosen by.
    """

    name: str
    model: Any
    processor: Any
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, subject: Subject, question: str, method: Pruner | None, max_new_tokens: int) -> Answer:
        """Ask about one picture or video, densely without a method, once those who came before have their answers.

        Raises:
            VitcopError: the model or the method cannot do that.
        """
        observed = None if method is None else Observed.of(method)
        with self._turn:
            chat = Chat.about(subject, question, self.model, self.processor, max_new_tokens)
            begin = time.perf_counter()
            with nullcontext() if observed is None else prune(self.model, observed) as pruning:
                text = chat.answer()
            seconds = time.perf_counter() - begin
        if pruning is None or observed is None:
            return Answer(text, seconds)
        assert pruning.report is not None
        report = replace(pruning.report, method=observed.method.name)
        (pictures,) = pictures_of_grids(pictures_in(subject), report, chat.processor, chat.pixel_values)
        return Answer(text, seconds, report, stages_as_html(pictures, report, observed.seen))

    def plan(self, subject: Subject, method: Pruner) -> Plan:
        """What a method would leave of a picture or video, and save, in closed form.

        Raises:
            VitcopError: it cannot reach its retention.
        """
        frames = len(subject.frames) if isinstance(subject, Clip) else None
        return _planner(self, *pictures_in(subject)[0].size, frames).plan(method)


@lru_cache(maxsize=64)
def _planner(model: Model, width: int, height: int, frames: int | None) -> Planner:
    return Planner.of(model.model.config, height=height, width=width, frames=frames)
