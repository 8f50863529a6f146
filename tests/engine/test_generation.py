"""What `generate` can be asked for, on a pruned model."""

import copy
from contextlib import nullcontext

import pytest
import torch
from families.base import IMAGE, VIDEO
from tiny import FAMILIES, GREEDY, LLAVA, METHODS, ONE_IMAGE, RAGGED, READING_TEXT, Prompt, assert_same_logits, batch
from transformers import DynamicCache, GenerationConfig, TextStreamer
from transformers.cache_utils import Cache, QuantizedLayer

import vitcop

VITCOP = vitcop.ViTCoP(retention=0.3)


@pytest.fixture
def model():
    return LLAVA.model()


def continued(ids, *tokens):
    """The conversation so far with more tokens behind it."""
    return torch.cat([ids, torch.tensor([tokens] * len(ids))], dim=1)


@pytest.mark.parametrize("prompts", [(ONE_IMAGE,), RAGGED], ids=["one", "ragged"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in READING_TEXT])
def test_decoding_equals_a_longer_prompt(method, attention, prompts):
    """Keys of visual tokens do not depend on later text, so each step must repeat a prefill of all tokens so far."""
    model, inputs = LLAVA.model(attention), batch(prompts)
    with torch.no_grad(), vitcop.prune(model, METHODS[method]):
        out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
        ids = inputs["input_ids"]
        for step, logits in enumerate(out.logits):
            longer = inputs | {"input_ids": out.sequences[:, : ids.shape[1] + step]}
            if "attention_mask" in inputs:
                ones = torch.ones(len(ids), step, dtype=torch.long)
                longer["attention_mask"] = torch.cat([inputs["attention_mask"], ones], 1)
            assert_same_logits(logits, model(**longer).logits[:, -1])


@pytest.mark.parametrize("how", ["beams", "several answers"])
@pytest.mark.parametrize("images", [1, 2])
def test_repeated_prompts_keep_their_own_tokens(model, images, how):
    if images == 2 and not hasattr(model, "_expand_multimodal_outputs"):
        pytest.skip("this transformers repeats the images of a prompt one by one and so mixes them up, dense as well")
    prompts = (Prompt(images, seed=2), Prompt(1, seed=5))
    asked = {"num_beams": 3} if how == "beams" else {"num_return_sequences": 3, "do_sample": True}
    together = batch(prompts)
    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
        torch.manual_seed(0)
        out = model.generate(**together, **(GREEDY | asked))
        report = pruning.report
        assert report.rows == (*(row for row in range(3) for _ in range(images)), 3, 4, 5)
        first_image = {0: 0, 1: 3 * images}
        for row, prompt in enumerate(prompts):
            model(**batch([prompt]))
            for copies in range(3):
                image = first_image[row] + copies * prompt.images
                assert report.stages[-1].kept(image) == pruning.report.stages[-1].kept(0)
            if how == "beams":
                alone = model.generate(**batch([prompt]), **(GREEDY | asked))
                assert torch.equal(out[row, -5:], alone[0, -5:])


@pytest.mark.parametrize("method", ["vitcop", "three_stages_compact", "knorm"])
@pytest.mark.parametrize("prompts", [(ONE_IMAGE,), RAGGED], ids=["one", "ragged"])
def test_second_turn_on_the_same_cache(model, method, prompts):
    """All ids so far (which `generate` slices), and new ids alone, both continue as one longer prompt would."""
    inputs = batch(prompts)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    with torch.no_grad(), vitcop.prune(model, METHODS[method]):
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        conversation = continued(first.sequences, 11, 12, 13)
        mask = torch.cat([mask, mask.new_ones(len(mask), 8)], 1)
        expected = model.generate(**inputs | {"input_ids": conversation, "attention_mask": mask}, **GREEDY)

        cache = copy.deepcopy(first.past_key_values)
        again = model.generate(input_ids=conversation, attention_mask=mask, past_key_values=cache, **GREEDY)
        assert torch.equal(again, expected)

        cache = first.past_key_values
        new = conversation[:, cache.get_seq_length() :]
        logits = model(input_ids=new, attention_mask=mask, past_key_values=cache).logits[:, -1]
        assert torch.equal(logits.argmax(-1), expected[:, conversation.shape[1]])


def test_interleaved_caches_do_not_mix(model):
    prompts = [Prompt(1, seed=21), Prompt(2, seed=22)]
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        expected = [model.generate(**batch([p]), **GREEDY)[0, -5:] for p in prompts]
        outputs = [model(**batch([p])) for p in prompts]
        answers = [[], []]
        for _ in range(5):
            for turn, output in enumerate(outputs):
                token = output.logits[:, -1:, : min(IMAGE, VIDEO)].argmax(-1)
                answers[turn].append(token.item())
                outputs[turn] = model(input_ids=token, past_key_values=output.past_key_values)
    assert [torch.tensor(a).tolist() for a in answers] == [e.tolist() for e in expected]


