"""A token that stands for several counts as many times."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from families.base import IMAGE, NUM_LAYERS
from oracle import masked_dense_logits, pruned_logits
from tiny import FAMILIES, LLAVA, ONE_IMAGE, TOKENS_PER_IMAGE, Prompt, ThreeStages, batch, merged, ragged
from torch import Tensor
from transformers import PreTrainedModel

import vitcop
from vitcop import LayerPruner, Selection
from vitcop.engine.calibration import Counts
from vitcop.models import FAMILIES as KNOWN
from vitcop.models import family_of
from vitcop.models.decoder import map_rotary
from vitcop.ops.segments import smallest_per_segment
from vitcop.selection.tokens import merge_counts

LAST, STEPS = NUM_LAYERS - 1, 2
UNEVEN = (
    "aya_vision",
    "cohere2_vision",
    "gemma4",
    "gemma4 with experts",
    "lfm2_vl",
    "llama4",
    "minicpmv4_6",
    "molmo2 with videos",
)
"""Families in whose decoders some layers, or some channels, turn nothing, or not all layers by the same angles."""
FOLDED: dict[str, Tensor] = {}
"""What `Fold` has last done: slots of the tokens, and of those that they were merged into."""


@dataclass(frozen=True)
class Fold(LayerPruner):
    """Keeps the first tokens of each image, and merges all others into them in turn: groups of unequal size."""

    retention: float = 0.93
    layer: int | None = LAST

    def select(self, tokens, budget):
        first_ones = smallest_per_segment(tokens.index, tokens.lengths, budget)
        selection = merged(first_ones, tokens.lengths, budget)
        into = torch.where(selection.merge < 0, torch.arange(len(tokens.rows)), selection.keep[selection.merge])
        FOLDED.update(slots=tokens.slots, into=tokens.slots[into])
        return selection


@contextmanager
def equal_groups(model: PreTrainedModel, first: int = LAST) -> Iterator[None]:
    """Gives a layer the states of the token that a group is merged into, for all of the group, and it and all behind it
    that token's positions.

    It is registered first, so that it stands in front of what prunes.
    """
    layers = model.get_decoder().layers[first:]

    def hook(layer: Any, args: Any, kwargs: Any) -> Any:
        hidden = args[0]
        if hidden.shape[1] == 1:  # a new token
            return None
        # The model passes these on at the length that entered, also when hidden states have been pruned.
        entered = len(hidden), kwargs["position_embeddings"][0].shape[-2]
        source = torch.arange(entered[0] * entered[1]).index_copy(0, FOLDED["slots"], FOLDED["into"])
        column = (source % entered[1]).view(entered)[..., None]

        def moved(part: Tensor) -> Tensor:
            whole = part.expand(*part.shape[:-3], *entered, part.shape[-1])
            return whole.gather(-2, column.expand_as(whole))

        if layer is layers[0]:
            hidden = hidden.flatten(0, 1)[source].view_as(hidden)
        return (hidden, *args[1:]), kwargs | {"position_embeddings": map_rotary(kwargs["position_embeddings"], moved)}

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def answered(model: PreTrainedModel, inputs: dict[str, Tensor], last: Tensor, steps: int) -> list[Tensor]:
    """Logits of the last token of each prompt, and of some new ones."""
    with torch.no_grad():
        output = model(**inputs)
        logits, mask = [output.logits[torch.arange(len(last)), last]], inputs.get("attention_mask")
        for step in range(steps):
            given = {}
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
                given = {"attention_mask": mask}
                if hasattr(model.base_model, "rope_deltas"):  # whose model would count them anew, and fail
                    given["position_ids"] = mask.sum(1, keepdim=True) - 1 + model.model.rope_deltas
            new = torch.full((len(last), 1), 10 + step)
            output = model(input_ids=new, past_key_values=output.past_key_values, **given)
            logits.append(output.logits[:, -1])
    return logits


def columns(inputs: dict[str, Tensor]) -> Tensor:
    """As the report has them, where nothing has moved."""
    ids = inputs["input_ids"]
    places = torch.arange(ids.shape[1]).expand_as(ids)
    return places.masked_fill(inputs.get("attention_mask", torch.ones_like(ids)) == 0, -1)


@pytest.mark.parametrize("prompts", ["one", "left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gemma4"])
def test_equal_tokens_that_are_merged_before_the_last_layer_change_nothing_behind_them(name, attention, prompts):
    """In front of the last layer of the small Gemma 4 none can be merged."""
    family = FAMILIES[name]
    model = family.model(attention)
    inputs = batch([ONE_IMAGE] if prompts == "one" else ragged(family), prompts, family)
    rows, width = inputs["input_ids"].shape
    with torch.no_grad(), vitcop.prune(model, Fold(calibrate="size")) as pruning:
        model(**inputs)
    if prompts == "right" and not torch.equal(pruning.report.positions_at(0), columns(inputs)):
        pytest.skip("rows are packed at the entrance, where the dense model's are not")
    end = torch.full((rows,), width - 1)
    if prompts == "right":
        end = inputs["attention_mask"].sum(1) - 1
    steps = 0 if prompts == "right" else STEPS  # which the dense model pads in the middle
    with equal_groups(model):
        dense = answered(model, inputs, end, steps)
        with vitcop.prune(model, Fold(calibrate="size")) as pruning:
            pruned = answered(model, inputs, torch.full((rows,), -1), steps)
        assert pruning.report.stages[0].merged()
        with vitcop.prune(model, Fold()):
            uncalibrated = answered(model, inputs, torch.full((rows,), -1), steps)
    for after, before, without in zip(pruned, dense, uncalibrated, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(without, before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layer", [2, 5])
def test_where_an_image_sees_itself_both_ways_equal_tokens_can_be_merged_before_any_layer(layer, monkeypatch):
    """Copies of a token then see the same, and stay equal; in Gemma 3, as long as no window is full."""
    family = FAMILIES["gemma3"]
    model, inputs = family.model("sdpa"), batch(ragged(family), family=family)
    monkeypatch.setattr(model.get_decoder().config, "sliding_window", 1000)
    method = Fold(retention=0.9 if layer > 2 else 0.8, layer=layer, calibrate="size")
    end = torch.full((len(inputs["input_ids"]),), -1)
    with torch.no_grad(), vitcop.prune(model, method) as pruning:
        model(**inputs)
    assert pruning.report.stages[0].layer == layer and pruning.report.stages[0].merged()
    with equal_groups(model, layer):
        dense = answered(model, inputs, end, 0)
        with vitcop.prune(model, method):
            (pruned,) = answered(model, inputs, end, 0)
        with vitcop.prune(model, replace(method, calibrate="none")):
            (uncalibrated,) = answered(model, inputs, end, 0)
    torch.testing.assert_close(pruned, dense[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(uncalibrated, dense[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_layers_with_a_window_count_what_their_cache_still_holds(attention):
    """Gemma 3's hold the last tokens of a prompt alone: each new token must see what a longer prompt would show it."""
    family = FAMILIES["gemma3"]
    model, inputs = family.model(attention), batch(ragged(family), family=family)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad(), vitcop.prune(model, vitcop.VisionZip(0.5, calibrate="size")):
        steps = answered(model, inputs, torch.full((len(ids),), -1), STEPS)
        for step, logits in enumerate(steps):
            tokens = torch.arange(10, 10 + step).expand(len(ids), step)
            longer = torch.cat([ids, tokens], 1), torch.cat([mask, torch.ones_like(tokens)], 1)
            given = inputs | {"input_ids": longer[0], "attention_mask": longer[1]} | family.token_kinds(longer[0])
            torch.testing.assert_close(logits, model(**given).logits[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "add_mean"])
