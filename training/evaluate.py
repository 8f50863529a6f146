"""Measures the model on the test split, as users run it: one question in each prompt."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from training.model import SIDE, make_processor
from training.vocabulary import prompt
from vitcop.scenes import scene
from vitcop.scenes.questions import AXES, TYPES, Question

KEY_LAYERS = (1, 7, 13, 19)
PICTURES = 100  # for what is measured per patch


@dataclass(frozen=True)
class Accuracy:
    asked: int
    right: float  # shares of ``asked``
    guessed: float


@dataclass(frozen=True)
class Scores:
    accuracy: dict[str, Accuracy]  # by type of question
    cls_area: float  # areas under the curve: does the score tell objects from background
    key_areas: dict[int, float]  # by decoder layer


@torch.inference_mode()
def answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    picture: Image.Image,
    questions: list[str],
) -> list[str]:
    """The model's answer to each question about the picture; no question sees another."""
    inputs = processor(
        images=[picture] * len(questions),
        text=[prompt(question) for question in questions],
        padding=True,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs.to(model.device, model.dtype))
    return processor.batch_decode(tokens[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def _family(question: Question) -> tuple[str, ...]:
    """Answers that fit the question's wording, so that guessing starts from no less than that."""
    for pair in (("yes", "no"), *AXES):
        if question.answer in pair:
            return pair
    return ("number",) if question.answer.isdigit() else ("word",)


def accuracy(model: LlavaForConditionalGeneration, scenes: int) -> dict[str, Accuracy]:
    """Shares of right answers by type, beside guessing the most frequent answer that fits."""
    processor = make_processor()
    right: Counter[str] = Counter()
    truth: dict[str, dict[tuple[str, ...], Counter[str]]] = {name: {} for name in TYPES}
    for seed in range(scenes):
        drawn = scene(seed, "test")
        given = answers(model, processor, drawn.picture, [q.text for q in drawn.questions])
        for question, answer in zip(drawn.questions, given, strict=True):
            right[question.type] += answer == question.answer
            family = truth[question.type].setdefault(_family(question), Counter())
            family[question.answer] += 1
    result = {}
    for name, families in truth.items():
        asked = sum(family.total() for family in families.values())
        guessed = sum(max(family.values()) for family in families.values())
        result[name] = Accuracy(asked, right[name] / asked, guessed / asked)
    return result


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a random positive scores above a random negative; both arrays are flat."""
    _, group = np.unique(scores, return_inverse=True)
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    ranks = (np.bincount(group, ranks) / np.bincount(group))[group]  # ties share their rank
    hits, misses = positive.sum(), (~positive).sum()
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


@torch.inference_mode()
def patch_areas(model: LlavaForConditionalGeneration) -> tuple[float, dict[int, float]]:
    """Areas under the curve of the two scores that ViTCoP prunes by, against the object masks.

    First the attention of [CLS] in the layer whose features the decoder gets, summed over heads;
    then, for some decoder layers, the smallness of a key: the L2 norm of its mean over the heads.
    """
    processor = make_processor()
    model.set_attn_implementation("eager")
    by_cls: list[float] = []
    by_key: dict[int, list[float]] = {layer: [] for layer in KEY_LAYERS}
    for seed in range(PICTURES):
        drawn = scene(seed, "test")
        objects = drawn.patch_owner(SIDE).ravel() > 0
        inputs = processor(images=drawn.picture, text=prompt(""), return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
        encoder = model.model.vision_tower
        attention = encoder(inputs.pixel_values, output_attentions=True).attentions[-2]
        by_cls.append(area_under_curve(attention[0, :, 0, 1:].sum(0).float().numpy(), objects))
        cache = model.model(**inputs, use_cache=True).past_key_values
        of_picture = inputs.input_ids[0] == model.config.image_token_id
        for layer, areas in by_key.items():
            keys = cache.layers[layer].keys[0, :, of_picture].float().mean(0)
            areas.append(area_under_curve(-keys.norm(dim=-1).numpy(), objects))
    model.set_attn_implementation("sdpa")
    return float(np.mean(by_cls)), {layer: float(np.mean(a)) for layer, a in by_key.items()}


def evaluate(model: LlavaForConditionalGeneration, scenes: int) -> Scores:
    """All scores of the model, with its weights as they are shipped, in bfloat16's precision."""
    model = model.to(torch.bfloat16).float().eval()
    cls_area, key_areas = patch_areas(model)
    return Scores(accuracy(model, scenes), cls_area, key_areas)
