"""Threads that ask about pictures which one of them has read, and all of them share."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import vitcop
from vitcop.inputs.chat import Chat
from vitcop.scenes import scene

from .crowd import ask_at_once
from .threads import LENGTH
from .traces import Outcome, Traces


def told(prefix: vitcop.ImagePrefix, chat: Chat, **options: Any) -> tuple[str, bytes]:
    """The tokens of an answer, and its logits, which other pictures never get, as they do get the same answer."""
    answer = prefix.generate(
        **chat.inputs,
        **options,
        max_new_tokens=LENGTH,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return str(answer.sequences.tolist()), torch.stack(answer.logits).numpy().tobytes()


def soak(model: Any, processor: Any, requests: int, pictures: int = 4, questions: int = 10) -> Outcome:
    """Ask this many questions about each picture."""
    scenes, outcome = [scene(seed, "test") for seed in range(pictures)], Outcome("prefix")
    chats = [
        [Chat.about((one.picture,), question.text, model, processor) for question in one.questions[:questions]]
        for one in scenes
    ]
    with vitcop.prune(model, vitcop.ViTCoP(retention=1 / 9)):
        chats[0][0].answer()  # transformers hooks its own modules when they first run, and keeps some masks
    outcome.before = Traces.of(model)
    with torch.no_grad(), vitcop.prune(model, vitcop.ViTCoP(retention=1 / 9)) as pruning:
        prefixes = [vitcop.ImagePrefix(model, **about[0].inputs) for about in chats]
        asked = [partial(told, prefix, chat) for prefix, about in zip(prefixes, chats, strict=True) for chat in about]
        ask_at_once(outcome, model, asked, requests)
    del pruning, prefixes, asked
    outcome.after = Traces.of(model)
    return outcome
