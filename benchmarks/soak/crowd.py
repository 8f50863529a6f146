"""Several who ask one pruned model at once, fail in the middle of a prefill, and now and then give up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import StoppingCriteria

from .faults import Faults, InjectedError
from .traces import Memory, Outcome

LOOKS = 40
WORKERS = 4
FAILING, GIVEN_UP_EVERY = 0.1, 13


class GivenUpError(Exception):
    """Whoever asked has left."""


class GivesUp(StoppingCriteria):
    """Leaves at the first token."""

    def __call__(self, ids: Any, scores: Any, **kwargs: Any) -> Any:
        raise GivenUpError


def ask_at_once(outcome: Outcome, model: Any, asked: Sequence[Callable[..., Any]], requests: int) -> None:
    """Ask the same few things in turn, each compared with its answer alone.

    Args:
        asked: each gives what is to be the same, and takes options of `generate`.
    """
    memory, turn = Memory(), threading.Lock()
    alone = [ask() for ask in asked]

    def ask(number: int) -> None:
        which = number % len(asked)
        with torch.no_grad():  # each thread has a mode of its own
            gives_up = {"stopping_criteria": [GivesUp()]} if number % GIVEN_UP_EVERY == 0 else {}
            try:
                result = "right" if asked[which](**gives_up) == alone[which] else "mixed"
            except InjectedError:
                result = "failed"
            except GivenUpError:
                result = "cancelled"
        with turn:
            setattr(outcome, result, getattr(outcome, result) + 1)
            if number % max(1, requests // LOOKS) == 0:
                memory.look()

    begin = time.perf_counter()
    with Faults(model, FAILING).on(), ThreadPoolExecutor(WORKERS) as people:
        list(people.map(ask, range(requests)))
    outcome.seconds, outcome.megabytes = time.perf_counter() - begin, memory.quarters
    outcome.mixed += [each() for each in asked] != alone  # as what has failed is forgotten by then
