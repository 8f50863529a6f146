"""`vitcop report`: what other commands wrote, on one page that opens offline."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import html
from ..errors import VitcopError
from ..figures import figure
from .common import one_line_errors
from .outputs import check_file, writing_errors

PAGE_KINDS = (".html", ".htm")
MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".svg": "image/svg+xml",
}
"""Of pictures that browsers show."""


def report(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="What vitcop run, compare, plan, bench and eval wrote by --json, and pictures, such as those of "
            f"--overlay, --sheet and --plot ({', '.join(MEDIA_TYPES)}), in the order in which they shall stand."
        ),
    ],
    page: Annotated[Path, typer.Option("--html", help="Write the page to this file.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Of the page.")] = "vitcop",
) -> None:
    """Put what other commands wrote, and pictures, on one page that opens offline."""
    with one_line_errors():
        if page.suffix.lower() not in PAGE_KINDS:
            raise VitcopError(f"--html needs one of the extensions {', '.join(PAGE_KINDS)}; got {page.name!r}.")
        for file in files:
            if not file.is_file():
                raise VitcopError(f"There is no file {file}.")
        check_file("--html", page, files)
        # What is no text, as half a character of a broken file, must not cost a page that stands there.
        written = html.page(title, [_section(file) for file in files]).encode("utf-8", "replace")
        with writing_errors("--html", page):
            page.write_bytes(written)


def _section(file: Path) -> tuple[str, str]:
    """Heading and HTML of what a file holds."""
    if (kind := MEDIA_TYPES.get(file.suffix.lower())) is not None:
        return file.stem, html.picture(file.read_bytes(), kind, file.name)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        for key, section in SECTIONS.items():
            if isinstance(values, dict) and key in values:
                return section(values)
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise VitcopError(
            f"{file} is not what a vitcop command writes by --json, nor a picture that browsers show, by its name: "
            f"{', '.join(MEDIA_TYPES)}."
        ) from error
    raise VitcopError(
        f"{file} is neither a picture nor what vitcop run, compare, plan, bench or eval writes by --json."
    )


def _of_run(values: Mapping[str, Any]) -> tuple[str, str]:
    from ..report import figures_of

    report, images = values["report"], values["report"]["images"]
    total, layers = sum(image["tokens"] for image in images), report["num_layers"]
    alive = [total] * layers
    for number, stage in enumerate(images[0]["stages"]):
        left = sum(image["stages"][number]["after"] for image in images)
        alive[stage["layer"] :] = [left] * (layers - stage["layer"])
    answers = [(values["method"], values["answer"])]
    if "dense_answer" in values:
        answers.append(("dense", values["dense_answer"]))
    if "seconds_to_first_token" in values:
        answers += [
            (f"first token, {name}", f"{1000 * seconds:,.1f} ms")
            for name, seconds in values["seconds_to_first_token"].items()
        ]
    costs = [tuple(report[name][kind] for kind in ("dense", "pruned")) for name in ("prefill_flops", "kv_cache_bytes")]
    return values["question"], html.table(["", "answer"], answers, numbers=2) + figures_of(alive, total, *costs)


def _of_compare(values: Mapping[str, Any]) -> tuple[str, str]:
    rows = [
        [row["name"], "-", "-", "-", row["refusal"]]
        if "refusal" in row
        else [
            row["name"],
            f"{row['average_retention']:.1%}",
            figure(row["prefill_flops"] / 1e9),
            figure(row["kv_cache_bytes"] / 1e6),
            row["answer"],
        ]
        for row in values["rows"]
    ]
    head = ["", "average", "prefill, GFLOP", "KV cache, MB", "answer"]
    answered = [row for row in values["rows"] if "refusal" not in row]
    drawn = html.bars(
        "Decoder prefill",
        [(row["name"], row["prefill_flops"], f"{figure(row['prefill_flops'] / 1e9)} GFLOP") for row in answered],
    )
    return values["question"], html.table(head, rows, numbers=len(head)) + drawn


def _of_plan(values: Mapping[str, Any]) -> tuple[str, str]:
    flops, held = values["prefill_flops"], values["kv_cache_bytes"]
    parts = [[part, *(figure(flops[kind][part] / 1e9) for kind in ("dense", "pruned"))] for part in flops["dense"]]
    drawn = html.bars("KV cache", [(kind, held[kind], f"{figure(held[kind] / 1e6)} MB") for kind in held])
    head = ["GFLOP until the first token", "dense", values["method"]]
    return f"Plan of {values['method']}", html.table(head, parts) + drawn


def _of_bench(values: Mapping[str, Any]) -> tuple[str, str]:
    from ..bench.results import Benchmark
    from ..bench.table import tables

    return f"Speed of {values['setting']['model']}", "".join(map(html.of_terminal, tables(Benchmark.from_dict(values))))


def _of_eval(values: Mapping[str, Any]) -> tuple[str, str]:
    from ..quality.results import Evaluation
    from ..quality.table import tables

    shown = tables(Evaluation.from_dict(values))
    return f"Quality of {values['setting']['model']}", "".join(map(html.of_terminal, shown))


Section = Callable[[Mapping[str, Any]], tuple[str, str]]
SECTIONS: dict[str, Section] = {
    "report": _of_run,
    "blocks": _of_bench,
    "cases": _of_eval,
    "rows": _of_compare,
    "flops_share": _of_plan,
}
"""By what tells the commands' values apart."""
