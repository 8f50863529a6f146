"""Nothing is left behind, nothing mixes, and nothing is silently dense."""

import copy
import gc
import io
import pickle
import threading
import time
import weakref

import accelerate
import pytest
import torch
from needs import takes_encoder_outputs
from peft import LoraConfig, get_peft_model
from tiny import LLAVA, ONE_IMAGE, RAGGED, Prompt, batch
from transformers import DynamicCache

import vitcop
from vitcop.engine.cache import cache_in

VITCOP = vitcop.ViTCoP(retention=0.3)
GREEDY = {"do_sample": False, "max_new_tokens": 4, "suppress_tokens": [63]}


@pytest.fixture
def model():
    return LLAVA.model()


def hooks_of(model):
    return [
        (name, list(module._forward_pre_hooks), list(module._forward_hooks)) for name, module in model.named_modules()
    ]


def test_removing_leaves_the_model_as_it_was(model):
    inputs = batch([ONE_IMAGE])
    with torch.no_grad():
        dense = model(**inputs, output_hidden_states=True).logits  # installs transformers' own hooks, once
        kept = model.register_forward_pre_hook(lambda *_: None)
        hooks, attributes = hooks_of(model), set(vars(model)) | set(vars(model.model))
        with vitcop.prune(model, VITCOP):
            model(**inputs)
        assert hooks_of(model) == hooks
        assert set(vars(model)) | set(vars(model.model)) == attributes
        assert torch.equal(model(**inputs).logits, dense)
    kept.remove()


def test_an_error_in_the_forward_leaves_nothing_running(model):
    inputs = batch([ONE_IMAGE])
    decoder = model.model.language_model

    def fail(*_):
        raise RuntimeError("layer 4 fails")

    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
        failing = decoder.layers[4].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="layer 4"):
            model(**inputs)
        failing.remove()
        assert pruning.report is None
        text = torch.tensor([[1, 2, 3]])
        lone = decoder(inputs_embeds=model.get_input_embeddings()(text)).last_hidden_state
        assert lone.shape[1] == 3
        expected = model(**inputs).logits
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("given", [True, False], ids=["own cache", "model's cache"])
@pytest.mark.parametrize("layer", [1, 4])
def test_an_interrupted_cache_is_refused(model, layer, given):
    """A cache of one's own grows its layers one by one: those that are there may all look right."""
    cache, layers = None, model.model.language_model.layers

    def grab_and_fail(layer, args, kwargs):
        nonlocal cache
        cache = cache_in(kwargs)
        raise RuntimeError("stop")

    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
        model(**batch([ONE_IMAGE]))
        hook = layers[layer].register_forward_pre_hook(grab_and_fail, with_kwargs=True)
        with pytest.raises(RuntimeError, match="stop"):
            model(**batch([ONE_IMAGE]), past_key_values=DynamicCache() if given else None)
        hook.remove()
        assert pruning.report is None
        with pytest.raises(vitcop.UnsupportedModelError, match="no longer holds"):
            model(input_ids=torch.tensor([[5]]), past_key_values=cache)


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_keyboard_interrupt_leaves_nothing_running(model):
    """torch runs no forward hooks after one. What comes next, still pruned, must not be taken for its rest."""
    inputs, token, decoder = batch([ONE_IMAGE]), torch.tensor([[5]]), model.model.language_model
    text = model.get_input_embeddings()(torch.tensor([[1, 2, 3]]))
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        output = model(**inputs)
        for call in (inputs, {"input_ids": token, "past_key_values": output.past_key_values}):
            hook = decoder.norm.register_forward_pre_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                model(**call)
            hook.remove()
            assert decoder(inputs_embeds=text).last_hidden_state.shape[1] == 3
        assert output.past_key_values.get_seq_length() == inputs["input_ids"].shape[1] + 1
        with pytest.raises(vitcop.UnsupportedModelError, match="not pruned"):
            decoder(inputs_embeds=text, past_key_values=output.past_key_values)
        assert torch.equal(model(**inputs).logits, output.logits)


