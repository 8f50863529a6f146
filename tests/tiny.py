"""Prompts for the tiny models, and the methods that the shared tests run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from families import FAMILIES
from families.base import IMAGE, PAD, VIDEO, TinyFamily, Visual
from torch import Tensor

import vitcop
from vitcop.ops.saliency import key_norm
from vitcop.ops.segments import smallest_per_segment

LLAVA = FAMILIES["llava"]
TOKENS_PER_IMAGE = 36  # of LLAVA

# Random weights are ready to say a placeholder, which no prompt may hold without an image.
GREEDY = {"do_sample": False, "max_new_tokens": 5, "suppress_tokens": [IMAGE, VIDEO]}


@dataclass(frozen=True)
class Prompt:
    """Text of a few random tokens around each of some images and videos, whose sizes differ as far as they can.

    Where a family takes videos alone, they take the place of the images.
    """

    images: int
    seed: int
    videos: int = 0

    def visuals(self, family: TinyFamily) -> list[Visual]:
        kinds = list(family.kinds[:1]) * self.images + ["video"] * self.videos
        if self.seed % 2:
            kinds.reverse()
        return [
            family.visual(kind, (self.seed + n) % family.sizes, self.seed * 10 + n, alone=self.images == 1)
            for n, kind in enumerate(kinds)
        ]

    def tokens(self, family: TinyFamily) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed)
        tokens = [1]
        for visual in self.visuals(family):
            tokens += self._text(generator) + family.tokens(visual)
        return tokens + self._text(generator)

    def _text(self, generator: torch.Generator) -> list[int]:
        count = int(torch.randint(2, 6, (), generator=generator))
        return torch.randint(2, 50, (count,), generator=generator).tolist()


ONE_IMAGE = Prompt(images=1, seed=1)
RAGGED = (Prompt(images=2, seed=2), Prompt(images=0, seed=3), ONE_IMAGE)


def ragged(family: TinyFamily) -> tuple[Prompt, ...]:
    """A batch of all that a family takes: several images, none, one; a video, alone and beside an image."""
    videos = (Prompt(0, seed=4, videos=1), Prompt(1, seed=5, videos=1)) if len(family.kinds) > 1 else ()
    return (*RAGGED, *videos)


def batch(prompts: Sequence[Prompt], padding: str = "left", family: TinyFamily = LLAVA) -> dict[str, Tensor]:
    """Model inputs for a batch; no mask where no row is padded."""
    rows = [prompt.tokens(family) for prompt in prompts]
    width = max(map(len, rows))

    def pad(row: list[int], value: int) -> list[int]:
        missing = [value] * (width - len(row))
        return missing + row if padding == "left" else row + missing

    ids = torch.tensor([pad(row, PAD) for row in rows])
    inputs = {"input_ids": ids} | family.token_kinds(ids)
    if min(map(len, rows)) < width:
        inputs["attention_mask"] = torch.tensor([pad([1] * len(row), 0) for row in rows])
    visuals = [prompt.visuals(family) for prompt in prompts]
    return inputs | (family.inputs(visuals) if any(visuals) else {})


@dataclass(frozen=True)
class ThreeStages(vitcop.Pruner):
    """Drops at the entrance and in two layers and merges nothing, by saliency and by key norm."""

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        shallow = max(2, first_layer)
        return {0: num_tokens * 2 // 3, shallow: num_tokens // 3, 5: max(1, num_tokens // 8)}

    def select(self, tokens: vitcop.VisualTokens, budget: tuple[int, ...]) -> vitcop.Selection:
        score = -tokens.saliency if tokens.layer == 0 else key_norm(tokens.keys)
        return vitcop.Selection(smallest_per_segment(score, tokens.lengths, budget))


def merged(keep: Tensor, lengths: Sequence[int], budget: Sequence[int]) -> vitcop.Selection:
    """Keeps rows, and merges all others of their image into them in turn, in groups of unequal size."""
    slot = torch.full((sum(lengths),), -1).index_copy(0, keep, torch.arange(len(keep)))
    firsts = torch.tensor(budget).cumsum(0) - torch.tensor(budget)
    turn = torch.cat([first + torch.arange(n) % kept for first, n, kept in zip(firsts, lengths, budget, strict=True)])
    stay = torch.cat([torch.full((n,), kept == n) for n, kept in zip(lengths, budget, strict=True)])
    return vitcop.Selection(keep, torch.where(stay, -1, torch.where(slot < 0, turn, slot)))


def assert_same_logits(logits: Tensor, expected: Tensor) -> None:
    """Up to rounding, which goes by the largest logits: other kernels, and padding, add up in another order.

    A logit near zero is off by 1e-5 where the largest is 4 (seen: 1.6e-5); a token too many moves them by 1e-2.
    """
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


ENGINE = {"three_stages": ThreeStages(), "three_stages_compact": ThreeStages(positions="compact")}
"""Methods that try out what the engine can do; it must do the same for all the others."""

METHODS = (
    ENGINE
    | {name: method(retention=0.5) for name, method in vitcop.METHODS.items()}
    | {
        "vitcop": vitcop.ViTCoP(retention=0.3),
        "earlyvitcop": vitcop.EarlyViTCoP(retention=0.3),
        "vitcop_last_query": vitcop.ViTCoP(retention=0.3, deep_signal="last_query"),
        "vitcop_question": vitcop.ViTCoP(retention=0.3, shallow_signal="question", deep_signal="question"),
        "vitcop_calibrated": vitcop.ViTCoP(retention=0.3, deep_signal="last_query", calibrate="size"),
        "visionzip_calibrated": vitcop.VisionZip(retention=0.5, calibrate="size"),
        "census_uncalibrated": vitcop.Census(retention=0.5, calibrate="none"),
        "pipeline": vitcop.Pipeline(
            [vitcop.Stage(vitcop.VisionZip(), 0, 0.6), vitcop.Stage(vitcop.KNorm(), 4, 0.2)], retention=0.4
        ),
    }
)
MERGING = {
    "pipeline",
    "vitcop_last_query",
    "vitcop_question",
    "vitcop_calibrated",
    "visionzip_calibrated",
    "census_uncalibrated",
} | {name for name, method in vitcop.METHODS.items() if method.described.merges}
READING_TEXT = {
    "vitcop_last_query",
    "vitcop_question",
    "vitcop_calibrated",
    "fastv",
    "pyramiddrop",
    "sparsevlm",
    "deft",
    "hawk",
    "dart",
    "cdpruner",
    "vscan",
    "mmtok",
}
"""What these keep of a picture changes with what is said behind it."""
KEEP_ONLY = {name: method for name, method in METHODS.items() if name not in MERGING}
