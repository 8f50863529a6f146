"""Writes docs/results/visual_key_norm.md and its plot from what `benchmarks/visual_key_norm.py` has stored."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import vitcop
from benchmarks.ranks import HEAD_MEAN, LAST_TOKEN, MEAN_NORM, interval, percent, rows, signed, unsigned

DOCS = Path(__file__).parent

TESTBED, UNTRAINED = "trained", "random"
TRAINED = {
    TESTBED: "the testbed",
    "named": "its projector after the naming start alone, no adapter: told what a thing is, never asked",
    "unnamed": "trained as it, but begun with a random projector: never told",
    "seed": "trained as it, with another seed",
}
MODELS = {UNTRAINED: "a random projector, no adapter: `testbed.unadapted()`", **TRAINED}
"""What is measured, by the names that data and commands have for it: controls stand first."""

ASKERS = {
    "last": "the last token of the prompt",
    "question": "all text behind the picture",
    "answer": "the right answer's tokens",
}
SHARES = ("1/3", "1/9", "1/18")
BEST, CLS, RECEIVED, ANSWERS = "best possible", "attention of [CLS]", "attention received", "answers"

Stored = dict[str, dict[str, list[list[int | None]]]]
"""Of each signal, by name of what it is worth, in thousandths: pictures, layers. None where nothing is asked about."""

PROSE = """\
# Where do small key norms of visual tokens point?

[key_norm.md](key_norm.md) says what small key norms are worth in text. Here are those of visual tokens, in the
[testbed](../testbed.md): whether they lie on things, and whether they foretell the attention that question and answer pay.
Made by `python -m benchmarks.visual_key_norm` from [visual_key_norm.json](visual_key_norm.json); a test checks that
this page says what that says.

**What a model with a random projector shows as well is no evidence**: to it a picture means nothing, so what its norms agree with is
the decoder's doing. So every figure stands beside that control, and beside others where they were trained.

![AUC, rank correlation and attention held, by layer](../images/visual-key-norm.png)

## What was measured

{models}

* {pictures} pictures of the suite `{suite}`, seed {seed}, {questions} questions; of each picture the mean over its questions, then means over
  pictures, with 95 % bootstrap intervals over pictures. Differences are between models on the same pictures.
  No interval says anything about another training but the row that is one.
* Signals, of the keys of a layer: the norm of the mean over KV heads, as ViTCoP takes it; the mean of the heads' norms; and
  their rival, what the last token of the prompt looks at in that layer. In bold: layers {shallow} and {deep}, which stages II and III
  look at in a decoder of this depth.
* AUC: how often a patch that shows a thing (12 % of it or more are covered) comes before one that does not; 0.5 is chance. "Asked about"
  are the things that the question is about, against all other patches; questions about the background or about what is not there have none.
* Attention is that of the *next* layer, mean over heads: of {last}, {question}, {answer}. These read the right
  answer whatever the model would say, and are not what chose it: its first word is chosen by the last token of the prompt.
  Correlations are Spearman's. The mass is the share of that attention, among visual tokens, which those tokens hold that a signal puts
  first; "best possible" knows the answer.

## What it says

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

of {question}:

{question_by_norm}

of {answer}:

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


def plain(values: Tensor) -> list[int | None]:
    """As they are stored."""
    return [None if math.isnan(value) else round(1000 * value) for value in values.tolist()]


class Store:
    """What was measured, in a file.

    Attributes:
        setting: questions and versions; None before anything is measured.
        encoder: readings of its layers.
        models: readings of the decoder of each.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "results" / "visual_key_norm.json"
        values = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        self.setting: dict[str, Any] | None = values.get("setting")
        self.encoder: Stored = values.get("encoder", {})
        self.models: dict[str, Stored] = values.get("models", {})

    def write(self) -> None:
        """Keep it, also for who goes on from here."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        values = {"setting": self.setting, "encoder": self.encoder, "models": self.models}
        self.file.write_text(json.dumps(values, separators=(",", ":")) + "\n", encoding="utf-8")

    def of(self, model: str, signal: str, kind: str) -> Tensor:
        """(pictures, layers), of those pictures that say something."""
        return _tensor(self.models[model][signal][kind])


def _tensor(stored: list[list[int | None]]) -> Tensor:
    return torch.tensor([picture for picture in stored if None not in picture], dtype=torch.float64) / 1000