@pytest.mark.parametrize("of", ["model", "base", "peft"])
def test_forward_by_its_name_is_pruned_too(model, of):
    """Hooks are passed by then; PEFT calls it so, and so the model's own refusals must not be passed by."""
    inputs = batch([ONE_IMAGE])
    callers = {"model": lambda: model.forward, "base": lambda: model.model.forward}
    if of == "peft":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
        callers["peft"] = lambda: model
    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
        forward = callers[of]()
        output = forward(**inputs)
        hidden = output.last_hidden_state if of == "base" else output.logits
        assert hidden.shape[1] == pruning.report.positions.shape[1] < inputs["input_ids"].shape[1]
        if of != "base":
            with pytest.raises(vitcop.UnsupportedModelError, match="logits_to_keep"):
                forward(**inputs, logits_to_keep=torch.tensor([3]))


def test_a_forward_that_is_replaced_raises(model):
    """As accelerate does where a model is dispatched anew. It would be dense, without a word."""
    inputs = batch([ONE_IMAGE])
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        model.model.forward = type(model.model).forward.__get__(model.model)
        with pytest.raises(vitcop.UnsupportedModelError, match="has been replaced"):
            model(**inputs)
        text = model.get_input_embeddings()(torch.tensor([[1, 2, 3]]))
        assert model.model.language_model(inputs_embeds=text).last_hidden_state.shape[1] == 3


def test_a_model_dispatched_while_pruned_answers_the_same(model):
    """accelerate hands copies on, and what was observed travels on what it copies."""
    inputs = batch([ONE_IMAGE])
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        expected = model.generate(**inputs, **GREEDY)
        dispatched = accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
        assert torch.equal(dispatched.generate(**inputs, **GREEDY), expected)


def test_pruning_twice_is_refused(model):
    with pytest.raises(vitcop.UnsupportedModelError, match="whole model"):
        vitcop.prune(model.model, VITCOP)
    with vitcop.prune(model, VITCOP), pytest.raises(vitcop.UnsupportedModelError, match=r"already: .*vitcop on llava"):
        vitcop.prune(model, vitcop.Random())
    pruning = vitcop.prune(model, vitcop.Random())
    pruning.remove()
    with pytest.raises(vitcop.VitcopError, match="has been removed"), pruning:
        pass


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "peft"])
def test_a_lost_handle_is_found(model, wrapped):
    hooks = hooks_of(model)
    whole = get_peft_model(model, LoraConfig(target_modules=["q_proj"])) if wrapped else model
    assert vitcop.pruning_of(whole) is None
    vitcop.prune(whole, VITCOP)
    found = vitcop.pruning_of(whole)
    assert found.method is VITCOP and repr(found) == "<vitcop.Pruning: vitcop on llava, pruned>"
    found.remove()
    assert vitcop.pruning_of(whole) is None and repr(found) == "<vitcop.Pruning: vitcop on llava, removed>"
    assert wrapped or hooks_of(model) == hooks


def test_a_pruned_cache_refuses_the_unpruned_model(model):
    inputs, token = batch([ONE_IMAGE]), torch.tensor([[5]])
    with torch.no_grad():
        with vitcop.prune(model, VITCOP):
            output = model(**inputs)
            copied = copy.deepcopy(output.past_key_values)
            expected = model(input_ids=token, past_key_values=output.past_key_values).logits
        for cache in (output.past_key_values, copied):
            with pytest.raises(vitcop.UnsupportedModelError, match="not pruned"):
                model(input_ids=token, past_key_values=cache)
        with vitcop.prune(model, vitcop.Random()):  # decoding runs no method, so any pruning can go on
            assert torch.equal(model(input_ids=token, past_key_values=copied).logits, expected)


def test_a_cache_filled_before_pruning_stays_dense(model):
    inputs, token = batch([ONE_IMAGE]), torch.tensor([[5]])
    with torch.no_grad():
        output = model(**inputs)
        expected = model(input_ids=token, past_key_values=copy.deepcopy(output.past_key_values)).logits
        with vitcop.prune(model, VITCOP):
            assert torch.equal(model(input_ids=token, past_key_values=output.past_key_values).logits, expected)


def test_text_only_prompts_are_dense(model):
    text = batch([Prompt(images=0, seed=4)])
    with torch.no_grad():
        expected = model.generate(**text, **GREEDY)
        with vitcop.prune(model, VITCOP) as pruning:
            assert torch.equal(model.generate(**text, **GREEDY), expected)
            assert pruning.report is None
            model(**batch([ONE_IMAGE]))
            report = pruning.report
            model(**text)
    assert pruning.report is report is not None


