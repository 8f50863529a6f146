"""A pruned forward equals a dense one whose attention mask hides the dropped tokens, layer by layer."""

import pytest
import torch
from tiny import KEEP_ONLY, MODELS, NUM_LAYERS, ONE_IMAGE, RAGGED, batch

import vitcop
from vitcop.layout import positions_of

STEPS = 3


def alive_columns(report, shape):
    """(layers, batch, seq) bool: which prompt columns each decoder layer holds, padding left out."""
    alive = torch.zeros(NUM_LAYERS, *shape, dtype=torch.bool)
    for layer in range(NUM_LAYERS):
        for row, columns in enumerate(report.positions_at(layer)):
            alive[layer, row, columns[columns >= 0]] = True
    return alive


def masked_dense(model, inputs, alive, positions):
    """Logits of the prompt and of STEPS decoded tokens, by a dense model that hides what is not alive."""
    decoder = model.model.language_model
    state = {}

    def hide(index):
        def hook(layer, args, kwargs):
            return args, kwargs | {"attention_mask": state["masks"][index]}

        return decoder.layers[index].register_forward_pre_hook(hook, with_kwargs=True)

    hooks = [hide(index) for index in range(NUM_LAYERS)]
    batch_size, width = inputs["input_ids"].shape
    lowest = torch.finfo(torch.float32).min
    logits, cache = [], None
    for step in range(STEPS + 1):
        seen = width + step
        queries = width if step == 0 else 1
        causal = torch.arange(seen) <= torch.arange(seen - queries, seen)[:, None]
        visible = torch.cat([alive, alive.new_ones(*alive.shape[:2], step)], -1)
        masks = causal & visible[:, :, None, None, :]
        state["masks"] = torch.zeros(masks.shape).masked_fill(~masks, lowest)
        if step == 0:
            output = model(**inputs, position_ids=positions)
            last = positions.amax(-1, keepdim=True)
        else:
            ids = torch.full((batch_size, 1), 10 + step)
            output = model(input_ids=ids, position_ids=last + step, past_key_values=cache)
        cache = output.past_key_values
        logits.append(output.logits)
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("prompts", "padding"),
    [((ONE_IMAGE,), "none"), ((ONE_IMAGE, ONE_IMAGE), "none"), (RAGGED, "left"), (RAGGED, "right")],
    ids=["one", "even", "ragged-left", "ragged-right"],
)
@pytest.mark.parametrize("method", KEEP_ONLY)
@pytest.mark.parametrize("family", MODELS)
def test_equals_masked_dense(family, method, prompts, padding, attention):
    model, inputs = MODELS[family](attention), batch(prompts, padding)
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    with torch.no_grad(), vitcop.prune(model, KEEP_ONLY[method]) as pruning:
        output = model(**inputs)
        report, pruned = pruning.report, [output.logits]
        for step in range(1, STEPS + 1):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            token = torch.full((len(ids), 1), 10 + step)
            given = {"attention_mask": mask} if "attention_mask" in inputs else {}
            output = model(input_ids=token, past_key_values=output.past_key_values, **given)
            pruned.append(output.logits)

    alive = alive_columns(report, ids.shape)
    assert alive[-1].sum() < mask[:, : ids.shape[1]].sum()
    entered = alive[0] if KEEP_ONLY[method].positions == "compact" else mask[:, : ids.shape[1]].bool()
    with torch.no_grad():
        dense = masked_dense(model, inputs, alive, positions_of(entered))
    for row, columns in enumerate(report.positions):
        real = columns >= 0
        torch.testing.assert_close(pruned[0][row, real], dense[0][row, columns[real]], rtol=1e-4, atol=1e-5)
    for after, before in zip(pruned[1:], dense[1:], strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