def page(store: Store) -> str:
    """The page, of a store in which something is."""
    assert store.setting is not None
    measured, parts = list(store.models), _Parts(store)
    return PROSE.format(
        models=_models(store),
        pictures=len(store.models[UNTRAINED][ANSWERS]["right"]),
        suite=store.setting["suite"],
        seed=store.setting["seed"],
        questions=store.setting["questions"],
        shallow=parts.shallow,
        deep=parts.deep,
        claims="\n".join(f"* {claim}" for claim in parts.claims()),
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
        layers="\n\n".join(f"`{name}`, {MODELS[name]}:\n\n{parts.layers(name)}" for name in MODELS if name in measured),
        encoder=_encoder(store.encoder),
        **ASKERS,
    )


def _models(store: Store) -> str:
    names = list(MODELS)
    right = [percent(store.of(name, ANSWERS, "right"))[0] if name in store.models else "not measured" for name in names]
    return _table(["", "model", "answers right"], [f"`{name}`" for name in names], list(MODELS.values()), right)


def _table(head: Sequence[str], *columns: Sequence[str]) -> str:
    return f"| {' | '.join(head)} |\n{'| --- ' * len(head)}|\n{rows(*columns)}"


class _Parts:
    """Parts of the page that are about the decoder.

    Attributes:
        shallow, deep: layers whose keys stages II and III look at.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        visual = 256
        self.count = store.of(UNTRAINED, HEAD_MEAN, "things").shape[1]
        _, shallow, deep = vitcop.ViTCoP().budgets(visual, self.count)
        self.shallow, self.deep = shallow - 1, deep - 1

    def stretches(self, end: int) -> dict[str, slice]:
        """Layers that are told apart, up to an end."""
        edges = (0, 1, self.shallow, self.shallow + 1, self.deep, self.deep + 1, end)
        found = {}
        for first, stop in pairwise(edges):
            if stop == first + 1:
                found[f"**{first}**" if first in (self.shallow, self.deep) else f"{first}"] = slice(first, stop)
            elif stop > first:
                found[f"{first} to {stop - 1}"] = slice(first, stop)
        return found

    def means(self, model: str, signal: str, kind: str) -> tuple[list[str], Tensor]:
        """Names of stretches, and (pictures, stretches)."""
        values = self.store.of(model, signal, kind)
        stretches = self.stretches(values.shape[1])
        return list(stretches), torch.stack([values[:, part].mean(1) for part in stretches.values()], 1)

    def table(self, signal: str, kind: str) -> str:
        """Of all models in stretches of layers, and by how much the testbed differs from its controls."""
        form = signed if kind in ASKERS else unsigned
        names, _ = self.means(UNTRAINED, signal, kind)
        own = {name: self.means(name, signal, kind)[1] for name in self.store.models}
        lines = [[name, *(form(own[name]) if name in own else ["not measured"] * len(names))] for name in MODELS]
        if TESTBED in own:
            lines += [
                [f"{TESTBED} - {name}", *signed(own[TESTBED] - own[name])]
                for name in MODELS
                if name in own and name != TESTBED
            ]
        return _table(["keys of layer", *names], *zip(*lines, strict=True))

    def masses(self, asker: str) -> str:
        """Of all models, in the layers of both stages."""
        signals, layers = (HEAD_MEAN, LAST_TOKEN, BEST), (self.shallow, self.deep)
        head = ["", "share", *(f"**{layer}**, {signal}" for layer in layers for signal in signals)]
        lines = []
        for name in MODELS:
            for share in SHARES:
                if name in self.store.models:
                    found = {signal: self.store.of(name, signal, mass(asker, share)) for signal in signals}
                    cells = [percent(found[signal][:, [layer]])[0] for layer in layers for signal in signals]
                    lines.append([name, share, *cells])
        return _table(head, *zip(*lines, strict=True))

    def layers(self, model: str) -> str:
        """Of one model, every layer; of the last there is no next one."""
        marked = (self.shallow, self.deep)
        numbers = [f"**{layer}**" if layer in marked else f"{layer}" for layer in range(self.count)]
        columns = {
            "AUC, things": (HEAD_MEAN, "things"),
            "of mean of norms": (MEAN_NORM, "things"),
            "AUC, asked about": (HEAD_MEAN, "asked"),
            "of last token": (LAST_TOKEN, "asked"),
            "correlation, last": (HEAD_MEAN, "last"),
            "question": (HEAD_MEAN, "question"),
            "answer": (HEAD_MEAN, "answer"),
            "answer, mean of norms": (MEAN_NORM, "answer"),
            "answer, last token": (LAST_TOKEN, "answer"),
        }
        cells = []
        for signal, kind in columns.values():
            own = (signed if kind in ASKERS else unsigned)(self.store.of(model, signal, kind))
            cells.append(own + ["-"] * (self.count - len(own)))
        return _table(["keys of layer", *columns], numbers, *cells)

    def claims(self) -> Iterator[str]:
        """What the testbed shows in the layers of both stages, beside its controls."""
        if TESTBED not in self.store.models:
            yield "The testbed is not measured."
            return
        yield self.claim("Small norms and things", HEAD_MEAN, "things")
        yield self.claim("Small norms and what is asked about", HEAD_MEAN, "asked")
        for asker, said in ASKERS.items():
            yield self.claim(f"Small norms and the attention of {said}", HEAD_MEAN, asker)
        yield self.rival("The last token's row against small norms, by the attention of the right answer", "answer")
        yield self.rival("The last token's row against small norms, by what is asked about", "asked")

    def claim(self, topic: str, signal: str, kind: str) -> str:
        """A sentence for each layer, with every control that was measured."""
        own, form = self.store.of(TESTBED, signal, kind), signed if kind in ASKERS else unsigned
        said = []
        for layer in (self.shallow, self.deep):
            against = [
                f"{_verdict(difference)} `{name}` ({signed(difference)[0]})"
                for name in MODELS
                if name in self.store.models and name != TESTBED
                for difference in [(own - self.store.of(name, signal, kind))[:, [layer]]]
            ]
            said.append(f"in layer {layer} {form(own[:, [layer]])[0]}, {', '.join(against)}")
        return f"**{topic}**: {'; '.join(said)}."

    def rival(self, topic: str, kind: str) -> str:
        """How the testbed's last token does beside its norms."""
        last, norms = (self.store.of(TESTBED, signal, kind) for signal in (LAST_TOKEN, HEAD_MEAN))
        differences = [(last - norms)[:, [layer]] for layer in (self.shallow, self.deep)]
        said = [
            f"in layer {layer} {_verdict(difference)} they ({signed(difference)[0]})"
            for layer, difference in zip((self.shallow, self.deep), differences, strict=True)
        ]
        return f"**{topic}**: {'; '.join(said)}."


