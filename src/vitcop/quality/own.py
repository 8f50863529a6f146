"""Questions of one's own: pictures and what is asked about them, in a file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import VitcopError, reason
from ..inputs.pictures import read_picture, refuse_address
from .reader import plain


@dataclass(frozen=True)
class OwnQuestion:
    """A question about a picture in a file.

    Attributes:
        file: the picture.
        digest: of its pixels, by which two files of the same picture are one picture.
        size: its width and height, in pixels.
        question: as it is asked.
        answer: that is right, in lower case and without a full stop; None if it is not known.
    """

    file: Path = field(repr=False)  # where it lies changes no answer
    digest: str
    size: tuple[int, int]
    question: str
    answer: str | None = None

    def picture(self) -> Image.Image:
        """As a viewer shows it."""
        return read_picture(self.file)

    def to_dict(self) -> dict[str, str]:
        """As a line of the file says it."""
        known = {} if self.answer is None else {"answer": self.answer}
        return {"picture": str(self.file), "question": self.question, **known}


def read_questions(file: Path) -> tuple[OwnQuestion, ...]:
    """Read questions from JSON lines.

    A line is an object with "picture", the path of a file, from the folder of this file on; "question"; and, if it is
    known, "answer". What else it holds does not count. All pictures are read, so that a broken one is told at once.

    Raises:
        VitcopError: there is no such file, a line is no such object, or a picture cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise VitcopError(f"Cannot read the questions in {file}: {reason(error)}") from error
    pictures: dict[Path, tuple[str, tuple[int, int]]] = {}
    questions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        picture, question, answer = _fields(line, f"{file}, line {number}")
        if picture not in pictures:
            refuse_address(picture)
            seen = read_picture(file.parent / picture)
            pictures[picture] = hashlib.sha256(repr(seen.size).encode() + seen.tobytes()).hexdigest(), seen.size
        questions.append(OwnQuestion(file.parent / picture, *pictures[picture], question, answer))
    return tuple(questions)


def halves(questions: Sequence[OwnQuestion], seed: int = 0) -> tuple[tuple[OwnQuestion, ...], tuple[OwnQuestion, ...]]:
    """Two parts of half of the pictures each, drawn by the seed; all questions about a picture are in the same part."""
    drawn = sorted({each.digest for each in questions}, key=lambda digest: _sha256(f"{seed} {digest}"))
    first = set(drawn[: (len(drawn) + 1) // 2])
    return (
        tuple(each for each in questions if each.digest in first),
        tuple(each for each in questions if each.digest not in first),
    )


def worth(questions: Sequence[OwnQuestion]) -> int:
    """As many questions about a picture of their own each as would say as much as these.

    The effective sample size (Kish, 1965) of answers that all turn together where they are about one picture.
    """
    of_picture = Counter(each.digest for each in questions).values()
    return sum(of_picture) ** 2 // sum(count**2 for count in of_picture) if questions else 0


def _fields(line: str, where: str) -> tuple[Path, str, str | None]:
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise VitcopError(f"{where} is not JSON: {reason(error)}") from error
    if not isinstance(values, dict):
        raise VitcopError(f'{where} is no object with "picture" and "question".')
    for name in ("picture", "question"):
        if not isinstance(values.get(name), str) or not values[name].strip():
            raise VitcopError(f'{where} has no "{name}", which is a text; got {values.get(name)!r:.40}.')
    answer = values.get("answer")
    if not isinstance(answer, str | None):
        raise VitcopError(f'{where} has an "answer" that is no text: {answer!r:.40}; leave it out, or quote it.')
    return Path(values["picture"]), values["question"], None if answer is None else plain(answer)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
