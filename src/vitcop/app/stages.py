"""What became of every visual token, stage by stage, as HTML that says more where the pointer is."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO

from PIL import Image

from ..figures import figure
from ..pictures.drawing import Color, colors_of, groups_of_stages
from ..report import Report, StageReport
from .observed import Seen

SIDE, QUALITY = 640, 85  # pixels of the longer side of a picture behind tokens, and how well it is kept
STYLE = """\
.vitcop-stages { display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: .8rem; }
.vitcop-stages figure { margin: 0; }
.vitcop-stages figcaption { font-size: .85rem; }
.vitcop-stages svg { width: 100%; display: block; margin-bottom: .3rem; }
.vitcop-stages rect { fill-opacity: 0; stroke-width: .1; }
.vitcop-stages .dropped { fill: #999; fill-opacity: .82; }
.vitcop-stages .merged { fill-opacity: .45; }
.vitcop-stages rect:hover { stroke: #000; stroke-width: .12; }
.vitcop-stages line { stroke-width: .09; }
.vitcop-stages circle { stroke: #fff; stroke-width: .06; }
"""
LEGEND = (
    "Grey: dropped. Outlined: in a cluster, each of which has a colour. Tinted: merged into the token with the dot, to "
    "which a line leads. Point at a token for its saliency, key norm, cluster and fate. What is dropped before a layer "
    "has been read by all layers before that one."
)


def stages_as_html(pictures: Sequence[Image.Image], report: Report, seen: Sequence[Seen] = ()) -> str:
    """The one image of a prompt, after each stage.

    Args:
        pictures: what each of its grids covers.
        report: of the prefill that read it.
        seen: what its stages could see.
    """
    behind = [_as_data(picture) for picture in pictures]
    groups = groups_of_stages(report, 0)
    colors = _as_css(colors_of(token for stage in groups for token in stage))
    titles = _titles(report, seen)
    columns = []
    for stage, of_stage in zip(report.stages, groups, strict=True):
        kept = set(stage.kept())
        member_of = {member: token for token, members in of_stage.items() for member in members}
        drawn = "".join(
            _grid(number, shape, behind[number], report, kept, member_of, colors, stage.clusters(), titles)
            for number, shape in enumerate(report.images[0].shapes)
        )
        said = f"{stage.where}: {stage.after[0]} of {report.image_lengths[0]} tokens"
        columns.append(f"<figure><figcaption>{said}</figcaption>{drawn}</figure>")
    if not columns:
        return "<p>Nothing was dropped.</p>"
    return f"<style>{STYLE}</style><div class='vitcop-stages'>{''.join(columns)}</div><p><small>{LEGEND}</small></p>"


def fates(report: Report) -> dict[int, str]:
    """What became of each visual token of the one image."""
    found: dict[int, str] = {}
    for stage in report.stages:
        merged = {member: token for token, members in stage.merged().items() for member in members if member != token}
        kept = set(stage.kept())
        for token in _came(stage):
            if token not in kept:
                into = f"merged into token {merged[token]}" if token in merged else "dropped"
                found[token] = f"{into} {stage.where}"
    return {token: found.get(token, "alive to the end") for token in range(report.image_lengths[0])}


def _titles(report: Report, seen: Sequence[Seen]) -> dict[int, str]:
    """Of each token what is to be read where the pointer is."""
    clusters: dict[int, int] = {}
    for stage in report.stages:
        clusters |= stage.clusters()
    lines = {token: [f"token {token}: {fate}"] for token, fate in fates(report).items()}
    for each in seen:
        where = f" in layer {each.layer - 1}" if each.layer else ""
        for token, value in each.values.items():
            lines[token].append(f"{each.signal}{where}: {figure(value)}")
    for token, cluster in clusters.items():
        lines[token].append(f"cluster {cluster}")
    return {token: escape("\n".join(said)) for token, said in lines.items()}


def _grid(
    number: int,
    shape: tuple[int, int],
    picture: str,
    report: Report,
    kept: set[int],
    member_of: Mapping[int, int],
    colors: Mapping[int, str],
    clusters: Mapping[int, int],
    titles: Mapping[int, str],
) -> str:
    """One grid after one stage."""
    rows, columns = shape
    places = {token: cell[1:] for token, cell in enumerate(report.images[0].cells) if cell[0] == number}
    outlines = _as_css(colors_of(sorted(set(clusters.values()))))
    cells, joints = [], []
    for token, (row, column) in places.items():
        into = member_of.get(token)
        kind = "kept" if token in kept else "dropped" if into is None else "merged"
        fill = f" fill='{colors[into]}'" if kind == "merged" and into is not None else ""
        if kind == "kept" and token in clusters:
            fill = f" stroke='{outlines[clusters[token]]}'"
        cells.append(
            f"<rect class='{kind}' x='{column}' y='{row}' width='1' height='1'{fill}>"
            f"<title>{titles[token]}</title></rect>"
        )
        if kind == "merged" and into in places:
            end = places[into]
            joints.append(
                f"<line x1='{column + 0.5}' y1='{row + 0.5}' x2='{end[1] + 0.5}' y2='{end[0] + 0.5}' "
                f"stroke='{colors[into]}' pointer-events='none'/>"
            )
    dots = "".join(
        f"<circle cx='{places[token][1] + 0.5}' cy='{places[token][0] + 0.5}' r='.2' fill='{colors[token]}' "
        "pointer-events='none'/>"
        for token in set(member_of.values())
        if token in places
    )
    return (
        f"<svg viewBox='0 0 {columns} {rows}' xmlns='http://www.w3.org/2000/svg'>"
        f"<image href='{picture}' width='{columns}' height='{rows}' preserveAspectRatio='none'/>"
        f"{''.join(cells)}{''.join(joints)}{dots}</svg>"
    )


def _as_data(picture: Image.Image) -> str:
    """A picture as an address that holds it, no larger than it is shown."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    written = BytesIO()
    small.save(written, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"


def _came(stage: StageReport) -> list[int]:
    tokens: list[int] = stage.index.tolist()
    return tokens


def _as_css(colors: Mapping[int, Color]) -> dict[int, str]:
    return {number: "#{:02x}{:02x}{:02x}".format(*color) for number, color in colors.items()}
