"""A row of a batch equals the row alone, and at retention 1 the model is bit for bit the unpatched one."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from families import minicpmv
from tiny import ENGINE, FAMILIES, GREEDY, LLAVA, METHODS, ONE_IMAGE, Prompt, assert_same_logits, batch, ragged

import vitcop
from vitcop.engine.positions import count_positions


def decode(model, inputs, steps):
    """Logits of the last prompt token and of `steps` tokens decoded greedily."""
    output = model(**inputs)
    last, mask = output.logits[:, -1:], inputs.get("attention_mask")
    logits = [last]
    for _ in range(steps):
        mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        given = {} if mask is None else {"attention_mask": mask}
        output = model(input_ids=last.argmax(-1), past_key_values=output.past_key_values, **given)
        last = output.logits
        logits.append(last)
    return torch.cat(logits, 1), output.past_key_values


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, method) for name, family in FAMILIES.items() for method in METHODS if method not in family.refuses],
)
def test_row_equals_row_alone(name, method):
    family = FAMILIES[name]
    model, prompts = family.model(), (*ragged(family), Prompt(images=1, seed=7))
    steps = 3 if method in ENGINE or "calibrated" in method else 1  # others are decoded as those are

    def ask(*args):
        return decode(model, batch(*args, family=family), steps)[0], pruning.report

    with torch.no_grad(), vitcop.prune(model, METHODS[method]) as pruning:
        alone = {row: ask([prompt]) for row, prompt in enumerate(prompts) if prompt.visuals(family)}
        for padding in ("left", "right"):
            together, report = ask(prompts, padding)
            for row, (logits, report_alone) in alone.items():
                assert_same_logits(together[row], logits[0])
                images = [image for image, of_row in enumerate(report.rows) if of_row == row]
                assert len(images) == prompts[row].images + prompts[row].videos == len(report_alone.rows)
                for own, image in enumerate(images):
                    for stage, stage_alone in zip(report.stages, report_alone.stages, strict=True):
                        assert stage.kept(image) == stage_alone.kept(own)
                        assert stage.merged(image) == stage_alone.merged(own)
                    assert report.modalities[image] == report_alone.modalities[own]
                    assert report.average_retention(image) == report_alone.average_retention(own)


CROWDED = vitcop.ViTCoP(0.3, vision_retention=0.5, centre_fraction=0.9)  # more clusters than stage II has tokens for
BROKEN = [("llava", method) for method in METHODS.values()]
# Pixtral's encoder lays all pictures in a row, and a mask does not take away what is not a number; nor does a zero that
# Molmo 2 multiplies the first patch of a batch with, where a token at an edge has fewer than others.
BROKEN += [(name, CROWDED) for name in FAMILIES if name not in ("llava with pixtral", "mistral3", "molmo2")]


@pytest.mark.parametrize(("name", "method"), BROKEN, ids=lambda it: getattr(it, "name", it))
def test_a_picture_that_is_not_finite_harms_its_own_row_only(name, method):
    """As in the dense model, and vision towers in float16 make such features."""
    family = FAMILIES[name]
    model, prompts = family.model(), (ONE_IMAGE, Prompt(images=2, seed=2))
    inputs, alone = batch(prompts, family=family), batch(prompts[1:], family=family)
    pixels = next(values for name, values in inputs.items() if name.startswith("pixel_values"))
    first = pixels[..., : minicpmv.PATCH] if name.startswith("minicpmv") else pixels[0]
    first[first != 0] = torch.nan  # but for padding
    with torch.no_grad():
        assert model(**inputs).logits[1, -1].isfinite().all()
        with vitcop.prune(model, method):
            together, healthy = model(**inputs).logits[:, -1], model(**alone).logits[:, -1]
    assert together[0].isnan().all()
    assert_same_logits(together[1], healthy[0])


def test_a_small_picture_keeps_one_token_beside_others():
    family = FAMILIES["qwen2_vl"]
    model, prompts = family.model(), (Prompt(images=1, seed=7), Prompt(images=1, seed=2))  # of 20 and 15 tokens
    inputs, method = batch(prompts, family=family), vitcop.ViTCoP(retention=1 / 18)
    with torch.no_grad(), vitcop.prune(model, method) as pruning:
        together = model(**inputs).logits[:, -1]
        assert pruning.report.average_retention(1) == 1 / 15
        for row, prompt in enumerate(prompts):
            assert_same_logits(together[row], model(**batch([prompt], family=family)).logits[0, -1])
    with torch.no_grad(), vitcop.prune(model, method, small_images="refuse"):
        model(**batch(prompts[:1], family=family))
        with pytest.raises(vitcop.BudgetError, match="one of 15 visual tokens in each stage"):
            model(**inputs)


def capped(method, tokens):
    settings = method.to_dict()
    del settings["retention"]
    return vitcop.Pruner.from_dict(settings | {"tokens": tokens})


@pytest.mark.parametrize("method", [name for name in METHODS if hasattr(METHODS[name], "retention")])
def test_a_number_of_tokens_is_the_share_that_it_is_of_each_picture(method):
    family, tokens = FAMILIES["qwen2_vl"], {7: 20, 2: 15}
    model, prompts = family.model(), [Prompt(images=1, seed=seed) for seed in tokens]
    with torch.no_grad():
        for most in (10, 16):
            with vitcop.prune(model, capped(METHODS[method], most)) as pruning:
                together, report = model(**batch(prompts, family=family)).logits[:, -1], pruning.report
            for row, (prompt, count) in enumerate(zip(prompts, tokens.values(), strict=True)):
                own = replace(METHODS[method], retention=min(1.0, most / count))
                with vitcop.prune(model, own) as pruning:
                    alone = model(**batch([prompt], family=family)).logits[0, -1]
                assert_same_logits(together[row], alone)
                assert report.visual_tokens(row) == pruning.report.visual_tokens()
                assert abs(report.average_retention(row) * count - min(most, count)) <= 1


def test_text_row_is_untouched():
    model, prompts = LLAVA.model(), (ONE_IMAGE, Prompt(images=0, seed=3))
    with torch.no_grad(), vitcop.prune(model, vitcop.ViTCoP(retention=0.3)):
        together, _ = decode(model, batch(prompts), steps=3)
    with torch.no_grad():
        dense, _ = decode(model, batch(prompts[1:]), steps=3)
    torch.testing.assert_close(together[1], dense[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["vitcop", "three_stages"])
def test_positions_of_ones_own_are_kept(method):
    """Spaced by 3 in the prompt and behind it: only what was dropped may be taken out."""
    model, prompts = LLAVA.model(), (ONE_IMAGE, Prompt(images=0, seed=3))
    inputs, token = batch(prompts), torch.tensor([[9], [9]])
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    positions = 3 * count_positions(mask)
    width = inputs["input_ids"].shape[1]

    def two_steps(model, rows):
        prompt = {name: value[rows] for name, value in inputs.items() if name != "pixel_values"}
        if rows != [1]:
            prompt["pixel_values"] = inputs["pixel_values"]
        first = model(**prompt, position_ids=positions[rows, :width])
        given = {"attention_mask": mask[rows], "position_ids": positions[rows, width:]}
        second = model(input_ids=token[rows], past_key_values=first.past_key_values, **given)
        return torch.cat([first.logits[:, -1], second.logits[:, -1]], 1)

    with torch.no_grad():
        dense = two_steps(model, [1])
        with vitcop.prune(model, METHODS[method]):
            together, alone = two_steps(model, [0, 1]), two_steps(model, [0])
    torch.testing.assert_close(together[1], dense[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[0], alone[0], rtol=1e-4, atol=1e-5)


def test_positions_behind_a_prompt_without_any_count_its_columns():
    """As in the dense model, padding included; and a mask may hide what it showed before."""
    model, prompts = LLAVA.model(), (ONE_IMAGE, Prompt(images=0, seed=3))
    inputs, token = batch(prompts), torch.tensor([[9], [9]])
    width = inputs["input_ids"].shape[1]
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    mask[:, width - 3] = 0
    logits = []
    for method in (None, METHODS["vitcop"]):
        with torch.no_grad(), vitcop.prune(model, method) if method else nullcontext():
            cache = model(**inputs).past_key_values
            given = {"attention_mask": mask, "position_ids": torch.full((2, 1), width)}
            logits.append(model(input_ids=token, past_key_values=cache, **given).logits[1])
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)


def held_by(layer):
    """What a layer of a cache holds: keys and values, unless it uses another's, or the states it folds them into."""
    if hasattr(layer, "keys"):
        return () if layer.keys is None else (layer.keys, layer.values)
    states = layer.conv_states[0], layer.recurrent_states[0]
    return tuple(state for state in states if state is not None)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prompts", ["one", "ragged"])