@takes_encoder_outputs
def test_encoder_outputs_keep_their_own_images(model):
    """Images encoded ahead, and others after them, must not lend each other their saliency."""
    first, second = batch([ONE_IMAGE]), batch([Prompt(1, seed=9)])
    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
        model(**first)
        expected = pruning.report.stages[0].kept()
        encoded = model.model.get_image_features(first.pop("pixel_values"), return_dict=True)
        model.model.get_image_features(second["pixel_values"], return_dict=True)
        model(**first, mm_encoder_outputs={"image": encoded})
        assert pruning.report.stages[0].kept() == expected
    with torch.no_grad():
        unseen = model.model.get_image_features(second.pop("pixel_values"), return_dict=True)
        with vitcop.prune(model, VITCOP), pytest.raises(vitcop.UnsupportedModelError, match="vision encoder"):
            model(**second, mm_encoder_outputs={"image": unseen})


@takes_encoder_outputs
def test_encoder_outputs_can_be_stored(model):
    """What was observed goes along; modules of the model do not."""
    inputs, stored = batch([ONE_IMAGE]), io.BytesIO()
    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
        model(**inputs)
        expected = pruning.report.stages[0].kept()
        torch.save(model.model.get_image_features(inputs.pop("pixel_values"), return_dict=True), stored)
        stored.seek(0)
        encoded = torch.load(stored, weights_only=False)
        model(**inputs, mm_encoder_outputs={"image": encoded})
        assert pruning.report.stages[0].kept() == expected


@takes_encoder_outputs
def test_encoder_outputs_of_a_method_that_watched_less_are_refused_where_more_is_read(model):
    inputs = batch([ONE_IMAGE])
    with torch.no_grad():
        with vitcop.prune(model, VITCOP):
            encoded = model.model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
        with vitcop.prune(model, vitcop.HiPrune(0.5)), pytest.raises(vitcop.VitcopError, match="was not watched"):
            model(**inputs, mm_encoder_outputs={"image": encoded})
        with vitcop.prune(model, vitcop.KNorm(0.5)):
            model(**inputs, mm_encoder_outputs={"image": encoded})


