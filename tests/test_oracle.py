"""A pruned forward equals a dense one whose attention mask hides the dropped tokens, layer by layer."""

import pytest
import torch
from families.base import NUM_LAYERS
from tiny import ENGINE, FAMILIES, KEEP_ONLY, ONE_IMAGE, batch, ragged
from transformers import DynamicCache

import vitcop
from vitcop.engine.positions import count_positions
from vitcop.models import FAMILIES as KNOWN

STEPS = 3


def alive_columns(report, shape):
    """(layers, batch, seq) bool: which prompt columns each decoder layer holds, padding left out."""
    alive = torch.zeros(NUM_LAYERS, *shape, dtype=torch.bool)
    for layer in range(NUM_LAYERS):
        for row, columns in enumerate(report.positions_at(layer)):
            alive[layer, row, columns[columns >= 0]] = True
    return alive


def stock_mask(config, layer, inputs, queries, seen):
    """(batch, queries, seen) bool: what the dense model's layer lets each token see, padding not considered."""
    width = inputs["input_ids"].shape[1]
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    end = (mask * torch.arange(1, width + 1)).amax(1, keepdim=True)
    # A window of a right-padded row is counted as if the row stood alone, which the dense model does not do.
    columns = torch.cat([torch.arange(width).expand_as(mask), end + torch.arange(seen - width)], 1)
    visible = torch.ones(queries, seen, dtype=torch.bool).tril(seen - queries)[None]
    kinds = inputs.get("token_type_ids")
    if kinds is not None:  # of Gemma 3, whose pictures stand apart: within one, tokens see each other both ways
        image = torch.nn.functional.pad(kinds == 1, (0, seen - kinds.shape[1]))
        picture = (image & ~torch.nn.functional.pad(image, (1, 0))[:, :-1]).cumsum(1)
        both = image[:, -queries:, None] & image[:, None] & (picture[:, -queries:, None] == picture[:, None])
        visible = visible | both
    if getattr(config, "layer_types", None) and config.layer_types[layer] == "sliding_attention":
        visible = visible & (columns[:, -queries:, None] - columns[:, None] < config.sliding_window)
    return visible


def masked_dense(model, inputs, alive, positions):
    """Logits of the prompt and of STEPS decoded tokens, by a dense model that hides what is not alive.

    Args:
        positions: of the prompt; None leaves them to the model, as its 3-D ones.
    """
    decoder = model.get_decoder()
    state = {}

    def hide(index):
        def hook(layer, args, kwargs):
            return args, kwargs | {"attention_mask": state["masks"][index]}

        return decoder.layers[index].register_forward_pre_hook(hook, with_kwargs=True)

    hooks = [hide(index) for index in range(NUM_LAYERS)]
    batch_size, width = inputs["input_ids"].shape
    lowest = torch.finfo(torch.float32).min
    logits, cache = [], DynamicCache()
    for step in range(STEPS + 1):
        seen = width + step
        queries = width if step == 0 else 1
        visible = torch.cat([alive, alive.new_ones(*alive.shape[:2], step)], -1)
        stock = [stock_mask(decoder.config, layer, inputs, queries, seen) for layer in range(NUM_LAYERS)]
        masks = torch.stack([s.expand(batch_size, -1, -1) for s in stock]) & visible[:, :, None]
        state["masks"] = torch.zeros(masks[:, :, None].shape).masked_fill(~masks[:, :, None], lowest)
        if step == 0:
            output = model(**inputs, position_ids=positions, past_key_values=cache)
            if positions is None:
                mask = inputs.get("attention_mask", torch.ones(batch_size, width))
                last = mask.sum(1, keepdim=True).long() - 1 + model.model.rope_deltas
            else:
                last = positions.amax(-1, keepdim=True)
        else:
            ids = torch.full((batch_size, 1), 10 + step)
            output = model(input_ids=ids, position_ids=last + step, past_key_values=cache)
        logits.append(output.logits)
    for hook in hooks:
        hook.remove()
    return logits


PROMPTS = ["one", "even", "ragged-left", "ragged-right"]
CASES = [(method, prompts, attention) for method in ENGINE for prompts in PROMPTS for attention in ("sdpa", "eager")]
# What is special to a method is what it keeps, and by which layers.
CASES += [(method, "ragged-left", "sdpa") for method in KEEP_ONLY if method not in ENGINE]


@pytest.mark.parametrize(("method", "prompts", "attention"), CASES)
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_masked_dense(name, method, prompts, attention):
    family = FAMILIES[name]
    rows = {"one": [ONE_IMAGE], "even": [ONE_IMAGE, ONE_IMAGE]}.get(prompts, ragged(family))
    model, inputs = family.model(attention), batch(rows, prompts.removeprefix("ragged-"), family)
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
    kept_by_family = KNOWN[model.config.model_type].keeps_positions
    with torch.no_grad():
        dense = masked_dense(model, inputs, alive, None if kept_by_family else count_positions(entered))
    for row, columns in enumerate(report.positions):
        real = columns >= 0
        torch.testing.assert_close(pruned[0][row, real], dense[0][row, columns[real]], rtol=1e-4, atol=1e-5)
    for after, before in zip(pruned[1:], dense[1:], strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