@pytest.mark.parametrize("method", [vitcop.ViTCoP(1.0), vitcop.KNorm(1.0), vitcop.Random(1.0)], ids=lambda m: m.name)
@pytest.mark.parametrize("name", FAMILIES)
def test_retention_one_is_the_identity(name, method, prompts, attention):
    family = FAMILIES[name]
    model = family.model(attention)
    inputs = batch([ONE_IMAGE] if prompts == "one" else ragged(family), family=family)
    asked = GREEDY | {"max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad():
        dense = model.generate(**inputs, **asked)
        with vitcop.prune(model, method) as pruning:
            pruned = model.generate(**inputs, **asked)
    assert torch.equal(torch.stack(dense.logits), torch.stack(pruned.logits))
    for layer, pruned_layer in zip(dense.past_key_values.layers, pruned.past_key_values.layers, strict=True):
        for part, pruned_part in zip(held_by(layer), held_by(pruned_layer), strict=True):
            assert torch.equal(part, pruned_part)
    assert pruning.report.average_retention() == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_float32(dtype, method):
    """The first stage keeps the same tokens up to one near tie, and nothing overflows."""
    model, inputs = LLAVA.model(), batch([ONE_IMAGE])
    with torch.no_grad(), vitcop.prune(model, METHODS[method]) as pruning:
        model(**inputs)
        full = pruning.report.stages[0].kept()
        model.to(dtype)
        output = model(**inputs | {"pixel_values": inputs["pixel_values"].to(dtype)})
        half = pruning.report.stages[0].kept()
    assert output.logits.dtype == dtype and output.logits.isfinite().all()
    assert len(half) == len(full)
    if method not in ("divprune", "cdpruner", "mmtok"):  # one near tie there makes all later choices others
        assert len(set(full) & set(half)) >= len(full) - 1


BY_NUMBER = vitcop.Pipeline(
    [vitcop.Stage(vitcop.Random(), 0, 0.6), vitcop.Stage(vitcop.Random(seed=1), 4, 0.3)], retention=0.45
)


@pytest.mark.parametrize("name", FAMILIES)
def test_float16_stays_float16(name):
    """Logits and caches have the types that they have dense, masks do not overflow, and rounding is as dense: the same
    tokens are kept, by their numbers, so that chance alone makes it another (seen: 0.5 to 2.2 times as much).
    """
    family = FAMILIES[name]
    model, inputs = family.model(), batch(ragged(family), family=family)

    def last_logits():
        with torch.no_grad():
            dense = model(**inputs)
            with vitcop.prune(model, BY_NUMBER):
                pruned = model(**inputs)
        for layer, pruned_layer in zip(dense.past_key_values.layers, pruned.past_key_values.layers, strict=True):
            assert [part.dtype for part in held_by(layer)] == [part.dtype for part in held_by(pruned_layer)]
        assert dense.logits.dtype == pruned.logits.dtype
        return dense.logits[:, -1].float(), pruned.logits[:, -1].float()

    full = last_logits()
    model.half()
    inputs |= {key: value.half() for key, value in inputs.items() if key.startswith("pixel_values")}
    dense, pruned = ((half - exact).norm() / exact.norm() for half, exact in zip(last_logits(), full, strict=True))
    assert pruned < 4 * dense


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [(ONE_IMAGE,), ragged(LLAVA)], ids=["one", "ragged"])
def test_flex_prefill_equals_sdpa(prompts):
    """Its block masks cannot be gathered but have to be made anew. Its decoding does not compile on CPU."""
    logits = []
    for attention in ("sdpa", "flex_attention"):
        model = LLAVA.model(attention)
        with torch.no_grad(), vitcop.prune(model, METHODS["vitcop"]) as pruning:
            output = model(**batch(prompts))
        logits.append(output.logits[pruning.report.positions >= 0])
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
