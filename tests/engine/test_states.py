"""Decoders some of whose layers fold tokens into a state: what no mask, crop or later error can take back."""

import copy

import pytest
import torch
from families.base import NUM_LAYERS
from tiny import FAMILIES, ONE_IMAGE, Prompt, assert_same_logits, batch
from transformers import DynamicCache

import vitcop
from vitcop.models import family_of

FAMILY = FAMILIES["qwen3_5_moe"]
METHOD = vitcop.ViTCoP(retention=0.3)
TOKEN = torch.tensor([[5]])


@pytest.fixture
def model():
    return FAMILY.model()


@pytest.fixture
def inputs():
    return batch([ONE_IMAGE], family=FAMILY)


def states_of(cache):
    return [layer.conv_states[0].clone() for layer in cache.layers if hasattr(layer, "conv_states")]


def test_stages_see_the_nearest_layer_that_has_keys(model):
    family = family_of(model)
    assert FAMILY.kinds_of_layers == "ssasssaa" and family.first_stage_layer == 3
    assert [family.keys_before(layer) for layer in range(3, NUM_LAYERS)] == [2, 2, 2, 2, 6]


def test_a_copy_of_the_cache_goes_on_by_itself(model, inputs):
    with torch.no_grad(), vitcop.prune(model, METHOD):
        cache = model(**inputs).past_key_values
        copied = copy.deepcopy(cache)
        first = model(input_ids=TOKEN, past_key_values=cache).logits
        model(input_ids=TOKEN + 1, past_key_values=cache)
        assert torch.equal(model(input_ids=TOKEN, past_key_values=copied).logits, first)


def test_prompts_can_be_reordered_and_nothing_else_of_what_layers_with_states_lack(model):
    prompts = (ONE_IMAGE, Prompt(images=1, seed=5))
    with torch.no_grad(), vitcop.prune(model, METHOD):
        cache = model(**batch(prompts, family=FAMILY)).past_key_values
        cache.reorder_cache(torch.tensor([1, 1]))
        alone = model(**batch(prompts[1:], family=FAMILY)).past_key_values
        expected = model(input_ids=TOKEN, past_key_values=alone).logits
        for row in model(input_ids=TOKEN.expand(2, 1), past_key_values=cache).logits:
            assert_same_logits(row, expected[0])
        for change in (
            lambda: cache.crop(-1),
            lambda: cache.batch_repeat_interleave(2),
            lambda: cache.batch_select_indices(torch.tensor([0])),
        ):
            with pytest.raises(vitcop.UnsupportedModelError, match=r"cannot be cropped|nothing that a LinearAttention"):
                change()
        model(input_ids=TOKEN.expand(2, 1), past_key_values=cache)  # which is as it was


def test_a_cache_without_a_place_for_states_raises(model, inputs):
    with torch.no_grad(), vitcop.prune(model, METHOD):
        with pytest.raises(vitcop.UnsupportedModelError, match=r"use DynamicCache\(config=model.config\)"):
            model(**inputs, past_key_values=DynamicCache())
        with pytest.raises(vitcop.UnsupportedModelError, match=r"use DynamicCache\(config=model.config\)"):
            model(**inputs, past_key_values=DynamicCache(config=FAMILIES["qwen2_vl"].model().config))
        given = DynamicCache(config=model.config)
        expected = model(**inputs).logits
        assert torch.equal(model(**inputs, past_key_values=given).logits, expected)


def test_an_unpruned_model_changes_no_state_of_a_pruned_cache(model, inputs):
    """Its first layers would fold a token in before the first one that attends raises."""
    with torch.no_grad():
        with vitcop.prune(model, METHOD):
            cache = model(**inputs).past_key_values
        before = states_of(cache)
        with pytest.raises(vitcop.UnsupportedModelError, match="not pruned"):
            model(input_ids=TOKEN, past_key_values=cache)
    assert all(map(torch.equal, states_of(cache), before))


def test_a_forward_that_is_interrupted_leaves_nothing_to_go_on_from(model, inputs):
    """The layers that attend may all hold the same yet."""
    with torch.no_grad(), vitcop.prune(model, METHOD):
        cache = model(**inputs).past_key_values
        hook = model.get_decoder().layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=TOKEN, past_key_values=cache)
        hook.remove()
        with pytest.raises(vitcop.UnsupportedModelError, match="no longer holds"):
            model(input_ids=TOKEN, past_key_values=cache)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_later_turn_that_is_padded_raises(model, side):
    """Padding behind a prompt lets its state fade, in the dense model as well; in front of one it finds none."""
    inputs = batch([ONE_IMAGE, Prompt(images=1, seed=5)], family=FAMILY)
    seen = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    turn = torch.tensor([[1, 1, 1], [0, 1, 1] if side == "left" else [1, 1, 0]])
    with torch.no_grad(), vitcop.prune(model, METHOD):
        cache = model(**inputs).past_key_values
        asked = {"input_ids": 9 * turn, "past_key_values": cache}
        with pytest.raises(vitcop.UnsupportedModelError, match="turns of one length"):
            model(**asked, attention_mask=torch.cat([seen, turn], 1))
        model(**asked, attention_mask=torch.cat([seen, torch.ones_like(turn)], 1))