def test_cache_rows_can_be_chosen_and_repeated(model):
    prompts, token = (Prompt(2, seed=2), ONE_IMAGE, Prompt(1, seed=5)), torch.tensor([[9]])
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        alone = [model(input_ids=token, past_key_values=model(**batch([p])).past_key_values).logits for p in prompts]
        cache = model(**batch(prompts)).past_key_values
        cache.batch_select_indices(torch.tensor([2, 0]))
        cache.batch_repeat_interleave(2)
        chosen = model(input_ids=token.expand(4, 1), past_key_values=cache).logits
    expected = torch.cat([alone[2], alone[2], alone[0], alone[0]])
    torch.testing.assert_close(chosen, expected, rtol=1e-4, atol=1e-5)


def test_crop_takes_back_text_only(model):
    inputs, token = batch([ONE_IMAGE]), torch.tensor([[9]])
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        positions = 3 * torch.arange(inputs["input_ids"].shape[1])[None]
        shorter = inputs | {"input_ids": inputs["input_ids"][:, :-1], "position_ids": positions[:, :-1]}
        expected = model(input_ids=token, past_key_values=model(**shorter).past_key_values).logits
        cache = model(**inputs, position_ids=positions).past_key_values
        model(input_ids=torch.tensor([[4, 5, 6]]), past_key_values=cache)
        cache.crop(-4)
        cropped = model(input_ids=token, past_key_values=cache).logits
        torch.testing.assert_close(cropped, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["divprune", "vitcop"])
def test_crop_ends_at_the_last_image(model, method):
    """All of the text behind it goes, and nothing of the image, whether or not its last token was kept."""
    inputs = batch([ONE_IMAGE])
    text = inputs["input_ids"].flip(1)[0].tolist().index(IMAGE)
    with torch.no_grad(), vitcop.prune(model, METHODS[method]):
        output = model(**inputs)
        cache = output.past_key_values
        with pytest.raises(vitcop.UnsupportedModelError, match="not its images"):
            copy.deepcopy(cache).crop(-text - 1)
        cache.crop(-text)
        again = model(input_ids=inputs["input_ids"][:, -text:], past_key_values=cache).logits
    assert_same_logits(again, output.logits[:, -text:])


SAID = [11, 12, 13, 14, 20, 21]
REPEATING = [1, *SAID, *[IMAGE] * 36, *SAID, *SAID, 11, 12, 13]
"""A prompt in which prompt lookup finds drafts of its answer."""


@pytest.mark.parametrize("how", ["assistant", "prompt lookup"])
@pytest.mark.parametrize("method", ["vitcop", *sorted(READING_TEXT)])
def test_assisted_decoding_gives_the_greedy_answer(model, method, how):
    """The first draft comes along with the prompt: no method may take it for the text behind the image."""
    inputs = batch([ONE_IMAGE]) | {"input_ids": torch.tensor([REPEATING])}
    drafted = {"assistant_model": LLAVA.model()} if how == "assistant" else {"prompt_lookup_num_tokens": 3}
    with torch.no_grad(), vitcop.prune(model, METHODS[method]) as pruning:
        plain = model.generate(**inputs, **GREEDY | {"max_new_tokens": 12})
        kept = [stage.kept() for stage in pruning.report.stages]
        assert pruning.report.prompt_lengths == (len(REPEATING),)
        assisted = model.generate(**inputs, **GREEDY | {"max_new_tokens": 12}, **drafted)
    assert pruning.report.prompt_lengths > (len(REPEATING),)  # a draft has come along
    assert [stage.kept() for stage in pruning.report.stages] == kept
    assert torch.equal(plain, assisted)


@pytest.mark.parametrize("name", ["cohere2_vision", "gemma3", "gemma4 with experts", "lfm2_vl"])
def test_drafts_are_taken_back(name):
    """Of windows and states too; and where a draft comes along with a prompt that says of each token what it sees."""
    family, lengths = FAMILIES[name], []
    model, inputs = family.model(), batch([ONE_IMAGE], family=family)
    if not hasattr(DynamicCache, "is_recording_past"):
        pytest.skip("this transformers keeps nothing of windows and states that could be taken back")
    ids = torch.cat([inputs["input_ids"], torch.tensor([SAID * 2 + SAID[:2]])], 1)
    inputs |= {"input_ids": ids} | family.token_kinds(ids)
    asked = GREEDY | {"max_new_tokens": 12}

    def spy(base, args, kwargs):
        lengths.append(kwargs["input_ids"].shape[1])

    with torch.no_grad(), vitcop.prune(model, VITCOP):
        expected = model.generate(**inputs, **asked)
        model.model.register_forward_pre_hook(spy, with_kwargs=True)
        assert torch.equal(model.generate(**inputs, **asked, prompt_lookup_num_tokens=3), expected)
    assert lengths[0] > ids.shape[1] and sum(lengths) > ids.shape[1] + 11  # drafts, of which some were wrong


