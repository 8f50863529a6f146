"""Every method numbers what the entrance leaves as it is told to."""

from dataclasses import dataclass, replace

import pytest
import torch
from oracle import alive_columns, masked_dense_logits, pruned_logits
from tiny import KEEP_ONLY, LLAVA, METHODS, ONE_IMAGE, RAGGED, assert_same_logits, batch

import vitcop
from vitcop.engine.positions import count_positions

COMPACT = {
    *("vitcop", "visionzip", "divprune", "cdpruner", "hiprune", "vispruner", "vscan", "mmtok"),
    *("scope", "score", "uniformgrid", "averagepool", "earlyvitcop"),
}
LATER = {"fastv", "pyramiddrop", "sparsevlm", "dart", "knorm"}
"""Drop nothing at the entrance."""
CASES = [(name, positions) for name in METHODS for positions in ("keep", "compact")]


@pytest.mark.parametrize(("name", "positions"), CASES)
def test_what_enters_is_numbered_as_the_setting_says(name, positions):
    model, inputs, seen = LLAVA.model(), batch(RAGGED), []
    places = count_positions(inputs["attention_mask"])

    def spy(rotary, args, kwargs):
        seen.append(args[1] if len(args) > 1 else kwargs["position_ids"])

    hook = model.get_decoder().rotary_emb.register_forward_pre_hook(spy, with_kwargs=True)
    with torch.no_grad(), vitcop.prune(model, replace(METHODS[name], positions=positions)) as pruning:
        model(**inputs, position_ids=places)
        columns = pruning.report.positions_at(0)
    hook.remove()
    for row, own in enumerate(columns):
        real = own >= 0
        expected = places[row, own[real]] if positions == "keep" else torch.arange(int(real.sum()))
        assert torch.equal(seen[-1][row, real], expected)  # what is turned before is no prompt, but a probe
    assert ((columns >= 0).sum() == inputs["attention_mask"].sum()) == (name in LATER)


@pytest.mark.parametrize(("name", "positions"), CASES)
def test_either_numbering_is_exact_and_the_same_alone(name, positions):
    model, inputs, method = LLAVA.model(), batch(RAGGED), replace(METHODS[name], positions=positions)
    report, pruned = pruned_logits(model, inputs, method)
    if name in KEEP_ONLY:
        assert not alive_columns(report, inputs["input_ids"].shape)[-1].all()
        for after, before in zip(pruned, masked_dense_logits(model, inputs, method, report), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    for row, prompt in enumerate(RAGGED):
        if prompt.images:
            _, alone = pruned_logits(model, batch([prompt]), method)
            assert_same_logits(torch.stack([step[row] for step in pruned[1:]]), torch.stack([s[0] for s in alone[1:]]))


@pytest.mark.parametrize("name", sorted(LATER))
def test_numbers_are_the_same_bit_by_bit_where_nothing_is_dropped_at_the_entrance(name):
    found = []
    for positions in ("keep", "compact"):
        method = replace(METHODS[name], positions=positions)
        found.append(torch.cat(pruned_logits(LLAVA.model(), batch([ONE_IMAGE]), method)[1][1:]))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", vitcop.METHODS)
def test_json_that_says_nothing_of_positions_means_the_method_as_it_was(name):
    method = vitcop.Pruner.from_dict({"method": name, "retention": 0.25})
    assert method == vitcop.METHODS[name](0.25) == vitcop.METHODS[name](0.25, positions=method.default_positions)
    assert method.positions == method.to_dict()["positions"] == ("compact" if name in COMPACT else "keep")
    other = {"compact": "keep", "keep": "compact"}[method.positions]
    assert replace(method, positions=other) != method


def test_what_is_at_its_default_is_not_shown():
    assert repr(vitcop.VisionZip()) == "VisionZip()"
    assert repr(vitcop.VisionZip(0.25, positions="compact")) == "VisionZip(retention=0.25)"
    assert repr(vitcop.FastV(layer=3, positions="compact")) == "FastV(layer=3, positions='compact')"
    assert repr(vitcop.Stage(vitcop.KNorm(), 4, 0.2)) == "Stage(selector=KNorm(), layer=4, share=0.2)"


def test_a_method_of_ones_own_has_the_default_of_its_base():
    @dataclass(frozen=True)
    class Front(vitcop.ScorePruner, vitcop.EntrancePruner):
        score = None

    @dataclass(frozen=True)
    class Behind(vitcop.EntrancePruner, vitcop.ScorePruner):
        default_positions = "keep"
        score = None

    assert (Front().positions, Behind().positions, Front(positions="keep").positions) == ("compact", "keep", "keep")
    with pytest.raises(vitcop.VitcopError, match="default of Silent is its `default_positions`"):

        class Silent(vitcop.EntrancePruner):
            positions = "keep"

    with pytest.raises(vitcop.VitcopError, match="default of Annotated is its `default_positions`"):

        class Annotated(vitcop.EntrancePruner):  # whose first argument it would become
            positions: str = "keep"