def test_threads_do_not_mix(model):
    prompts = [Prompt(1, seed=31), Prompt(2, seed=32)]
    answers = {}

    def ask(index):
        with torch.no_grad():
            answers[index] = [model.generate(**batch([prompts[index]]), **GREEDY)[0, -4:].tolist() for _ in range(5)]

    with torch.no_grad(), vitcop.prune(model, VITCOP):
        expected = [model.generate(**batch([prompt]), **GREEDY)[0, -4:].tolist() for prompt in prompts]
        threads = [threading.Thread(target=ask, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {index: [expected[index]] * 5 for index in range(2)}


def test_each_thread_has_its_own_report(model):
    """And it stays when the pruning is removed."""
    mine, reports = batch([ONE_IMAGE]), []

    def ask():
        reports.append(pruning.report)
        model.generate(**batch([Prompt(2, seed=32)]), **GREEDY)
        reports.append(pruning.report)

    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
        model(**mine)
        other = threading.Thread(target=ask)
        other.start()
        other.join()
    before, after = reports
    assert before is None and len(after.images) == 2
    assert len(pruning.report.images) == 1


@pytest.mark.parametrize("by", ["another thread", "a hook within"])
def test_a_forward_ends_as_it_began_when_the_pruning_is_removed(model, by):
    """Half of its layers with hooks and half without would give what is neither pruned nor dense."""
    inputs, remover = batch([ONE_IMAGE]), None

    def remove(*_):
        nonlocal remover
        if by == "a hook within":
            pruning.remove()
        else:
            remover = threading.Thread(target=pruning.remove)
            remover.start()
            while "removed" not in repr(pruning):
                time.sleep(0.001)

    with torch.no_grad():
        dense, hooks = model(**inputs).logits, hooks_of(model)
        with vitcop.prune(model, VITCOP):
            expected = model(**inputs).logits
        pruning = vitcop.prune(model, VITCOP)
        hook = model.model.language_model.layers[3].register_forward_pre_hook(remove)
        assert torch.equal(model(**inputs).logits, expected)
        hook.remove()
        if remover is not None:
            remover.join(timeout=10)
            assert not remover.is_alive()
        assert hooks_of(model) == hooks and pruning.report is not None
        assert torch.equal(model(**inputs).logits, dense)


def test_a_forward_while_the_model_is_being_pruned_is_dense(model, monkeypatch):
    """Another thread may begin one when half of the hooks are on."""
    inputs, layer, seen = batch([ONE_IMAGE]), model.model.language_model.layers[4], []
    register = layer.register_forward_pre_hook

    def meanwhile(*args, **kwargs):
        seen.append(model(**inputs).logits)
        return register(*args, **kwargs)

    with torch.no_grad():
        dense = model(**inputs).logits
        monkeypatch.setattr(layer, "register_forward_pre_hook", meanwhile)
        with vitcop.prune(model, VITCOP):
            assert model(**inputs).logits.shape != dense.shape
    assert len(seen) == 1 and torch.equal(seen[0], dense)


def test_a_pruned_model_cannot_be_copied(model):
    with vitcop.prune(model, VITCOP):
        for copier in (copy.deepcopy, pickle.dumps):
            with pytest.raises(vitcop.UnsupportedModelError, match="copied or pickled"):
                copier(model)
    copy.deepcopy(model)


def test_a_removed_pruning_does_not_keep_the_model():
    model = LLAVA.model()
    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
        model(**batch([ONE_IMAGE]))
    weight = weakref.ref(model.lm_head.weight)
    del model
    gc.collect()
    assert weight() is None and pruning.report is not None


def test_a_dead_cache_takes_its_request_along(model):
    """No reference cycle: GPU memory must come back when the last name goes, not when the collector runs."""
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad(), vitcop.prune(model, VITCOP):
            output = model(**batch(RAGGED))
            keys = weakref.ref(output.past_key_values.layers[-1].keys)
            request = weakref.ref(output.past_key_values.request)
            del output
            assert keys() is None and request() is None
    finally:
        gc.enable()


def test_a_removed_pruning_leaves_no_circle_around_the_model():
    """A model that was pruned goes with its last name, as one that was not."""
    gc.collect()
    gc.disable()
    try:
        model = LLAVA.model()
        with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
            model.generate(**batch([ONE_IMAGE]), **GREEDY)
        weight = weakref.ref(model.lm_head.weight)
        del model
        assert weight() is None and pruning.report is not None
    finally:
        gc.enable()


def test_an_interrupted_layer_keeps_no_hook(model):
    """Where adapters draw dropout, projections are hooked for one run of their layer, to which it may not come."""
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], lora_dropout=0.5)).train()
    layer = model.model.language_model.layers[1]
    with torch.no_grad(), vitcop.prune(model, vitcop.FastV(0.5)):
        hook = layer.input_layernorm.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            wrapped(**batch([ONE_IMAGE]))
        hook.remove()
    assert not layer.self_attn.q_proj._forward_hooks


@pytest.mark.parametrize("first", ["before", "after"])
def test_others_may_wrap_what_we_wrap(model, first):
    """Theirs stays, whoever came first, and does not find ours once the pruning is removed."""
    inputs, calls = batch([ONE_IMAGE]), []

    def wrap():
        original = model.model.get_image_features

        def theirs(*args, **kwargs):
            calls.append(1)
            return original(*args, **kwargs)

        model.model.get_image_features = theirs

    with torch.no_grad():
        dense = model(**inputs).logits
        if first == "before":
            wrap()
        with vitcop.prune(model, VITCOP) as pruning:
            if first == "after":
                wrap()
            assert model(**inputs).logits.shape != dense.shape
        assert calls == [1] and pruning.report is not None
        assert torch.equal(model(**inputs).logits, dense)
        assert calls == [1, 1]


def test_an_error_in_the_encoder_leaves_nothing_running(model):
    inputs, encoder = batch([ONE_IMAGE]), model.model.vision_tower.encoder
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        expected = model(**inputs).logits
        hook = encoder.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(**inputs)
        hook.remove()
        assert torch.equal(model(**inputs).logits, expected)


def test_an_interrupted_generation_leaves_no_pictures_behind(model):
    inputs = batch([ONE_IMAGE])
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        hook = model.model.language_model.layers[3].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.generate(**inputs, **GREEDY)
        hook.remove()
        with pytest.raises(vitcop.UnsupportedModelError, match="pass pixel_values"):
            model.model(input_ids=inputs["input_ids"])
