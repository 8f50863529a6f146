"""Many questions behind one picture: each sees the picture and itself, and stands where it would stand alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import LlavaProcessor

from vitcop.inputs.prompts import prompt_about
from vitcop.scenes.questions import Question

NOBODY = -1  # whose tokens all may see: what stands before the questions


@dataclass
class Row:
    """One picture and its questions, as numbers.

    Attributes:
        before: tokens in front of the picture.
        behind: tokens behind it.
        owners: of the tokens behind the picture, the question that each belongs to.
        positions: of the tokens behind the picture.
        asked: indices behind the picture of the tokens whose next one is of an answer.
        labels: those next tokens.
        types: of their questions.
    """

    before: list[int]
    behind: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    types: list[str] = field(default_factory=list)


class Packer:
    """Makes rows in the prompt format of a processor."""

    def __init__(self, processor: LlavaProcessor) -> None:
        self.processor = processor
        self.end = processor.tokenizer.eos_token_id

    def tokens(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False).input_ids

    def row(self, questions: Sequence[Question], visual: int) -> Row:
        """The questions, each behind the same picture of so many tokens."""
        row: Row | None = None
        for number, question in enumerate(questions):
            prompt = prompt_about(question.text, self.processor, "image")
            before, asking = (self.tokens(part) for part in prompt.split(self.processor.image_token))
            answer = [*self.tokens(f" {question.answer}"), self.end]
            row = row or Row(before)
            row.asked += range(len(row.behind) + len(asking) - 1, len(row.behind) + len(asking) + len(answer) - 1)
            row.labels += answer
            row.types += [question.type] * len(answer)
            own = asking + answer[:-1]
            row.behind += own
            row.owners += [number] * len(own)
            row.positions += range(len(before) + visual, len(before) + visual + len(own))
        assert row is not None, "a scene without questions"
        return row


def embed(rows: Sequence[Row], visual: Tensor, words: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, positions and who may look at whom, padded on the right.

    Args:
        rows: one for each picture.
        visual: (rows, visual tokens, width).
        words: embeds tokens.

    Returns:
        (rows, length, width), (rows, length) and, of truth values, (rows, 1, length, length).
    """
    device = visual.device
    common = [len(row.before) + visual.shape[1] for row in rows]
    length = max(first + len(row.behind) for first, row in zip(common, rows, strict=True))
    embedded = visual.new_zeros(len(rows), length, visual.shape[2])
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    owners = torch.full(
        (len(rows), length), len(max((row.owners for row in rows), key=len))
    )  # padding is nobody else's
    for number, (first, row) in enumerate(zip(common, rows, strict=True)):
        end = first + len(row.behind)
        before, behind = (words(torch.tensor(tokens, device=device)) for tokens in (row.before, row.behind))
        embedded[number, :end] = torch.cat([before.to(visual), visual[number], behind.to(visual)])
        positions[number, :end] = torch.tensor([*range(first), *row.positions])
        owners[number, :end] = torch.tensor([NOBODY] * first + row.owners)
    seen = (owners[:, None] == owners[:, :, None]) | (owners[:, None] == NOBODY)
    return embedded, positions.to(device), seen.tril()[:, None].to(device)


def in_turn(questions: Sequence[Question], most: int) -> list[Question]:
    """At most so many, one of each type in turn, so that no type rules."""
    by_type: dict[str, list[Question]] = {}
    for question in questions:
        by_type.setdefault(question.type, []).append(question)
    chosen: list[Question] = []
    while any(by_type.values()) and len(chosen) < most:
        chosen += [of_type.pop() for of_type in by_type.values() if of_type]
    return chosen[:most]
