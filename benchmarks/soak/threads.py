"""Threads that ask one pruned model at once, and now and then give up in the middle of an answer."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import StoppingCriteria

import vitcop
from vitcop.inputs.chat import Chat
from vitcop.scenes import scene

from .faults import Faults, InjectedError
from .traces import Memory, Outcome, Traces

LOOKS = 40
LENGTH = 4  # tokens of an answer
FAILING, GIVEN_UP_EVERY = 0.1, 13


class GivenUpError(Exception):
    """Whoever asked has left."""


class GivesUp(StoppingCriteria):
    """Leaves at the first token."""

    def __call__(self, ids: Any, scores: Any, **kwargs: Any) -> Any:
        raise GivenUpError


def chats(model: Any, processor: Any, count: int) -> list[Chat]:
    """Questions about drawn scenes, of different pictures and lengths."""
    scenes = (scene(seed, "test") for seed in itertools.count())
    asked = ((one.picture, question.text) for one in scenes for question in one.questions[::4])
    return [Chat.about((picture,), text, model, processor, LENGTH) for picture, text in itertools.islice(asked, count)]


def soak(model: Any, processor: Any, requests: int, workers: int = 4, different: int = 40) -> Outcome:
    """Ask the same few things in any order, each compared with its answer alone: tokens, and what was kept."""
    asked, outcome, memory, turn = chats(model, processor, different), Outcome("threads"), Memory(), threading.Lock()
    faults = Faults(model, FAILING)
    with vitcop.prune(model, vitcop.ViTCoP(retention=1 / 9)):
        asked[0].answer()  # transformers hooks its own modules when they first run, and keeps some masks
    outcome.before = Traces.of(model)

    def told(chat: Chat, pruning: vitcop.Pruning, **options: Any) -> tuple[str, Sequence[list[int]]]:
        answer = chat.generate(LENGTH, **options)
        assert pruning.report is not None
        return str(answer.tolist()), [stage.kept() for stage in pruning.report.stages]

    with torch.no_grad(), vitcop.prune(model, vitcop.ViTCoP(retention=1 / 9)) as pruning:
        alone = [told(chat, pruning) for chat in asked]

        def ask(number: int) -> None:
            with torch.no_grad():  # each thread has a mode of its own
                gives_up = {"stopping_criteria": [GivesUp()]} if number % GIVEN_UP_EVERY == 0 else {}
                try:
                    same = told(asked[number % different], pruning, **gives_up) == alone[number % different]
                    result = "right" if same else "mixed"
                except InjectedError:
                    result = "failed"
                except GivenUpError:
                    result = "cancelled"
            with turn:
                setattr(outcome, result, getattr(outcome, result) + 1)
                if number % max(1, requests // LOOKS) == 0:
                    memory.look()

        begin = time.perf_counter()
        with faults.on(), ThreadPoolExecutor(workers) as people:
            list(people.map(ask, range(requests)))
        outcome.seconds = time.perf_counter() - begin
    del pruning, told, ask  # with the last report
    outcome.after, outcome.megabytes = Traces.of(model), memory.quarters
    return outcome
