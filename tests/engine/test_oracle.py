"""A pruned forward equals a dense one whose attention mask hides the dropped tokens, layer by layer."""

import pytest
import torch
from oracle import alive_columns, masked_dense_logits, pruned_logits, stock_mask
from tiny import ENGINE, FAMILIES, KEEP_ONLY, ONE_IMAGE, batch, ragged

BOTH_WAYS = [
    name
    for name in ("gemma3", "gemma4 with experts", "paligemma", "paligemma with gemma2", "molmo2")
    if name in FAMILIES  # not all releases of transformers have Molmo 2
]
PROMPTS = ["one", "even", "ragged-left", "ragged-right"]
CASES = [(method, prompts, attention) for method in ENGINE for prompts in PROMPTS for attention in ("sdpa", "eager")]
# What is special to a method is what it keeps, and by which layers.
CASES += [(method, "ragged-left", "sdpa") for method in KEEP_ONLY if method not in ENGINE]


@pytest.mark.parametrize(
    ("name", "method", "prompts", "attention"),
    [(name, *case) for name, family in FAMILIES.items() for case in CASES if case[0] not in family.refuses],
)
def test_equals_masked_dense(name, method, prompts, attention):
    family, method = FAMILIES[name], KEEP_ONLY[method]
    rows = {"one": [ONE_IMAGE], "even": [ONE_IMAGE, ONE_IMAGE]}.get(prompts, ragged(family))
    model, inputs = family.model(attention), batch(rows, prompts.removeprefix("ragged-"), family)
    report, pruned = pruned_logits(model, inputs, method)
    alive = alive_columns(report, inputs["input_ids"].shape)
    assert alive[-1].sum() < inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).sum()
    dense = masked_dense_logits(model, inputs, method, report)
    for after, before in zip(pruned, dense, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
@pytest.mark.parametrize("name", ["gemma3", "paligemma with gemma2"])
def test_a_window_as_long_as_the_prompt_ends_behind_it(name, beyond, attention):
    """No mask is made as long as it hides nothing; the first token that was hidden was not dropped."""
    family, method = FAMILIES[name], ENGINE["three_stages"]
    model, inputs = family.model(attention), batch([ONE_IMAGE], family=family)
    model.get_decoder().config.sliding_window = inputs["input_ids"].shape[1] + beyond
    report, pruned = pruned_logits(model, inputs, method)
    for after, before in zip(pruned, masked_dense_logits(model, inputs, method, report), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_the_oracle_sees_what_the_dense_model_sees(name):
    """Where tokens see each other both ways, and windows cut that or do not."""
    family, seen = FAMILIES[name], []
    model, inputs = family.model("eager"), batch(ragged(family), family=family)
    decoder, real = model.get_decoder(), inputs["attention_mask"].bool()
    for layer in decoder.layers[:2]:
        layer.register_forward_pre_hook(
            lambda *call: seen.append(call[2]["attention_mask"][:, 0] == 0), with_kwargs=True
        )
    with torch.no_grad():
        model(**inputs)
    for layer, stock in enumerate(seen):
        visible = stock_mask(decoder.config, layer, inputs, *stock.shape[1:]) & real[:, None]
        assert torch.equal(visible[real], stock[real])
