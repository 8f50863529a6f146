"""Batches that were answered, kept as they come: a run that was stopped takes them from here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..records import taken


@dataclass(frozen=True)
class Answered:
    """What a model said to some cases.

    Attributes:
        answers: in lower case, without a full stop.
        averages: share of the visual tokens alive for each, averaged over decoder layers.
    """

    answers: list[str]
    averages: list[float]

    @property
    def average(self) -> float:
        """Share of the visual tokens alive, averaged over decoder layers and cases."""
        return sum(self.averages) / len(self.averages)


class Journal:
    """A line for each batch that a contender was asked, in the order in which it always is.

    Lines say which batch they are of, since two runs may be at the same contender: both give the same answers.

    Args:
        file: where lines are kept; None keeps nothing.
    """

    def __init__(self, file: Path | None) -> None:
        self.file, self._asked = file, 0
        self._known: dict[int, Answered] = {}
        if file is None or not file.exists():
            return
        whole, _, torn = file.read_text(encoding="utf-8").rpartition("\n")
        for line in filter(None, whole.splitlines()):
            self._read(line)
        if torn:  # a stop in the middle of a line
            self._append("\n")

    def _read(self, line: str) -> None:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # one that was torn, and ended by the run that went on
            return
        self._known[values["batch"]] = taken(Answered, values)

    def answer(self, ask: Callable[[], Answered]) -> Answered:
        """The next batch: as it was answered before a stop, or else asked now."""
        number, self._asked = self._asked, self._asked + 1
        if number not in self._known:
            self._known[number] = ask()
            self._append(json.dumps({"batch": number, **asdict(self._known[number])}) + "\n")
        return self._known[number]

    def close(self) -> None:
        """The contender has answered all, and its answers are kept elsewhere."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def _append(self, text: str) -> None:
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(text)
