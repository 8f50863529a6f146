"""Writes docs/results/visual_key_norm.md and its plot from what `benchmarks/visual_key_norm.py` has stored."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import vitcop
from benchmarks.ranks import HEAD_MEAN, LAST_TOKEN, MEAN_NORM, cells, interval, percent, rows, signed
from vitcop import testbed

DOCS = Path(__file__).parent

TESTBED, UNTRAINED = "trained", "random"
TRAINED = {
    TESTBED: "the testbed",
    "named": "its projector after the naming start alone, no adapter: told what a thing is, and nothing else",
    "unnamed": "begun with a random projector, never told what a thing is, and trained for 540 steps in place of 3,000",
    "seed": "begun as the testbed was, with another seed, and trained for 540 steps in place of 3,000",
}
MODELS = {UNTRAINED: "random projectors, no adapter: `testbed.unadapted()`, and others drawn like it", **TRAINED}
"""What is measured, by the names that data and commands have for it: controls stand first."""

ASKERS = {
    "last": "the last token of the prompt",
    "question": "all text behind the picture",
    "answer": "the right answer's tokens",
}
SHARES = ("1/3", "1/9", "1/18")
BEST, CLS, RECEIVED, ANSWERS = "best possible", "attention of [CLS]", "attention received", "answers"

Readings = dict[str, dict[str, Tensor]]
"""Of each signal, what it is worth in each layer, by name; NaN where a picture says nothing."""

PROSE = """\
# Where do small key norms of visual tokens point?

[key_norm.md](key_norm.md) says what small key norms are worth in text. Here are those of visual tokens, in the
[testbed](../testbed.md): whether they lie on things, and whether they foretell the attention that question and answer pay.
Made by `python -m benchmarks.visual_key_norm` from [visual_key_norm.json](visual_key_norm.json); a test checks that
this page says what that says.

**What a model with a random projector shows as well is no evidence**: to its decoder a picture means nothing, so what its norms agree
with is the decoder's doing. So every figure stands beside that control, and beside others where they were trained.

![AUC, rank correlation and attention held, by layer](../images/visual-key-norm.png)

## What was measured

{models}

* {pictures} pictures of the suite `{suite}`, seed {seed}, {questions} questions: of each picture the mean over its questions, then means
  over pictures, with 95 % bootstrap intervals over pictures. Differences are between models on the same pictures. Of the
  {projectors} random projectors the lowest and the highest mean stand in place of the interval: in one layer, one of them can show nearly anything.
  No interval says what another training would give; that is what `seed` is for.
* Signals, of the keys of a layer: the norm of the mean over KV heads, as ViTCoP takes it; the mean of the heads' norms; and their rival,
  what the last token of the prompt looks at in that layer. In bold: layers {shallow} and {deep}, which stages II and III look at in a decoder of
  this depth.
* AUC: how often a patch that shows a thing, which covers 12 % of it or more, comes before one that does not; 0.5 is chance. "Asked about" are the
  things that a question is about, against all other patches; questions about the background and about what is not there have none.
* Attention is that of the *next* layer, mean over heads: of the last token of the prompt, which chooses the answer's first word; of all text
  behind the picture; and of the right answer's tokens, put behind the prompt whatever the model would say, which choose what comes
  after them, mostly nothing. Means over tokens. Correlations are Spearman's. The mass is the share of that attention, among visual tokens, which
  those tokens hold that a signal puts first; "best possible" knows the attention.

## What it says

Of the testbed, and whether that is more (>), less (<) or not to be told apart (=) from each control, by the interval of the
difference; from `random`, by whether the testbed's interval lies beyond all of them. Means over layers where several stand together; correlations end a layer earlier, since the
last has no next one.

{claims}

None of this says what an answer loses by pruning.

## Do small norms lie on things?

AUC for patches that show a thing, by the norm of the head mean. Rows with a sign are differences.

{things}

By the mean of the heads' norms:

{things_by_mean_norm}

## Do they lie on what is asked about?

They cannot depend on a question that stands behind them. AUC of the head mean:

{asked}

And of the last token's row, which can:

{asked_by_last}

## Do they foretell who is attended to?

Rank correlation of the head mean with the next layer's attention of {last}:

{last_by_norm}

Of {question}:

{question_by_norm}

Of {answer}:

