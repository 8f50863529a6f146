"""`vitcop eval`: what a pruned model still answers right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import builtin
from ..errors import VitcopError, check_retention, unknown_name
from ..methods import METHODS
from ..shares import read_share
from .choice import METHOD_HELP, PositionsOption, import_methods, read_methods, read_positions
from .common import (
    BATCH,
    TESTBED,
    BatchOption,
    CountingBar,
    DeviceOption,
    DtypeOption,
    FolderOption,
    load,
    one_line_errors,
    progress_bars,
    read_list,
    resumable,
    title_of,
)
from .outputs import JsonOption, check_apart, check_file, check_plot, deliver, make_folder

ALL, SUITES = "all", ("builtin", "photos")
VITCOP = (
    "paper",
    "without stage I",
    "without stage II",
    "without stage III",
    "clusters without space",
    "merge by mean",
    "largest norms",
    "positions keep",
    "cutoff fixed 8",
    "cutoff scale-free",
    "last query",
    "question",
    "saliency",
)
CENSUS = (
    "counted",
    "not counted",
    "by distance",
    "not merged",
    "covered alike",
    "by coverage alone",
    "by saliency alone",
    "by question",
    "numbered anew",
    "then last query",
)
ABLATIONS = {"vitcop-ablations": VITCOP, "census-ablations": CENSUS}
"""Names of `quality.variants`, whose import takes seconds."""
VARIANTS = VITCOP + CENSUS


def eval_(
    suite: Annotated[
        str, typer.Option(help="Questions to ask: builtin, about drawn scenes, or photos, about things on photographs.")
    ] = SUITES[0],
    model: Annotated[
        str, typer.Option(help=f"Folder, Hugging Face name or {TESTBED}.", show_default="the small one in the box")
    ] = str(builtin.MODEL_PATH),
    methods: Annotated[
        str,
        typer.Option(
            help=f"Methods, with commas: {ALL} of vitcop's own; {' or '.join(ABLATIONS)}, which are these with parts "
            f"left out; or each {METHOD_HELP}."
        ),
    ] = ALL,
    retentions: Annotated[
        str, typer.Option(help="Shares of the visual tokens to keep, averaged over the decoder layers, with commas.")
    ] = "1,1/3,2/9,1/9,1/18,1/36",
    positions: PositionsOption = "default",
    questions: Annotated[int, typer.Option(min=1, help="How many, as many of each type.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the scenes: 0 to report, others to choose by.")] = 0,
    batch: BatchOption = BATCH,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    folder: FolderOption = None,
    json_file: JsonOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy against operations into this file.")] = None,
) -> None:
    """Ask questions with known answers under every method, from one retention to the next."""
    with one_line_errors():
        if suite not in SUITES:
            raise VitcopError(unknown_name("suite", suite, SUITES))
        shares = list(dict.fromkeys(read_share(text, "--retentions") for text in read_list("--retentions", retentions)))
        for share in shares:
            check_retention(share)
        many = {ALL: METHODS} | ABLATIONS
        names = read_methods("--methods", methods, words=many, others=VARIANTS)
        numberings = read_positions(positions)
        check_apart({"--json": json_file, "--plot": plot})
        check_file("--json", json_file)
        check_plot(plot)
        if folder is not None:
            make_folder("--folder", folder)
        with resumable(folder), progress_bars() as progress:
            loading = progress.add_task("Loading", total=None)
            from ..quality import Course, Subject, Suite, evaluate

            names, asked = import_methods(names, others=VARIANTS), Suite.of(suite, questions, seed)
            subject = Subject(title_of(model), *load(model, "image", device, dtype))
            progress.remove_task(loading)
            course = Course(names, shares, batch, numberings)
            bar = CountingBar(progress, "Asking")
            evaluation = evaluate(subject, asked, course, bar, folder)
    from ..quality.table import tables

    def draw() -> Any:
        from ..quality.plot import plot as drawn

        return drawn(evaluation)

    deliver(tables(evaluation), evaluation.to_dict(), draw, json_file=json_file, plot=plot)
