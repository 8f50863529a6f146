"""The model card: what the model was trained on and what it scored."""

from training.evaluate import PICTURES, Scores
from vitcop.scenes.world import EMOJI, HELD_OUT_PAIRS, TEST_PHOTOS, TRAIN_PHOTOS

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# The model in the box

A LLaVA of {parameters:.1f} million parameters that vitcop carries along, so that pruning can be
tried and tested at once, offline and on a CPU. It has the parts of LLaVA-1.5: a CLIP vision
transformer with a [CLS] token (96 x 96 pixels, 144 patches, features of the last layer but one), a
two-layer projector, and a Llama of 20 thin layers.

**It shows the method and guards against regressions. It is no evidence about 7B models.**

## What it can do

It answers short English questions about the generated scenes of this project's `training/`:
whether something is there, how many there are, which colour a shape has, what is left of, right of,
above or below what, and what a sign says. It knows {vocabulary} tokens and nothing of the world.

Measured on the test split, one question per prompt, greedy decoding. Its seeds are new, and so are
its photos ({test_photos}) and some pairs of colour and shape ({pairs}), which no training scene and
no training question contains. *Guessing* is the best that one can do without the picture: always
the most frequent answer that fits the wording.

| question | asked | right | guessing |
| --- | ---: | ---: | ---: |
{rows}

A type of question that it answers no better than guessing is one that it has not learned.

How well the scores that ViTCoP prunes by tell patches of objects from background, as area under the
curve over {pictures} test scenes (1 is perfect, 0.5 is
chance, and less says that the score puts background first: objects have the *larger* keys then):

| score | area |
| --- | ---: |
| attention of [CLS] in the layer whose features are used | {cls_area:.2f} |
{key_rows}

## How it was trained

From random weights, on scenes drawn by a fixed seed, none of which came twice, on two CPU cores:

{recipe}

`python -m training` in the repository runs this recipe.

## What its data are

- Emoji: {emoji}. Drawn from Noto Color Emoji by Google, SIL Open Font License 1.1.
- Photos behind the objects: {train_photos} for training, {test_photos} for the test. They come with
  scikit-image, which lists them as public domain, CC0 or free of known restrictions, and names no
  source for the moon.
- Shapes, signs (in the font built into Pillow) and textures are drawn by the code.
"""


def _words(names: tuple[str, ...]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)


def write_card(scores: Scores, recipe: list[str], parameters: int, vocabulary: int) -> str:
    """The card as Markdown. ``recipe`` has a line for each stage of the training."""
    rows = [
        f"| {name} | {score.asked} | {score.right:.2f} | {score.guessed:.2f} |"
        for name, score in scores.accuracy.items()
    ]
    key_rows = [
        f"| smallness of the key's norm in decoder layer {layer} | {area:.2f} |"
        for layer, area in scores.key_areas.items()
    ]
    return CARD.format(
        parameters=parameters / 1e6,
        vocabulary=vocabulary,
        test_photos=_words(TEST_PHOTOS),
        train_photos=_words(TRAIN_PHOTOS),
        pairs=", ".join(sorted(" ".join(pair) for pair in HELD_OUT_PAIRS)),
        emoji=_words(EMOJI),
        rows="\n".join(rows),
        key_rows="\n".join(key_rows),
        pictures=PICTURES,
        cls_area=scores.cls_area,
        recipe="\n".join(f"- {line}" for line in recipe),
    )
