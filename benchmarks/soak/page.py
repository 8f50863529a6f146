"""The page of `vitcop app`, asked over HTTP by many at once, some of whom leave before their answer is there."""

from __future__ import annotations

import html
import json
import random
import re
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import httpx

from vitcop.app.asking import Model
from vitcop.app.page import DENSE, make_page, serve_page
from vitcop.scenes import scene

from .faults import Faults
from .traces import Memory, Outcome, Traces

LOOKS = 40
METHODS = "vitcop", "census", "fastv", DENSE
FAILING, LEAVING = 0.05, 0.1
WAIT = 300  # seconds
GRADIO = {"noise": 20.0, "leaves": 20.0}  # what it holds by itself, whatever the model (NOTES, entry 16)
TIME = re.compile(r"\d+\.\d\d s")  # that an answer took


@dataclass(frozen=True)
class Asked:
    """What one person asks."""

    picture: bytes
    question: str
    method: str
    retention: float


class Browser:
    """The requests of a browser, without one; any number at once."""

    def __init__(self, url: str, function: int, name: str) -> None:
        pool = httpx.Limits(max_connections=None)
        self._client = httpx.Client(base_url=f"{url.rstrip('/')}/gradio_api", timeout=WAIT, limits=pool)
        self._function, self._name = function, name

    def ask(self, asked: Asked, leave: bool = False) -> str | None:
        """The answer as HTML; None if there is none, as the queue is full or whoever asked has left."""
        (path,) = self._client.post("/upload", files={"files": ("picture.png", asked.picture)}).json()
        picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
        data = [self._name, picture, None, asked.method, asked.retention, asked.question]
        session = {"session_hash": uuid.uuid4().hex, "fn_index": self._function}
        joined = self._client.post("/queue/join", json={"data": data, **session})
        if joined.status_code != httpx.codes.OK:
            return None
        if leave:
            self._client.post("/cancel", json={**session, "event_id": joined.json()["event_id"]})
            return None
        with self._client.stream("GET", "/queue/data", params={"session_hash": session["session_hash"]}) as lines:
            for line in lines.iter_lines():
                told = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if told.get("msg") == "process_completed":
                    (shown,) = told["output"]["data"]
                    return TIME.sub("", shown if isinstance(shown, str) else shown["value"])
        return None


@contextmanager
def served(model: Any, processor: Any) -> Iterator[Browser]:
    """A page on which this model answers, for as long as it lasts."""
    page = make_page({"box": Model("box", model, processor)}, [name for name in METHODS if name != DENSE])
    function = next(number for number, each in page.fns.items() if each.name == "answer")
    try:
        yield Browser(serve_page(page, "127.0.0.1", None, wait=False), function, "box")
    finally:
        page.close()


def soak(model: Any, processor: Any, requests: int, people: int = 12, different: int = 24) -> Outcome:
    """Ask the same few things in any order, each compared with all that the page shows of it alone, but the time."""
    outcome, memory, turn, draw = Outcome("app", **GRADIO), Memory(), threading.Lock(), random.Random(0)
    asked = []
    for seed in range(different):
        drawn, picture = scene(seed, "test"), BytesIO()
        drawn.picture.save(picture, "PNG")
        question = drawn.questions[seed % len(drawn.questions)].text
        asked.append(Asked(picture.getvalue(), question, METHODS[seed % len(METHODS)], (0.11, 0.33)[seed // 4 % 2]))
    with served(model, processor) as browser:
        alone = [browser.ask(each) for each in asked]
    pruned = [shown for each, shown in zip(asked, alone, strict=True) if each.method != DENSE]
    assert len(set(pruned)) == len(pruned), "what cannot be told apart would hide what is mixed up"
    outcome.before = Traces.of(model)

    def ask(number: int) -> None:
        with turn:
            which, leave = draw.randrange(different), draw.random() < LEAVING
        shown = browser.ask(asked[which], leave)
        if leave:
            result = "cancelled"
        elif shown is None:
            result = "refused"
        elif "role='alert'" in shown:
            result = "failed" if "InjectedError" in html.unescape(shown) else "mixed"
        else:
            result = "right" if shown == alone[which] else "mixed"
        with turn:
            setattr(outcome, result, getattr(outcome, result) + 1)
            if number % max(1, requests // LOOKS) == 0:
                memory.look()

    begin = time.perf_counter()
    with served(model, processor) as browser:
        with Faults(model, FAILING).on(), ThreadPoolExecutor(people) as crowd:
            list(crowd.map(ask, range(requests)))
        outcome.seconds = time.perf_counter() - begin
        outcome.mixed += [browser.ask(each) for each in asked] != alone  # and whoever has left is forgotten by then
    outcome.after, outcome.megabytes = Traces.of(model), memory.quarters
    return outcome
