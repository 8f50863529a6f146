"""The report says what happened, and its costs are those that are counted."""

import json

import torch
from families.base import NUM_LAYERS
from tiny import LLAVA, RAGGED, TOKENS_PER_IMAGE, batch

import vitcop


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