def _verdict(difference: Tensor) -> str:
    """What (pictures, 1) differences say."""
    _, low, high = interval(difference)[:, 0].tolist()
    return "more than" if low > 0 else "less than" if high < 0 else "not told apart from"


def _encoder(encoder: Stored) -> str:
    columns = {
        f"{signal}, {said}": _tensor(encoder[signal][kind])
        for signal in (CLS, RECEIVED)
        for kind, said in (("things", "things"), ("asked", "asked about"))
    }
    count = next(iter(columns.values())).shape[1]
    numbers = [f"**{layer}**" if layer == count - 2 else f"{layer}" for layer in range(count)]
    return _table(["layer", *columns], numbers, *map(unsigned, columns.values()))


def plot(store: Store) -> Figure:
    """Every model: whether norms lie on things, whether they foretell attention, and what of it they hold."""
    parts, figure = _Parts(store), Figure(figsize=(15, 4.8), layout="constrained")
    panels = figure.subplots(1, 3)
    kinds = {
        "things": "AUC of small norms for patches that show a thing",
        "answer": "rank correlation with the answer's attention",
        mass("answer", "1/3"): "the answer's attention held by a third",
    }
    for panel, (kind, label), chance in zip(panels, kinds.items(), (0.5, 0, 1 / 3), strict=True):
        for number, name in enumerate(name for name in MODELS if name in store.models):
            mean, low, high = interval(store.of(name, HEAD_MEAN, kind))
            panel.plot(mean, color=f"C{number}", marker=".", label=f"{name}, small norms")
            panel.fill_between(range(len(mean)), low, high, color=f"C{number}", alpha=0.2, linewidth=0)
        panel.axhline(chance, color="grey", linewidth=0.8, linestyle=":")
        panel.set_xlabel("layer of the keys" if kind == "things" else "layer of the keys; attention is of the next")
        panel.set_ylabel(label)
        for layer in (parts.shallow, parts.deep):
            panel.axvline(layer, color="grey", linewidth=0.8, linestyle="--")
    shown = TESTBED if TESTBED in store.models else UNTRAINED
    for signal, style in ((LAST_TOKEN, "-."), (BEST, "--")):
        held = store.of(shown, signal, kind)
        panels[-1].plot(held.mean(0), color="black", linewidth=1, linestyle=style, label=f"{shown}, {signal}")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def write(folder: Path) -> None:
    """Page and plot, from what is stored in the folder."""
    store = Store(folder)
    (folder / "images").mkdir(exist_ok=True)
    (folder / "results" / "visual_key_norm.md").write_text(page(store), encoding="utf-8")
    plot(store).savefig(folder / "images" / "visual-key-norm.png", dpi=120)