def test_counts_are_those_of_a_loop(reduction):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        keep = torch.randperm(12, generator=generator)[:4].sort().values
        merge = torch.randint(-1, 4, (12,), generator=generator)
        counts = torch.randint(1, 9, (12,), generator=generator).float()
        expected = []
        for slot, row in enumerate(keep.tolist()):
            group = [other for other in range(12) if merge[other] == slot]
            # An own state that is no part of the mean that takes its place is gone.
            stays = row not in group and (reduction == "add_mean" or not group)
            expected.append(float(counts[group].sum() + stays * counts[row]))
        selection = Selection(keep, merge, reduction)
        assert merge_counts(counts, selection).tolist() == expected
        assert torch.equal(merge_counts(None, selection), merge_counts(torch.ones(12), selection))
        assert torch.equal(merge_counts(counts, Selection(keep)), counts[keep])


@dataclass(frozen=True)
class Distant(ThreeStages):
    """Merges nothing in truth, so that a dense model's mask can do the same."""

    described = vitcop.Description(where="test", signal="none", merges=True)
    default_calibrate = "distance"


@pytest.mark.parametrize("prompts", ["one", "left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_far_away_counts_more(name, prompts):
    family = FAMILIES[name]
    model = family.model("sdpa")
    inputs = batch([ONE_IMAGE] if prompts == "one" else ragged(family), prompts, family)
    if KNOWN[model.config.model_type].keeps_positions or name in UNEVEN:
        with vitcop.prune(model, Distant()), pytest.raises(vitcop.UnsupportedModelError, match="use calibrate='size'"):
            model(**inputs)
        return
    report, pruned = pruned_logits(model, inputs, Distant())
    dense = masked_dense_logits(model, inputs, Distant(), report)
    uncalibrated = masked_dense_logits(model, inputs, ThreeStages(), report)
    for after, before, without in zip(pruned, dense, uncalibrated, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(without, before, rtol=1e-3, atol=1e-4)


def test_distance_and_size_come_together():
    """`log(s (2 - D(|m - n|)))`, literally, of a prompt whose tokens are merged at the entrance."""
    model, inputs = LLAVA.model(), batch([ONE_IMAGE])
    with torch.no_grad(), vitcop.prune(model, vitcop.VisionZip(0.5, positions="keep", calibrate="distance")):
        layout = model(**inputs).past_key_values.request.layouts[0]
    added = layout.counts.logits(family_of(model), 0, layout.columns, layout.columns)[0].tolist()
    visual = inputs["input_ids"][0][layout.columns[0]] == IMAGE
    frequencies = model.get_decoder().rotary_emb.inv_freq.tolist()
    sizes, columns = layout.counts.stands_for[0].tolist(), layout.columns[0].tolist()
    assert max(sizes) > 1
    for m, row in zip(columns, added, strict=True):
        for n, size, shown, found in zip(columns, sizes, visual, row, strict=True):
            angles = [math.cos((m - n) * frequency) for frequency in frequencies]
            expected = math.log(size * (2 - sum(angles) / len(angles))) if shown else 0
            assert found == pytest.approx(expected, abs=1e-5)


def test_distances_are_those_of_a_model_that_was_cast_too():
    model = LLAVA.model().to(torch.bfloat16)
    columns = torch.arange(2000)[None]
    added = Counts(torch.ones(1, 2000), by_distance=True).logits(family_of(model), 0, columns[:, -1:], columns)[0, 0]
    cosines, _ = model.get_decoder().rotary_emb(torch.zeros(1), 1999 - columns)  # in single precision
    torch.testing.assert_close(added, (2 - cosines[0].mean(-1)).log(), rtol=1e-4, atol=1e-4)


def test_a_prompt_of_which_nothing_is_dropped_is_left_alone_in_a_batch_too():
    """Of InternVL's images of 27 and of 9 tokens, the first loses one."""
    family, method = FAMILIES["internvl"], vitcop.Census(0.97, calibrate="distance")
    model, rows = family.model(), [ONE_IMAGE, Prompt(1, seed=2)]
    with torch.no_grad(), vitcop.prune(model, method) as pruning:
        together = model(**batch(rows, family=family)).logits[:, -1]
        assert pruning.report.stages[0].before == (27, 9) and pruning.report.stages[0].after == (26, 9)
        for row, prompt in enumerate(rows):
            torch.testing.assert_close(
                together[row], model(**batch([prompt], family=family)).logits[0, -1], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("calibrate", ["size", "distance"])
def test_a_second_turn_that_is_padded_is_as_far_away_as_alone(calibrate, side):
    model, prompts, turns = LLAVA.model(), [ONE_IMAGE, Prompt(1, seed=8)], [[9, 10, 11], [12]]
    inputs = batch(prompts)
    empty = [[0] * (3 - len(turn)) for turn in turns]
    padded = [pad + turn if side == "left" else turn + pad for pad, turn in zip(empty, turns, strict=True)]
    new = torch.tensor(padded)
    mask = torch.cat([inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])), (new > 0).long()], 1)
    after = torch.tensor([[20], [20]])
    with torch.no_grad(), vitcop.prune(model, vitcop.VisionZip(0.5, positions="keep", calibrate=calibrate)):
        cache = model(**inputs).past_key_values
        first = model(input_ids=new, attention_mask=mask, past_key_values=cache).logits
        mask = torch.cat([mask, torch.ones_like(after)], 1)
        second = model(input_ids=after, attention_mask=mask, past_key_values=cache).logits
        for row, (prompt, turn) in enumerate(zip(prompts, turns, strict=True)):
            cache = model(**batch([prompt])).past_key_values
            alone = model(input_ids=torch.tensor([turn]), past_key_values=cache).logits[0]
            torch.testing.assert_close(first[row, new[row] > 0], alone, rtol=1e-4, atol=1e-5)
            alone = model(input_ids=after[:1], past_key_values=cache).logits[0]
            torch.testing.assert_close(second[row], alone, rtol=1e-4, atol=1e-5)


def test_distances_that_columns_do_not_tell_raise():
    model, inputs = LLAVA.model(), batch([ONE_IMAGE])
    places = torch.arange(inputs["input_ids"].shape[1])[None]
    with torch.no_grad(), vitcop.prune(model, vitcop.VisionZip(0.5, positions="keep", calibrate="distance")):
        model(**inputs, position_ids=places + 7)
        with pytest.raises(vitcop.UnsupportedModelError, match="position_ids say something else"):
            model(**inputs, position_ids=3 * places)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_angles_that_change_with_the_length_raise(kind):
    model = LLAVA.model()
    model.get_decoder().rotary_emb.rope_type = kind
    with (
        vitcop.prune(model, vitcop.VisionZip(0.5, positions="keep", calibrate="distance")),
        pytest.raises(vitcop.UnsupportedModelError, match="do not change with the length"),
    ):
        model(**batch([ONE_IMAGE]))


def test_distances_need_kept_positions():
    with pytest.raises(vitcop.VitcopError, match="set positions='keep'"):
        vitcop.ViTCoP(calibrate="distance")
    assert vitcop.ViTCoP(calibrate="distance", positions="keep").calibrate == "distance"


def test_counts_go_on_through_later_stages():
    """All tokens are merged at the entrance and again in the middle, so that what is left stands for all of them."""
    stages = [vitcop.Stage(vitcop.VisionZip(), 0, 0.5), vitcop.Stage(Fold(layer=None), 4, 0.25)]
    method = vitcop.Pipeline(stages, retention=0.4, calibrate="size")
    model, inputs = LLAVA.model(), batch([ONE_IMAGE])
    with torch.no_grad(), vitcop.prune(model, method):
        cache = model(**inputs).past_key_values
    for layer, layout in cache.request.layouts.items():
        visual = inputs["input_ids"][0][layout.columns[0]] == IMAGE
        assert layout.counts.stands_for[0][~visual].eq(0).all()
        assert layout.counts.stands_for[0][visual].sum().item() == TOKENS_PER_IMAGE, layer


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_where_nothing_is_merged_nothing_changes(attention):
    model, inputs = LLAVA.model(attention), batch(ragged(LLAVA))
    logits = []
    for calibrate in ("none", "size"):
        stages = [vitcop.Stage(vitcop.Random(), 0, 1.0)]
        with torch.no_grad(), vitcop.prune(model, vitcop.Pipeline(stages, retention=0.5, calibrate=calibrate)):
            logits.append(model(**inputs).logits)
    assert torch.equal(*logits)


def test_a_method_that_merges_nothing_has_nothing_to_count():
    with pytest.raises(vitcop.VitcopError, match="random merges nothing that calibrate='size' could count"):
        vitcop.Random(0.5, calibrate="size")
    assert (vitcop.Census().calibrate, vitcop.VisionZip().calibrate) == ("size", "none")
    with pytest.raises(vitcop.VitcopError, match="default of Silent is its `default_calibrate`"):

        class Silent(vitcop.EntrancePruner):
            calibrate = "size"


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_backends_that_cannot_count_raise(attention):
    model, inputs = LLAVA.model(), batch([ONE_IMAGE])
    model.config.text_config._attn_implementation = attention
    way_out = "use attn_implementation='sdpa', or calibrate='none'"
    with (
        vitcop.prune(model, vitcop.VisionZip(0.5, calibrate="size")),
        pytest.raises(vitcop.UnsupportedModelError, match=way_out),
    ):
        model(**inputs)


def test_where_nothing_is_dropped_no_backend_is_refused(monkeypatch):
    def refuse(family, calibrate):
        raise vitcop.UnsupportedModelError("cannot count")

    model, inputs = LLAVA.model(), batch([ONE_IMAGE])
    monkeypatch.setattr(vitcop.ModelFamily, "check_calibration", refuse)
    with torch.no_grad(), vitcop.prune(model, vitcop.Census(1.0)):
        model(**inputs)
    with torch.no_grad(), vitcop.prune(model, vitcop.Census(0.5)), pytest.raises(vitcop.UnsupportedModelError):
        model(**inputs)