{answer_by_norm}

Of the mean of the heads' norms with the attention of {answer}:

{answer_by_mean_norm}

And of the last token's row with it:

{answer_by_last}

## How much of the attention do they hold?

Random choice holds as much as its share of the tokens.

{masses}

## Layer by layer

{layers}

## The encoder

The same for all models, since it is not trained: AUC of what [CLS] looks at, and of the attention that patches receive from all, mean over heads.
In bold: the layer that feeds the projector, which vitcop looks at.

{encoder}
"""  # noqa: E501


def mass(asker: str, share: str) -> str:
    """What the mass of a share of the tokens is called."""
    return f"{asker} {share}"


class Store:
    """What was measured, in a file: whole thousandths, null for NaN.

    Attributes:
        setting: questions and versions; None before anything is measured.
        encoder: of its layers, (pictures, layers).
        models: of the decoder of each model, (pictures, layers), or (projectors, layers) of `UNTRAINED`.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "results" / "visual_key_norm.json"
        values = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        self.setting: dict[str, Any] | None = values.get("setting")
        self.encoder: Readings = _mapped(values.get("encoder", {}), _read)
        self.models = {name: _mapped(readings, _read) for name, readings in values.get("models", {}).items()}

    def write(self) -> None:
        """Keep it, also for who goes on from here."""
        models = {name: _mapped(readings, _plain) for name, readings in self.models.items()}
        values = {"setting": self.setting, "encoder": _mapped(self.encoder, _plain), "models": models}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(values, separators=(",", ":")) + "\n", encoding="utf-8")


def _mapped(readings: dict[str, dict[str, Any]], how: Callable[[Any], Any]) -> dict[str, dict[str, Any]]:
    return {name: {kind: how(values) for kind, values in kinds.items()} for name, kinds in readings.items()}


def _read(rows: list[list[int | None]]) -> Tensor:
    return torch.tensor([[math.nan if value is None else value / 1000 for value in row] for row in rows])


def _plain(values: Tensor) -> list[list[int | None]]:
    return [[None if math.isnan(value) else round(1000 * value) for value in row] for row in values.tolist()]


def page(store: Store) -> str:
    """The page, of a store in which something is."""
    assert store.setting is not None
    parts = _Parts(store)
    return PROSE.format(
        models=parts.models(),
        pictures=len(store.encoder[CLS]["things"]),
        suite=store.setting["suite"],
        seed=store.setting["seed"],
        questions=store.setting["questions"],
        projectors=len(parts.of(UNTRAINED, HEAD_MEAN, "things")),
        shallow=parts.shallow,
        deep=parts.deep,
        claims=parts.claims(),
        things=parts.table(HEAD_MEAN, "things"),
        things_by_mean_norm=parts.table(MEAN_NORM, "things"),
        asked=parts.table(HEAD_MEAN, "asked"),
        asked_by_last=parts.table(LAST_TOKEN, "asked"),
        last_by_norm=parts.table(HEAD_MEAN, "last"),
        question_by_norm=parts.table(HEAD_MEAN, "question"),
        answer_by_norm=parts.table(HEAD_MEAN, "answer"),
        answer_by_mean_norm=parts.table(MEAN_NORM, "answer"),
        answer_by_last=parts.table(LAST_TOKEN, "answer"),
        masses="\n\n".join(f"Of {said}:\n\n{parts.masses(asker)}" for asker, said in ASKERS.items()),
        layers="\n\n".join(f"`{name}`, {MODELS[name]}:\n\n{parts.layers(name)}" for name in parts.measured),
        encoder=_encoder(store.encoder),
        **ASKERS,
    )


def _table(head: Sequence[str], *columns: Sequence[str]) -> str:
    return f"| {' | '.join(head)} |\n{'| --- ' * len(head)}|\n{rows(*columns)}"


def _range(values: Tensor) -> Tensor:
    """Mean over projectors, the first axis, and the lowest and the highest, in front."""
    return torch.stack([values.mean(0), values.amin(0), values.amax(0)])


def _borders(model: str) -> Callable[[Tensor], Tensor]:
    return _range if model == UNTRAINED else interval


def _form(kind: str) -> str:
    return "+.2f" if kind in ASKERS else ".2f"


