"""Threads that ask one pruned model at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

import vitcop
from vitcop.inputs.chat import Chat
from vitcop.scenes import scene

from .crowd import ask_at_once
from .traces import Outcome, Traces

LENGTH = 4  # tokens of an answer


def chats(model: Any, processor: Any, count: int) -> list[Chat]:
    """Questions about drawn scenes, of different pictures and lengths."""
    scenes = (scene(seed, "test") for seed in itertools.count())
    asked = ((one.picture, question.text) for one in scenes for question in one.questions[::4])
    return [Chat.about((picture,), text, model, processor, LENGTH) for picture, text in itertools.islice(asked, count)]


def told(chat: Chat, pruning: vitcop.Pruning, **options: Any) -> tuple[str, Sequence[list[int]]]:
    """The tokens of an answer, and what was kept."""
    answer = chat.generate(LENGTH, **options)
    assert pruning.report is not None
    return str(answer.tolist()), [stage.kept() for stage in pruning.report.stages]


def soak(model: Any, processor: Any, requests: int, different: int = 40) -> Outcome:
    """Ask this many different questions, about pictures that each of them brings along."""
    questions, outcome = chats(model, processor, different), Outcome("threads")
    with vitcop.prune(model, vitcop.ViTCoP(retention=1 / 9)):
        questions[0].answer()  # transformers hooks its own modules when they first run, and keeps some masks
    outcome.before = Traces.of(model)
    with torch.no_grad(), vitcop.prune(model, vitcop.ViTCoP(retention=1 / 9)) as pruning:
        ask_at_once(outcome, model, [partial(told, chat, pruning) for chat in questions], requests)
    del pruning  # with the last report
    outcome.after = Traces.of(model)
    return outcome
