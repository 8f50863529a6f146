"""The report says what happened, and its costs are those that are counted."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from drawn import report_of, stage
from families.base import NUM_LAYERS
from tiny import FAMILIES, LLAVA, RAGGED, TOKENS_PER_IMAGE, batch, ragged

import vitcop
from vitcop import StageReport
from vitcop.figures import figure
from vitcop.models.grids import Grids


def test_report_accounts_for_every_token():
    model = LLAVA.model()
    with torch.no_grad(), vitcop.prune(model, vitcop.ViTCoP(retention=0.3)) as pruning:
        cache = model(**batch(RAGGED)).past_key_values
    report = pruning.report
    assert report.image_lengths == (TOKENS_PER_IMAGE,) * 3 and report.rows == (0, 0, 2)
    assert [image.shapes for image in report.images] == [((6, 6),)] * 3
    for image in range(3):
        entering, merging, deep = report.stages
        assert set(merging.kept(image)) <= set(entering.kept(image)) and set(deep.kept(image)) <= set(
            merging.kept(image)
        )
        groups = merging.merged(image)
        members = [token for group in groups.values() for token in group]
        # Stage 2 loses nothing: each token is kept as it is or is in exactly one group.
        alone = set(merging.kept(image)) - set(groups)
        assert sorted([*members, *alone]) == entering.kept(image)
        assert set(groups) <= set(merging.kept(image)) and not deep.merged(image)
        assert sorted(merging.clusters(image)) == entering.kept(image)
        alive = report.visual_tokens(image)
        assert report.average_retention(image) == sum(alive) / (NUM_LAYERS * TOKENS_PER_IMAGE)
    for layer in range(NUM_LAYERS):
        assert cache.layers[layer].keys.shape[2] == max(report.tokens(row)[layer] for row in range(3))
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["images"][2]["stages"][1]["kept"] == merging.kept(2)
    assert str(report).splitlines()[0] == report.summary and str(report).count("\n") == 4
    assert repr(report) == "Report(vitcop: 28.8% of 108 visual tokens, 3 stages)"
    assert repr(merging).startswith("StageReport(before layer 2: ") and len(repr(merging)) < 100


def cells_of(html: str) -> list[list[str]]:
    """Of each row of the first table."""
    table = ElementTree.fromstring(html).find("table")
    return [[cell.text or "" for cell in row] for row in table.iter("tr")]


def test_a_notebook_shows_a_table_that_no_name_can_break():
    entering = stage(0, index=[0, 1, 2, 3, 4, 5], keep=[0, 2, 3])
    report = replace(report_of(Grids.full((2, 3)), entering, stage(2, index=[0, 2, 3], keep=[1])), method="<b>&")
    html = report._repr_html_()
    assert ElementTree.fromstring(html).find("table/caption").text == report.summary and report.summary.startswith(
        "<b>&: "
    )
    assert cells_of(html) == [
        ["", "row", "tokens", "from layer 0", "from layer 2", "average"],
        ["image 0", "0", "6", "3", "1", "33.3%"],
    ]
    said = [title.text for title in ElementTree.fromstring(html).iter("title")]
    assert said[:3] == ["layer 0: 3 of 6", "layer 1: 3 of 6", "layer 2: 1 of 6"]
    assert said[-2:] == [f"{figure(held / 1e6)} MB" for held in report.kv_cache_bytes]


@pytest.mark.parametrize("images", [8, 64])
def test_plain_values_take_work_in_proportion_to_the_images(images, monkeypatch):
    read = []
    as_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: read.append(tensor.numel()) or as_list(tensor))
    lengths, kept = (6,) * images, (3,) * images
    merging = StageReport(
        layer=0,
        before=lengths,
        after=kept,
        index=torch.arange(6).repeat(images),
        keep=(6 * torch.arange(images)[:, None] + torch.tensor([0, 2, 4])).flatten(),
        merge=torch.arange(3 * images).repeat_interleave(2),
        cluster=None,
    )
    report = replace(
        report_of(Grids.full((2, 3)), merging),
        images=(Grids.full((2, 3)),) * images,
        modalities=("image",) * images,
        rows=(0,) * images,
    )
    plain = report.to_dict()["images"]
    assert plain[-1]["stages"][0] == {
        "layer": 0, "before": 6, "after": 3, "kept": [0, 2, 4],
        "merged": {"0": [0, 1], "2": [2, 3], "4": [4, 5]},
    }  # fmt: skip
    assert sum(read) <= images * (3 + 6 + 6) + 6  # what is kept, what is merged into what, the size of the one grid


def test_a_batch_is_the_sum_of_its_rows():
    """By hand: what the schedule leaves of each image, and the text beside it."""
    model, method = LLAVA.model(), vitcop.ViTCoP(retention=0.3)
    schedule = method.budgets(TOKENS_PER_IMAGE, NUM_LAYERS)
    alive = [schedule[max(first for first in schedule if first <= layer)] for layer in range(NUM_LAYERS)]
    reports = []
    with torch.no_grad(), vitcop.prune(model, method) as pruning:
        for prompts in (RAGGED, [RAGGED[0], RAGGED[2]], [RAGGED[0]], [RAGGED[2]]):
            model(**batch(prompts))
            reports.append(pruning.report)
    whole, together, *rows = reports
    for row, prompt in enumerate(RAGGED):
        text = len(prompt.tokens(LLAVA)) - prompt.images * TOKENS_PER_IMAGE
        assert whole.tokens(row) == [text + prompt.images * count for count in alive]
    assert whole.visual_tokens(2) == alive
    assert f" {sum(alive) / (NUM_LAYERS * TOKENS_PER_IMAGE):.1%} of {3 * TOKENS_PER_IMAGE} " in whole.summary
    for costs in ("prefill_flops", "kv_cache_bytes"):
        dense, pruned = zip(*(getattr(report, costs) for report in rows), strict=True)
        assert getattr(together, costs) == (sum(dense), sum(pruned))
    with pytest.raises(IndexError, match=f"no layer {NUM_LAYERS}"):
        whole.positions_at(NUM_LAYERS)


def test_a_token_that_took_nobody_in_has_no_group():
    entering = stage(2, index=[3, 5, 8], keep=[0, 2], merge=[0, 1, 1])
    assert entering.merged() == {8: [5, 8]}


def test_what_is_written_is_what_can_be_asked():
    """Of images of several sizes in several rows."""
    family = FAMILIES["llava_next"]
    model = family.model()
    with torch.no_grad(), vitcop.prune(model, vitcop.ViTCoP(retention=0.3)) as pruning:
        model(**batch(ragged(family), family=family))
    report = pruning.report
    plain, (dense, pruned) = report.to_dict(), report.prefill_flops
    assert plain["prefill_flops"] == {"dense": dense, "pruned": pruned}
    assert f"{figure(pruned / 1e9)} of {figure(dense / 1e9)} GFLOP" in report.summary
    assert len(set(report.image_lengths)) > 1
    for number, (image, line) in enumerate(zip(plain["images"], str(report).splitlines()[2:], strict=True)):
        assert image["row"] == report.rows[number]
        assert image["average_retention"] == report.average_retention(number)
        for written, ran in zip(image["stages"], report.stages, strict=True):
            assert (written["before"], written["after"]) == (ran.before[number], ran.after[number])
            assert str(ran.after[number]) in line.split()[4:]