@pytest.mark.parametrize("itself", [True, False])
def test_a_pruned_assistant_raises(model, itself):
    assistant, asked = (model if itself else LLAVA.model()), batch([ONE_IMAGE]) | GREEDY
    other = nullcontext() if itself else vitcop.prune(assistant, VITCOP)
    refused = pytest.raises(vitcop.UnsupportedModelError, match="pass pixel_values")
    with torch.no_grad(), vitcop.prune(model, VITCOP), other, refused:
        model.generate(**asked, assistant_model=assistant)


def test_a_longer_prompt_within_generate_is_no_draft(model):
    """Criteria and logits processors may ask the model about other prompts: all of their text is to be read."""
    other, seen = batch([Prompt(2, seed=5)]), []

    def ask(ids, scores):
        seen.append(model(**other).logits)
        return torch.zeros(len(ids), dtype=torch.bool)

    with torch.no_grad(), vitcop.prune(model, METHODS["fastv"]):
        expected = model(**other).logits
        model.generate(**batch([ONE_IMAGE]), **GREEDY, stopping_criteria=[ask])
    assert len(seen) == 5 and all(torch.equal(logits, expected) for logits in seen)


@pytest.mark.parametrize("how", ["assistant", "prompt lookup", "config", "default"])
def test_assisted_decoding_of_another_turn_raises(model, how):
    """transformers has all of the conversation read again behind what the cache holds."""
    lookup = {"prompt_lookup_num_tokens": 3}
    drafted = {"assistant": {"assistant_model": LLAVA.model()}, "prompt lookup": lookup}.get(how, {})
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        first = model.generate(**batch([ONE_IMAGE]), **GREEDY, return_dict_in_generate=True)
        if how == "config":
            drafted = {"generation_config": GenerationConfig(**lookup)}
        elif how == "default":
            model.generation_config.prompt_lookup_num_tokens = 3
        again = {"input_ids": continued(first.sequences, 11, 12), "past_key_values": first.past_key_values}
        with pytest.raises(vitcop.UnsupportedModelError, match="earlier turn"):
            model.generate(**again, **GREEDY | drafted)


def test_logits_of_several_tokens_are_no_draft(model):
    """Who asks for them of a prompt of one's own, as trainers do, has all of its text read."""
    inputs = batch([ONE_IMAGE]) | {"input_ids": torch.tensor([REPEATING])}
    with torch.no_grad(), vitcop.prune(model, METHODS["fastv"]) as pruning:
        expected = model(**inputs).logits[:, -5:]
        kept = [stage.kept() for stage in pruning.report.stages]
        assert torch.equal(model(**inputs, logits_to_keep=5).logits, expected)
        assert [stage.kept() for stage in pruning.report.stages] == kept


def test_a_drafted_placeholder_raises(model):
    """Prompt lookup copies what stood behind the last words before; the dense model raises as well."""
    ids = [1, *SAID, *[IMAGE] * 36, 5, 6, *SAID]
    inputs = batch([ONE_IMAGE]) | {"input_ids": torch.tensor([ids]), "prompt_lookup_num_tokens": 2}
    asked = {"do_sample": False, "max_new_tokens": 5}
    with torch.no_grad():
        with pytest.raises(ValueError, match="do not match"):
            model.generate(**inputs, **asked)
        with vitcop.prune(model, VITCOP):
            with pytest.raises(vitcop.UnsupportedModelError, match="suppress_tokens"):
                model.generate(**inputs, **asked)
            model.generate(**inputs, **asked, suppress_tokens=[IMAGE])


class CoarseLayer(QuantizedLayer):
    """Quantises as transformers' own layers do, which need optional packages, but to quarters."""

    def _quantize(self, tensor, axis):
        return (4 * tensor).round().to(torch.int8)

    def _dequantize(self, quantised):
        return quantised.float() / 4


