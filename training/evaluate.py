"""Measures the model on the test split, as users run it: one question in each prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from training import guard
from training.model import SIDE, make_processor
from training.vocabulary import prompt
from vitcop.quality import Suite
from vitcop.quality.reader import Reader
from vitcop.scenes import scene
from vitcop.scenes.questions import TYPES

PICTURES = 100  # for what is measured per patch
BATCH = 25


@dataclass(frozen=True)
class Accuracy:
    asked: int
    right: float  # shares of ``asked``
    guessed: float


@dataclass(frozen=True)
class KeyAreas:
    """How well small norms of the keys of one decoder layer tell objects from background."""

    head_mean: float  # of the mean over heads, as ViTCoP takes it
    heads: float  # the mean over heads of each one's norm


@dataclass(frozen=True)
class Scores:
    accuracy: dict[str, Accuracy]  # by type of question
    cls_area: float  # areas under the curve: does the score tell objects from background
    cls_area_of_marks: float  # and marks
    key_areas: list[KeyAreas]  # by decoder layer
    guarded: dict[str, list[str]]  # answers by method; see ``training.guard``


def accuracy(model: LlavaForConditionalGeneration, suite: Suite) -> dict[str, Accuracy]:
    """Shares of right answers by type, beside guessing the most frequent answer that fits."""
    given = Reader(model, make_processor(), suite.cases, BATCH).read(None).answers

    def share_right(answers: Sequence[str], kind: str) -> tuple[int, float]:
        right = [a == case.answer for a, case in zip(answers, suite.cases, strict=True) if case.type == kind]
        return len(right), sum(right) / len(right)

    return {kind: Accuracy(*share_right(given, kind), share_right(suite.guesses(), kind)[1]) for kind in TYPES}


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a random positive scores above a random negative; both arrays are flat."""
    _, group = np.unique(scores, return_inverse=True)
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    ranks = (np.bincount(group, ranks) / np.bincount(group))[group]  # ties share their rank
    hits, misses = positive.sum(), (~positive).sum()
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


@torch.inference_mode()
def patch_areas(model: LlavaForConditionalGeneration) -> tuple[float, float, list[KeyAreas]]:
    """Areas under the curve of the scores that ViTCoP prunes by, against the masks of the scenes.

    First the attention of [CLS] in the layer whose features the decoder gets, summed over heads: of
    objects, then of marks, against patches of neither. Then the smallness of the keys of each
    decoder layer, of objects and marks.
    """
    processor = make_processor()
    model.set_attn_implementation("eager")
    of_objects: list[float] = []
    of_marks: list[float] = []
    of_keys: list[list[tuple[float, float]]] = []
    for seed in range(PICTURES):
        drawn = scene(seed, "test")
        owner = drawn.patch_owner(SIDE).ravel()
        small = np.array([False, *(item.small for item in drawn.items)])[owner]
        empty = owner == 0
        inputs = processor(images=drawn.picture, text=prompt(""), return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
        attention = model.model.vision_tower(inputs.pixel_values, output_attentions=True).attentions[-2]
        attended = attention[0, :, 0, 1:].sum(0).float().numpy()
        of_objects.append(area_under_curve(attended[~small], (~empty & ~small)[~small]))
        if small.any():
            of_marks.append(area_under_curve(attended[small | empty], small[small | empty]))
        cache = model.model(**inputs, use_cache=True).past_key_values
        of_picture = inputs.input_ids[0] == model.config.image_token_id
        keys = [layer.keys[0, :, of_picture].float() for layer in cache.layers]
        norms = [(key.mean(0).norm(dim=-1), key.norm(dim=-1).mean(0)) for key in keys]
        of_keys.append([tuple(area_under_curve(-norm.numpy(), ~empty) for norm in pair) for pair in norms])
    model.set_attn_implementation("sdpa")
    areas = [KeyAreas(*map(float, pair)) for pair in np.mean(of_keys, axis=0)]
    return float(np.mean(of_objects)), float(np.mean(of_marks)), areas


def evaluate(model: LlavaForConditionalGeneration, questions: int) -> Scores:
    """All scores of the model, with its weights as they are shipped, in bfloat16's precision."""
    model = model.to(torch.bfloat16).float().eval()
    return Scores(accuracy(model, Suite.of("builtin", questions, types=TYPES)), *patch_areas(model), guard.ask(model))
