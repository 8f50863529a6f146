"""What the page shows of every token is what the report says, and watching changes nothing."""

import re
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from tiny import FAMILIES, METHODS, Prompt, batch

import vitcop
from vitcop.app.observed import Observed
from vitcop.app.stages import fates, stages_as_html
from vitcop.ops.saliency import key_norm

SVG = "{http://www.w3.org/2000/svg}"
ONE = [Prompt(images=1, seed=1)]


def pruned(name, method):
    """Report of a prompt with one image."""
    family = FAMILIES[name]
    model = family.model()
    with torch.no_grad(), vitcop.prune(model, method) as pruning:
        model(**batch(ONE, family=family))
    return pruning.report


@pytest.mark.parametrize("method", [name for name in METHODS if hasattr(METHODS[name], "retention")])
def test_a_method_that_is_watched_chooses_as_ever(method):
    observed = Observed.of(METHODS[method])
    report, alone = pruned("llava", observed), pruned("llava", METHODS[method])
    for stage, stage_alone in zip(report.stages, alone.stages, strict=True):
        assert (stage.layer, stage.kept(), stage.merged()) == (
            stage_alone.layer,
            stage_alone.kept(),
            stage_alone.merged(),
        )
    assert [(seen.layer, len(seen.values)) for seen in observed.seen] == [
        (stage.layer, stage.before[0]) for stage in alone.stages
    ]


class Remembering(vitcop.ViTCoP):
    """Keeps what its stages could see, by itself."""

    tables = []

    def select(self, tokens, budget):
        values = key_norm(tokens.keys) if tokens.layer else tokens.saliency
        self.tables.append(dict(zip(tokens.index.tolist(), values.tolist(), strict=True)))
        return super().select(tokens, budget)


def test_every_token_says_what_it_showed_and_what_became_of_it():
    method = Remembering(retention=0.3)
    observed = Observed.of(method)
    report = pruned("llava", observed)
    assert [seen.values for seen in observed.seen] == method.tables[-3:]
    html = stages_as_html([Image.new("RGB", (60, 60), "red")], report, observed.seen)
    drawn = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
    assert len(drawn) == len(report.stages) == 3
    came = set(range(36))
    for svg, stage in zip(drawn, report.stages, strict=True):
        cells = {
            int(re.match(r"token (\d+):", rect.find(f"{SVG}title").text)[1]): rect for rect in svg.iter(f"{SVG}rect")
        }
        assert set(cells) == set(range(36))
        assert {token for token, rect in cells.items() if rect.get("class") == "kept"} == set(stage.kept())
        for token, rect in cells.items():
            assert (int(rect.get("y")), int(rect.get("x"))) == divmod(token, 6)
            said = rect.find(f"{SVG}title").text.splitlines()
            assert said[0] == f"token {token}: {fates(report)[token]}"
            assert any(line.startswith("saliency: ") for line in said)
            assert any(line.startswith("key norm in layer 1: ") for line in said) == (token in report.stages[0].kept())
    entering, merging, deep = report.stages
    for token, fate in fates(report).items():
        if token in deep.kept():
            assert fate == "alive to the end"
        elif token in merging.kept():
            assert fate.endswith(f"before layer {deep.layer}")
        elif token in entering.kept():
            (target,) = (into for into, members in merging.merged().items() if token in members)
            assert fate == f"merged into token {target} before layer {merging.layer}"
        else:
            assert token in came and fate == "dropped entering the decoder"


def test_tiles_have_a_drawing_each_and_nothing_dropped_is_said():
    report = pruned("llava_next", vitcop.VisionZip(retention=0.5))
    grids = len(report.images[0].shapes)
    html = stages_as_html([Image.new("RGB", (30, 30))] * grids, report)
    assert html.count("<svg") == grids and html.count("<rect") == report.image_lengths[0]
    assert "Nothing was dropped" in stages_as_html([], pruned("llava", vitcop.VisionZip(retention=1.0)))