def test_quantised_cache_selects_by_the_exact_keys(model):
    """Half the stages read decoder keys: quantised ones would choose other tokens."""
    inputs = batch([ONE_IMAGE])
    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
        model(**inputs)
        exact = [stage.kept() for stage in pruning.report.stages]
        cache = Cache(layer_class_to_replicate=CoarseLayer)
        output = model.generate(**inputs, past_key_values=cache, **GREEDY)
    assert [stage.kept() for stage in pruning.report.stages] == exact
    assert output.shape[1] == inputs["input_ids"].shape[1] + 5


@pytest.mark.parametrize("operation", ["crop", "batch_select_indices", "batch_repeat_interleave", "reorder_cache"])
def test_rows_and_ends_of_a_quantised_cache(model, operation):
    """Its layers keep most tokens where what they inherit from others does not look: as without, or a refusal."""

    class ExactLayer(CoarseLayer):
        def _quantize(self, tensor, axis):
            return tensor.clone()

        def _dequantize(self, quantised):
            return quantised

    given = {"crop": -1, "batch_repeat_interleave": 1}.get(operation, torch.tensor([1, 0]))
    logits = []
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        for cache in (DynamicCache(), Cache(layer_class_to_replicate=ExactLayer)):
            model(**batch([ONE_IMAGE, Prompt(1, seed=5)]), past_key_values=cache)
            model(input_ids=torch.tensor([[4, 5], [6, 7]]), past_key_values=cache)
            try:
                getattr(cache, operation)(given)
            except vitcop.UnsupportedModelError as error:
                assert "ExactLayer" in str(error) and operation in str(error)
                assert cache.get_seq_length() == batch([ONE_IMAGE, Prompt(1, seed=5)])["input_ids"].shape[1] + 2
                return
            logits.append(model(input_ids=torch.tensor([[9], [8]]), past_key_values=cache).logits)
    assert operation == "reorder_cache"
    torch.testing.assert_close(logits[1], logits[0])


def test_a_given_cache_can_be_reset_and_used_again(model):
    inputs, cache = batch([ONE_IMAGE]), DynamicCache()
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        first = model(**inputs, past_key_values=cache).logits
        cache.reset()
        if cache.get_seq_length():
            pytest.skip("this transformers blanks a cache without emptying it")
        again = model(**inputs, past_key_values=cache).logits
    assert torch.equal(first, again)
    cache.reset()
    with torch.no_grad():
        assert model(**inputs, past_key_values=cache).logits.shape[1] == inputs["input_ids"].shape[1]


def test_streamer_sees_the_answer(model):
    class Collect(TextStreamer):
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            pass

    streamer = Collect()
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        out = model.generate(**batch([ONE_IMAGE]), **GREEDY, streamer=streamer)
    assert streamer.tokens == out[0].tolist()


def test_hidden_states_and_attentions_hold_survivors():
    model, inputs = LLAVA.model("eager"), batch(RAGGED)
    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
    for layer, attention in enumerate(out.attentions):
        width = pruning.report.positions_at(layer).shape[1]
        assert attention.shape[2:] == (width, width)
        assert out.hidden_states[layer + 1].shape[1] == width
    assert out.logits.shape[1] == pruning.report.positions.shape[1]


def test_input_embeddings_with_placeholders(model):
    inputs = batch([ONE_IMAGE])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        by_ids = model(**inputs).logits
        by_embeds = model(inputs_embeds=embeds, pixel_values=inputs["pixel_values"]).logits
        assert torch.equal(by_ids, by_embeds)
        merged = torch.randn_like(embeds)
        with pytest.raises(vitcop.UnsupportedModelError, match="inputs_embeds"):
            model(inputs_embeds=merged)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_slopes(method, model):
    """Training mode works as long as the cache is on; the loss is the user's. What is chosen has no slope."""
    model.train().double()
    inputs = batch([ONE_IMAGE])
    inputs["pixel_values"] = inputs["pixel_values"].double()
    bias = model.model.multi_modal_projector.linear_2.bias
    along = torch.randn(bias.shape, generator=torch.Generator().manual_seed(0), dtype=bias.dtype)

    def loss():
        return model(**inputs).logits[0, -1].logsumexp(-1)

    with vitcop.prune(model, METHODS[method]) as pruning:
        loss().backward()
        chosen, losses = pruning.report.stages, []
        with torch.no_grad():
            for step in (1e-4, -2e-4):
                bias += step * along
                losses.append(loss())
                assert [stage.kept() for stage in pruning.report.stages] == [stage.kept() for stage in chosen]
    slope = (losses[0] - losses[1]) / 2e-4
    # Norms of the decoder are worked out in float32, whatever the type of the model.
    torch.testing.assert_close(bias.grad @ along, slope, rtol=1e-2, atol=1e-3)