class _Parts:
    """Parts of the page that are about the decoder.

    Attributes:
        measured: models, in the order of `MODELS`.
        controls: those that the testbed stands beside.
        shallow, deep: layers whose keys stages II and III look at.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.measured = [name for name in MODELS if name in store.models]
        self.controls = [name for name in self.measured if name != TESTBED]
        self.count = self.of(UNTRAINED, HEAD_MEAN, "things").shape[1]
        _, shallow, deep = vitcop.ViTCoP().budgets(testbed.config().image_seq_length, self.count)
        self.shallow, self.deep = shallow - 1, deep - 1

    def of(self, model: str, signal: str, kind: str) -> Tensor:
        """(pictures or projectors, layers), of those pictures that say something."""
        values = self.store.models[model][signal][kind]
        return values[~values.isnan().any(1)]

    def stretches(self, end: int) -> dict[str, slice]:
        """Layers that are told apart, up to an end, by name."""
        edges = sorted({0, 1, self.shallow, self.shallow + 1, self.deep, self.deep + 1, end})
        names = [f"{first}" if stop == first + 1 else f"{first} to {stop - 1}" for first, stop in pairwise(edges)]
        return {self.marked(name): slice(*pair) for name, pair in zip(names, pairwise(edges), strict=True)}

    def marked(self, name: str) -> str:
        """A layer, in bold if it is one that a stage looks at."""
        return f"**{name}**" if name in (f"{self.shallow}", f"{self.deep}") else name

    def means(self, model: str, signal: str, kind: str) -> Tensor:
        """(pictures or projectors, stretches)."""
        values = self.of(model, signal, kind)
        return torch.stack([values[:, part].mean(1) for part in self.stretches(values.shape[1]).values()], 1)

    def models(self) -> str:
        """What they are, and how much of what is asked they answer."""
        right = [
            percent(self.of(name, ANSWERS, "right"), borders=_borders(name))[0]
            if name in self.measured
            else "not measured"
            for name in MODELS
        ]
        return _table(["", "model", "answers right"], [f"`{name}`" for name in MODELS], list(MODELS.values()), right)

    def table(self, signal: str, kind: str) -> str:
        """Of all models in stretches of layers, and by how much the testbed differs from its controls."""
        end = self.of(UNTRAINED, signal, kind).shape[1]
        own = {name: self.means(name, signal, kind) for name in self.measured}
        lines = [[name, *cells(own[name], _form(kind), _borders(name))] for name in self.measured]
        if TESTBED in own:
            lines += [
                [f"{TESTBED} - {name}", *signed(own[TESTBED] - own[name])]
                for name in self.controls
                if name != UNTRAINED
            ]
            if signal != HEAD_MEAN:
                gain = own[TESTBED] - self.means(TESTBED, HEAD_MEAN, kind)
                lines.append([f"{TESTBED}, more than by the head mean", *signed(gain)])
        return _table(["keys of layer", *self.stretches(end)], *zip(*lines, strict=True))

    def claims(self) -> str:
        """What the testbed shows, beside each control."""
        if TESTBED not in self.measured:
            return "The testbed is not measured."
        asked = {"things": "AUC, things", "asked": "AUC, asked about"}
        asked |= {asker: f"correlation, {said}" for asker, said in ASKERS.items()}
        lines = []
        for kind, said in asked.items():
            for signal in (HEAD_MEAN, MEAN_NORM, LAST_TOKEN):
                own = self.means(TESTBED, signal, kind)
                verdicts = [self.verdicts(name, signal, kind) for name in self.controls]
                beside = [", ".join(each) for each in zip(*verdicts, strict=True)]
                lines.append([said, signal, *map("{}: {}".format, cells(own, _form(kind)), beside)])
        return _table(["", "signal", *self.stretches(self.count)], *zip(*lines, strict=True))

    def verdicts(self, control: str, signal: str, kind: str) -> list[str]:
        """In each stretch, how the testbed stands to a control."""
        own, other = (self.means(name, signal, kind) for name in (TESTBED, control))
        if control == UNTRAINED:
            (_, low, high), (_, lowest, highest) = interval(own), _range(other)
            above, below = low - highest, high - lowest
        else:
            _, above, below = interval(own - other)
        signs = (above > 0).int() - (below < 0).int()
        return [f"{'=><'[sign]} {control}" for sign in signs.tolist()]

    def masses(self, asker: str) -> str:
        """Of all models, in the layers of both stages."""
        columns = [(layer, signal) for layer in (self.shallow, self.deep) for signal in (HEAD_MEAN, LAST_TOKEN, BEST)]
        lines = [
            [
                name,
                share,
                *(
                    percent(self.of(name, signal, mass(asker, share))[:, [layer]], borders=_borders(name))[0]
                    for layer, signal in columns
                ),
            ]
            for name in self.measured
            for share in SHARES
        ]
        head = [f"{self.marked(f'{layer}')}, {signal}" for layer, signal in columns]
        return _table(["", "share", *head], *zip(*lines, strict=True))

    def layers(self, model: str) -> str:
        """Of one model, every layer; of the last there is no next one."""
        columns = {
            "AUC, things": (HEAD_MEAN, "things"),
            "by mean of norms": (MEAN_NORM, "things"),
            "AUC, asked about": (HEAD_MEAN, "asked"),
            "by last token": (LAST_TOKEN, "asked"),
            "correlation, last token": (HEAD_MEAN, "last"),
            "question": (HEAD_MEAN, "question"),
            "answer": (HEAD_MEAN, "answer"),
            "answer, by mean of norms": (MEAN_NORM, "answer"),
            "answer, by last token": (LAST_TOKEN, "answer"),
        }
        numbers = [self.marked(f"{layer}") for layer in range(self.count)]
        shown = []
        for signal, kind in columns.values():
            own = cells(self.of(model, signal, kind), _form(kind), _borders(model))
            shown.append(own + ["-"] * (self.count - len(own)))
        return _table(["keys of layer", *columns], numbers, *shown)


def _encoder(encoder: Readings) -> str:
    columns = {
        f"{signal}, {said}": encoder[signal][kind]
        for signal in (CLS, RECEIVED)
        for kind, said in (("things", "things"), ("asked", "asked about"))
    }
    count = encoder[CLS]["things"].shape[1]
    feeding = count + testbed.config().vision_feature_layer  # of hidden states, of which the first is no layer's
    numbers = [f"**{layer}**" if layer == feeding else f"{layer}" for layer in range(count)]
    shown = [cells(values[~values.isnan().any(1)], ".2f") for values in columns.values()]
    return _table(["layer", *columns], numbers, *shown)


def plot(store: Store) -> Figure:
    """Every model: whether norms lie on things, whether they foretell attention, and what of it they hold."""
    parts, figure = _Parts(store), Figure(figsize=(15, 4.8), layout="constrained")
    panels = figure.subplots(1, 3)
    third = mass("answer", SHARES[0])
    labels = {
        "things": "AUC for patches that show a thing",
        "answer": "rank correlation with the answer's attention",
        third: "the answer's attention held by a third",
    }
    for panel, (kind, label), chance in zip(panels, labels.items(), (0.5, 0, 1 / 3), strict=True):
        for number, name in enumerate(parts.measured):
            mean, low, high = _borders(name)(parts.of(name, HEAD_MEAN, kind))
            panel.plot(mean, color=f"C{number}", marker=".", label=f"{name}, small norms")
            panel.fill_between(range(len(mean)), low, high, color=f"C{number}", alpha=0.2, linewidth=0)
        panel.axhline(chance, color="grey", linewidth=0.8, linestyle=":")
        panel.set_xlabel("layer of the keys" if kind == "things" else "layer of the keys; attention is of the next")
        panel.set_ylabel(label)
        for layer in (parts.shallow, parts.deep):
            panel.axvline(layer, color="grey", linewidth=0.8, linestyle="--")
    shown = TESTBED if TESTBED in parts.measured else UNTRAINED
    for signal, style in ((LAST_TOKEN, "-."), (BEST, "--")):
        values = parts.of(shown, signal, third).mean(0)
        panels[-1].plot(values, color="black", linewidth=1, linestyle=style, label=f"{shown}, {signal}")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def write(folder: Path) -> None:
    """Page and plot, from what is stored in the folder."""
    store = Store(folder)
    (folder / "images").mkdir(exist_ok=True)
    (folder / "results" / "visual_key_norm.md").write_text(page(store), encoding="utf-8")
    plot(store).savefig(folder / "images" / "visual-key-norm.png", dpi=120)
