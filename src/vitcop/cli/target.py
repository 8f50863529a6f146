"""`vitcop plan --quality`: what may be dropped for answers to stay, by questions of one's own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import typer

from ..errors import VitcopError
from ..inputs.chat import MAX_NEW_TOKENS
from ..shares import read_share
from .choice import import_methods, read_methods, read_positions
from .common import BATCH, CountingBar, check_weights, load, progress_bars, resumable, title_of
from .outputs import check_file, deliver, make_folder

CANDIDATES = "vitcop,census,visionzip,cdpruner,pyramiddrop"
"""As in `quality.plan`, whose import takes seconds."""


@dataclass(frozen=True)
class Inquiry:
    """Options of a plan that asks a model, and what they are unless they are given."""

    questions_file: Path | None = None
    methods: str = CANDIDATES
    positions: str = "default"
    seed: int = 0
    batch: int = BATCH
    max_new_tokens: int = MAX_NEW_TOKENS
    device: str | None = None
    dtype: str | None = None
    folder: Path | None = None

    @property
    def given(self) -> list[str]:
        """Those that are anything else."""
        changed = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        return [f"--{name.replace('_', '-')}" for name in changed]


def plan_quality(quality: str, model: str, inquiry: Inquiry, json_file: Path | None) -> None:
    """Ask the model, show what was chosen and whether it holds, and exit with 1 if it does not."""
    share, file = read_share(quality, "--quality"), inquiry.questions_file
    if file is None or not file.is_file():
        raise VitcopError(f"--quality needs a file of questions, given by --questions-file; got {file}.")
    check_weights(model)
    names, numberings = read_methods("--methods", inquiry.methods), read_positions(inquiry.positions)
    check_file("--json", json_file, [file])
    if inquiry.folder is not None:
        make_folder("--folder", inquiry.folder)
    with resumable(inquiry.folder), progress_bars() as progress:
        loading = progress.add_task("Loading", total=None)
        from ..quality import Course, Subject, plan_quality, read_questions
        from ..quality.plan import RETENTIONS
        from ..quality.target import split

        names, asked = import_methods(names), read_questions(file)
        split(asked, share, inquiry.seed)  # before gigabytes are loaded for too few
        subject = Subject(title_of(model), *load(model, "image", inquiry.device, inquiry.dtype))
        progress.remove_task(loading)
        plan = plan_quality(
            subject,
            asked,
            share,
            Course(names, RETENTIONS, inquiry.batch, numberings),
            CountingBar(progress, "Asking"),
            inquiry.folder,
            seed=inquiry.seed,
            max_new_tokens=inquiry.max_new_tokens,
        )
    from ..quality.plan_table import tables

    deliver(tables(plan), plan.to_dict(), json_file=json_file)
    if not plan.holds:
        raise typer.Exit(1)
