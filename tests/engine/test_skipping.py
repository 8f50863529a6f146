"""An encoder that skips repeated patches equals the stock one in which nobody sees these, and goes with pruning."""

import copy
import pickle

import pytest
import torch
from oracle import masked_dense_logits, pruned_logits
from tiny import ENGINE, FAMILIES, GREEDY, assert_same_logits, batch, ragged
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.vision_utils import get_vision_window_index

import vitcop
from vitcop.engine.skipping import REPEATS
from vitcop.models.encoders import FUSED, KEYS, projections

SKIPPING = [name for name, family in FAMILIES.items() if vitcop.FAMILIES[family.model().config.model_type].runs_on_some]
UNIT = 4  # patches of a token


def with_repeats(family, seed=0):
    """A ragged batch whose tokens have one of two colours each, and those of its first picture all the same."""
    inputs, generator = batch(ragged(family), family=family), torch.Generator().manual_seed(seed)
    for name in ("pixel_values", "pixel_values_videos"):
        if name in inputs:
            count, width = inputs[name].shape
            colour = torch.randint(2, (count // UNIT,), generator=generator)
            colour[: inputs[f"{'video' if 'videos' in name else 'image'}_grid_thw"][0].prod() // UNIT] = 0
            inputs[name] = torch.randn(2, UNIT * width, generator=generator)[colour].view(count, width)
    return inputs


def seen_by(inputs):
    """Pixels and sizes of each call of the encoder."""
    for kind, suffix in (("image", ""), ("video", "_videos")):
        if f"pixel_values{suffix}" in inputs:
            yield kind, inputs[f"pixel_values{suffix}"], inputs[f"{kind}_grid_thw"]


def encoded(model, kind, pixels, sizes):
    return getattr(model.model, f"get_{kind}_features")(pixels, sizes, output_hidden_states=True)


def window_order(model, sizes):
    """The tokens in the order in which the encoder has them, by transformers itself."""
    vision = model.config.vision_config
    count = int(sizes.prod(-1).sum()) // UNIT
    if not hasattr(vision, "window_size"):
        return torch.arange(count)
    return get_vision_window_index(sizes, vision.spatial_merge_size, vision.window_size, vision.patch_size)[0]


@pytest.fixture
def hidden():
    """Patches that nobody sees in models built with the attention "hiding", in the order of the encoder."""
    rows, at = [], 0

    def hide(module, query, key, value, attention_mask, scaling, **kwargs):
        nonlocal at
        here, at = torch.tensor(rows[at : at + key.shape[2]]), (at + key.shape[2]) % len(rows)
        logits = (query @ key.mT * scaling).masked_fill(here, torch.finfo(query.dtype).min)
        return (logits.softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register("hiding", hide)
    AttentionMaskInterface.register("hiding", eager_mask)
    yield rows
    AttentionInterface._global_mapping.pop("hiding")
    AttentionMaskInterface._global_mapping.pop("hiding")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", SKIPPING)
def test_equals_the_stock_encoder_in_which_nobody_sees_what_repeats(name, attention, hidden):
    family = FAMILIES[name]
    model, stock = family.model(attention), family.model("hiding")
    for kind, pixels, sizes in seen_by(with_repeats(family)):
        ran_on = []
        model.model.visual.blocks[0].register_forward_pre_hook(lambda block, args, ran_on=ran_on: ran_on.append(*args))
        with vitcop.skip_repeated_patches(model):
            skipped = encoded(model, kind, pixels, sizes)
        repeats, order = getattr(skipped, REPEATS), window_order(model, sizes)
        assert len(ran_on[0]) == UNIT * len(repeats.kept) < len(pixels)

        out = torch.ones(len(repeats.source), dtype=torch.bool)
        out[repeats.kept] = False
        hidden[:] = out[order].repeat_interleave(UNIT).tolist()
        with torch.no_grad():
            whole = encoded(stock, kind, pixels, sizes)
        root = repeats.kept[repeats.source]
        in_order = order.argsort()[root][order]  # where the encoder has the one that stands for each that it has

        def both(feature, rows, whole=whole, skipped=skipped):
            seen, expected = (torch.cat(tuple(f)) if isinstance(f, tuple) else f for f in feature(skipped, whole))
            expected = expected.unflatten(0, (len(rows), -1))[rows].flatten(0, 1)
            torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)

        both(lambda *outputs: (output.pooler_output for output in outputs), root)
        both(lambda *outputs: (output.last_hidden_state for output in outputs), in_order)
        for layer in range(len(whole.hidden_states)):
            both(lambda *outputs, layer=layer: (output.hidden_states[layer] for output in outputs), in_order)
        for layer in range(len(whole.get("deepstack_features", ()))):
            both(lambda *outputs, layer=layer: (output.deepstack_features[layer] for output in outputs), root)


@pytest.mark.parametrize("name", SKIPPING)
def test_pictures_without_repeats_are_encoded_as_ever(name):
    family = FAMILIES[name]
    model, inputs = family.model(), batch(ragged(family), family=family)
    with torch.no_grad():
        expected = model(**inputs).logits
        with vitcop.skip_repeated_patches(model):
            assert torch.equal(model(**inputs).logits, expected)
        repeated = with_repeats(family)
        expected = model(**repeated).logits
        with vitcop.skip_repeated_patches(model):
            assert not torch.equal(model(**repeated).logits, expected)
        assert torch.equal(model(**repeated).logits, expected)


@pytest.mark.parametrize("name", SKIPPING)
def test_a_repeated_token_shows_what_the_one_shows_that_it_repeats(name, recorded):
    """Keys as they were projected, and the attention that the encoder has really paid to them."""
    family = FAMILIES[name]
    model, (kind, pixels, sizes) = family.model("recorded"), next(seen_by(with_repeats(family)))
    attention = vitcop.FAMILIES[model.config.model_type](model).observed[kind]
    made = []
    projecting = projections(attention)
    maker = projecting.get(KEYS) or projecting[FUSED]
    maker.register_forward_hook(lambda module, args, output: made.append(output))
    with torch.no_grad(), vitcop.prune(model, vitcop.Census()), vitcop.skip_repeated_patches(model):
        output = encoded(model, kind, pixels, sizes)
    (observation,) = [value for value in vars(output).values() if isinstance(value, vitcop.Observation)]
    repeats, order = getattr(output, REPEATS), window_order(model, sizes)
    goes_in = torch.isin(order, repeats.kept)
    row = torch.full((len(order),), -1)
    row[order[goes_in]] = torch.arange(len(repeats.kept))  # where the encoder has it
    row = row[repeats.kept[repeats.source]]
    keys = made[0] if KEYS in projecting else made[0].chunk(3, -1)[1]
    keys = keys.unflatten(-1, (attention.num_heads, -1)).unflatten(0, (-1, UNIT)).mean(1)
    got = torch.cat([weights.mean((0, 1, 2)) for weights in recorded[attention]]).view(-1, UNIT).mean(1)
    torch.testing.assert_close(observation.keys, keys[row])
    torch.testing.assert_close(observation.saliency, got[row])


@pytest.mark.parametrize("name", SKIPPING)
def test_pruning_behind_it_equals_the_masked_dense_model(name):
    family = FAMILIES[name]
    model, inputs, method = family.model(), with_repeats(family), ENGINE["three_stages"]
    with vitcop.skip_repeated_patches(model):
        report, pruned = pruned_logits(model, inputs, method)
        dense = masked_dense_logits(model, inputs, method, report)
    for after, before in zip(pruned, dense, strict=True):
        assert_same_logits(after, before)


@pytest.mark.parametrize("method", [vitcop.ViTCoP(retention=0.3), vitcop.Census(retention=0.5)], ids=lambda m: m.name)
def test_it_is_put_on_and_off_in_any_order(method):
    family = FAMILIES["qwen2_5_vl"]
    model, inputs = family.model(), with_repeats(family)

    def answer():
        return model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True).logits

    dense = answer()
    with vitcop.prune(model, method) as pruning:
        alone = answer()
        skipping = vitcop.skip_repeated_patches(model)
        both = answer()
        average = pruning.report.average_retention()
    assert abs(average - method.retention) < 0.05
    with vitcop.prune(model, method):
        turned = answer()
        skipping.remove()
        assert all(map(torch.equal, answer(), alone))
    assert all(map(torch.equal, turned, both))
    assert not torch.equal(both[0], alone[0])
    assert all(map(torch.equal, answer(), dense))
    assert "forward" not in vars(model.model.visual)


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - set(SKIPPING)))
def test_encoders_of_whole_pictures_are_refused(name):
    with pytest.raises(vitcop.UnsupportedModelError, match="works out positions for whole pictures only"):
        vitcop.skip_repeated_patches(FAMILIES[name].model())


def test_what_cannot_be_right_raises():
    family = FAMILIES["qwen2_vl"]
    model, (_, pixels, sizes) = family.model(), next(seen_by(with_repeats(family)))
    with vitcop.skip_repeated_patches(model) as skipping:
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(vitcop.UnsupportedModelError, match="copied or pickled"):
                copied(model)
        with pytest.raises(vitcop.UnsupportedModelError, match="brings cu_seqlens of all patches along"):
            model.model.get_image_features(pixels, sizes, image_cu_seqlens=torch.tensor([0, len(pixels)]))
        with pytest.raises(vitcop.UnsupportedModelError, match="leave out output_attentions"):
            model.set_attn_implementation("eager")
            model.model.get_image_features(pixels, sizes, output_attentions=True)
        with pytest.raises(vitcop.UnsupportedModelError, match="already"):
            vitcop.skip_repeated_patches(model)
    with pytest.raises(vitcop.VitcopError, match="removed"), skipping:
        pass
    copy.deepcopy(model)
