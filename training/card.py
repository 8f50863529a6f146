"""The model card: what the model was trained on and what it scored."""

from training import guard
from training.evaluate import PICTURES, Scores
from vitcop.quality.suite import WORLDS
from vitcop.scenes import SIZE
from vitcop.scenes.world import EMOJI, HELD_OUT_PAIRS, MARKS, TEST_PHOTOS, TRAIN_PHOTOS

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# The model in the box

A LLaVA of {parameters:.1f} million parameters that vitcop carries along, so that pruning can be
tried, tested and measured at once, offline and on a CPU. It has the parts of LLaVA-1.5: a CLIP
vision transformer with a [CLS] token ({size} x {size} pixels, {patches} patches, features of the
last layer but one), a two-layer projector, and a Llama of {layers} thin layers.

**It shows the method and guards against regressions. It is no evidence about 7B models.**

## What it can do

It answers short English questions about the generated scenes of `vitcop.scenes`: whether something
is there, how many there are, which colour a shape has, on which side it lies, what is left of,
right of, above or below what, what a sign says, which colour a small mark has ({marks}), and what
the background is. It knows {vocabulary} tokens and nothing of the world.

Measured on {questions} questions of the test split, one per prompt, greedy decoding. The split's
photos ({test_photos}) and some pairs of colour and shape ({pairs})
are in no training scene and no training question. *Guessing* is the best that one can do without
the picture: always the most frequent answer that fits the wording.

| question | asked | right | guessing |
| --- | ---: | ---: | ---: |
{rows}

The test suite watches the answers to {guarded} questions like these (`tests/quality/test_guard.py`). Right are

| | |
| --- | ---: |
{guard_rows}

`vitcop eval` leaves out {not_learned}: the model has hardly learned them, or not at all, so that
pruning could not make it worse.

How well the scores that pruning goes by tell patches of objects from background, as area under the
curve over {pictures} test scenes (1 is perfect, 0.5 is chance, and less says that the score puts
background first). Attention of [CLS] in the layer whose features are used: **{cls_area:.2f}**, and of
the marks, which no caption names, {cls_area_of_marks:.2f}. Smallness of the keys in each decoder layer:

| layer | norm of the mean over heads (ViTCoP's) | mean of the heads' norms |
| ---: | ---: | ---: |
{key_rows}

## How it was trained

On scenes drawn by a fixed seed, none of which came twice, on two CPU cores:

{recipe}

`python -m training` in the repository runs this recipe. Two things in it are done for the sake of
pruning. The encoder has to list, from [CLS], the objects of a scene, but neither marks nor
background, as captions do. And the decoder begins with large keys for patches of nothing
(`training.train.offset_keys`), because pretrained language models have small keys where they
attend ([docs/results/key_norm.md](../../../../docs/results/key_norm.md)) and a model trained from
nothing for an hour has large ones: the areas of its first version, without this beginning, were
0.07 to 0.15 in the layers that were looked at. So **that small keys are of objects in this model is
what it was given, and no finding**.

## What its data are

- Emoji: {emoji}. Drawn from Noto Color Emoji by Google, SIL Open Font License 1.1.
- Photos behind the objects: {train_photos} for training, {test_photos} for the test. They come with
  scikit-image, which lists them as public domain, CC0 or free of known restrictions.
- Shapes, marks, signs (in the font built into Pillow) and textures are drawn by the code.
"""


def _words(names: tuple[str, ...]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)


def write_card(scores: Scores, recipe: list[str], parameters: int, vocabulary: int, patches: int) -> str:
    """The card as Markdown. ``recipe`` has a line for each stage of the training."""
    rows = [
        f"| {name} | {score.asked} | {score.right:.2f} | {score.guessed:.2f} |"
        for name, score in scores.accuracy.items()
    ]
    key_rows = [
        f"| {layer} | {areas.head_mean:.2f} | {areas.heads:.2f} |" for layer, areas in enumerate(scores.key_areas)
    ]
    return CARD.format(
        parameters=parameters / 1e6,
        size=SIZE,
        patches=patches,
        layers=len(scores.key_areas),
        vocabulary=vocabulary,
        questions=sum(score.asked for score in scores.accuracy.values()),
        marks=_words(MARKS),
        not_learned=", ".join(WORLDS["builtin"].not_learned),
        test_photos=_words(TEST_PHOTOS),
        train_photos=_words(TRAIN_PHOTOS),
        pairs=", ".join(sorted(" ".join(pair) for pair in HELD_OUT_PAIRS)),
        emoji=_words(EMOJI),
        rows="\n".join(rows),
        key_rows="\n".join(key_rows),
        pictures=PICTURES,
        guarded=guard.QUESTIONS,
        guard_rows="\n".join(guard.accuracy_lines(scores.guarded)),
        cls_area=scores.cls_area,
        cls_area_of_marks=scores.cls_area_of_marks,
        recipe="\n".join(f"- {line}" for line in recipe),
    )
