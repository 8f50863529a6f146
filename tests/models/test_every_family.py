"""What every family can do besides a forward: generation, later turns, repeated prompts, and leaving no trace."""

import gc
import weakref
from dataclasses import dataclass, field, replace

import pytest
import torch
from families.base import IMAGE, NUM_LAYERS
from measures import bytes_held, skip_where_all_tokens_run
from tiny import FAMILIES, GREEDY, KEEP_ONLY, METHODS, ONE_IMAGE, Prompt, ThreeStages, batch, ragged
from torch.utils.flop_counter import FlopCounterMode

import vitcop
from vitcop.engine.hooks import Pruning
from vitcop.models import FAMILIES as KNOWN
from vitcop.models import family_of

VITCOP = METHODS["vitcop"]
MERGING = ("vitcop", "three_stages_compact")


def extended(family, inputs, ids):
    """The inputs of a longer prompt: `ids` are those of `inputs`, and more, which are text even where random weights
    have said a marker.
    """
    prompt, more = inputs["input_ids"], ids.shape[1] - inputs["input_ids"].shape[1]
    kinds = family.token_kinds(torch.cat([prompt, prompt.new_full((len(prompt), more), 10)], 1))
    longer = inputs | {"input_ids": ids} | kinds
    if "attention_mask" in inputs:
        mask = inputs["attention_mask"]
        longer["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), more)], 1)
    return longer


CASES = [(method, "sdpa", prompts) for method in MERGING for prompts in ("one", "ragged")]
# Backends differ in their masks alone.
CASES.append(("vitcop", "eager", "ragged"))


@pytest.mark.parametrize(("method", "attention", "prompts"), CASES)
@pytest.mark.parametrize("name", FAMILIES)
def test_decoding_equals_a_longer_prompt(name, method, attention, prompts):
    """Keys of visual tokens do not depend on later text, so each step must repeat a prefill of all tokens so far."""
    family = FAMILIES[name]
    model = family.model(attention)
    inputs = batch([ONE_IMAGE] if prompts == "one" else ragged(family), family=family)
    with torch.no_grad(), vitcop.prune(model, METHODS[method]):
        out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
        width = inputs["input_ids"].shape[1]
        for step, logits in enumerate(out.logits):
            longer = extended(family, inputs, out.sequences[:, : width + step])
            torch.testing.assert_close(logits, model(**longer).logits[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["vitcop", "three_stages", "three_stages_compact"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith(("qwen", "glm"))])
def test_what_comes_behind_a_prompt_that_ends_in_a_picture(name, method):
    """Its last tokens may have been dropped, but they have been there.

    Qwen's and GLM's dense models disagree with themselves there: `generate` counts other positions than the forward.
    """
    family = FAMILIES[name]
    model, inputs = family.model(), batch([ONE_IMAGE], family=family)
    end = int((inputs["input_ids"] == IMAGE).nonzero()[-1, 1]) + 1
    inputs |= {name: values[:, :end] for name, values in inputs.items() if values.shape == inputs["input_ids"].shape}
    inputs["input_ids"] = inputs["input_ids"][:, :end]
    with torch.no_grad(), vitcop.prune(model, METHODS[method]):
        out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
        cache = model(**inputs).past_key_values
        for step, logits in enumerate(out.logits[1:]):
            token = out.sequences[:, end + step, None]
            torch.testing.assert_close(model(input_ids=token, past_key_values=cache).logits[:, -1], logits)
            longer = extended(family, inputs, out.sequences[:, : end + step + 1])
            torch.testing.assert_close(model(**longer).logits[:, -1], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_do_not_depend_on_the_side_of_the_padding(name):
    """Behind padding, `generate` counts on from its column, which has no position."""
    family = FAMILIES[name]
    model, prompts = family.model(), ragged(family)
    left, right = (batch(prompts, padding, family) for padding in ("left", "right"))
    with torch.no_grad(), vitcop.prune(model, METHODS["three_stages"]):
        expected = model.generate(**left, **GREEDY)[:, left["input_ids"].shape[1] :]
        assert torch.equal(model.generate(**right, **GREEDY)[:, left["input_ids"].shape[1] :], expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_second_turn_on_the_same_cache(name):
    """`generate` with all ids so far continues as one longer prompt would, whatever was asked in between."""
    family = FAMILIES[name]
    model, inputs = family.model(), batch(ragged(family), family=family)
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        turn = torch.tensor([[11, 12, 13]] * len(first.sequences))
        longer = extended(family, inputs, torch.cat([first.sequences, turn], 1))
        expected = model.generate(**longer, **GREEDY)
        text = {name: longer[name] for name in ("input_ids", "attention_mask")}
        model.generate(**batch([Prompt(2, seed=22)] * len(turn), family=family), **GREEDY)
        again = model.generate(**text, past_key_values=first.past_key_values, **GREEDY)
    assert torch.equal(again, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_interleaved_caches_do_not_mix(name):
    """Also where the model remembers the positions of its last prompt, as Qwen's and GLM's do."""
    family = FAMILIES[name]
    model, inputs = family.model(), [batch([p], family=family) for p in (Prompt(1, seed=21), Prompt(2, seed=22))]
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        expected = [model.generate(**i, **GREEDY)[0, -5:].tolist() for i in inputs]
        outputs = [model(**i) for i in inputs]
        answers = [[], []]
        for _ in range(5):
            for turn, output in enumerate(outputs):
                token = output.logits[:, -1:, : min(GREEDY["suppress_tokens"])].argmax(-1)
                answers[turn].append(token.item())
                outputs[turn] = model(input_ids=token, past_key_values=output.past_key_values)
    assert answers == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_beams_keep_their_own_tokens(name):
    family = FAMILIES[name]
    model, prompts = family.model(), (Prompt(1, seed=2), Prompt(1, seed=5))
    if not hasattr(model, "_expand_multimodal_outputs"):
        pytest.skip("this transformers repeats the images of prompts one by one, dense as well")
    if name.startswith("glm") and "video" in family.kinds:
        pytest.skip("transformers loses the videos of GLM's prompts where it repeats these, dense as well")
    if name == "llama4":
        pytest.skip("transformers repeats Llama 4's prompts without their pictures, dense as well")
    asked = GREEDY | {"num_beams": 2}
    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
        together = model.generate(**batch(prompts, family=family), **asked)
        assert pruning.report.rows == (0, 1, 2, 3)
        for row, prompt in enumerate(prompts):
            alone = model.generate(**batch([prompt], family=family), **asked)
            assert torch.equal(together[row, -5:], alone[0, -5:])


@pytest.mark.parametrize("name", FAMILIES)
def test_removing_leaves_the_model_as_it_was(name):
    family = FAMILIES[name]
    model, inputs = family.model(), batch(ragged(family), family=family)

    def traces():
        hooks = [
            (name, list(module._forward_pre_hooks), list(module._forward_hooks))
            for name, module in model.named_modules()
        ]
        return hooks, set(vars(model)), set(vars(model.base_model))

    with torch.no_grad():
        dense, before = model(**inputs).logits, traces()
        with vitcop.prune(model, VITCOP):
            assert model(**inputs).logits.shape != dense.shape
        assert traces() == before
        assert torch.equal(model(**inputs).logits, dense)


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, m) for name, family in FAMILIES.items() for m in ("fastv", "vitcop", "hiprune") if m not in family.refuses],
)
def test_what_is_left_in_hand_does_not_keep_the_model(name, method):
    """Neither the handle, for its report, nor an output, whether or not the method has read what was observed."""
    family = FAMILIES[name]
    model = family.model()
    with torch.no_grad(), vitcop.prune(model, METHODS[method]) as pruning:
        output = model(**batch([ONE_IMAGE], family=family))
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None and pruning.report is not None and output.logits is not None


@pytest.mark.parametrize("name", FAMILIES)
def test_text_alone_is_dense(name):
    family = FAMILIES[name]
    model, inputs = family.model(), batch([Prompt(0, seed=1)], family=family)
    with torch.no_grad():
        dense = model.generate(**inputs, **GREEDY)
        with vitcop.prune(model, VITCOP) as pruning:
            assert torch.equal(model.generate(**inputs, **GREEDY), dense)
    assert pruning.report is None


@pytest.mark.parametrize("name", FAMILIES)
def test_placeholders_without_pictures_raise(name):
    family = FAMILIES[name]
    model, inputs = family.model(), batch([ONE_IMAGE], family=family)
    ids = inputs["input_ids"]
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        for _ in range(2):
            with pytest.raises(vitcop.UnsupportedModelError, match="pass pixel_values"):
                model(input_ids=ids, **family.token_kinds(ids))
            model.generate(**inputs, **GREEDY)  # what it has encoded is of no other prompt
        cache = model(**inputs).past_key_values
        with pytest.raises(vitcop.UnsupportedModelError, match="first turn"):
            model(**inputs, past_key_values=cache)


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_begin_where_the_decoder_lets_them(name):
    family = FAMILIES[name]
    model, inputs = family.model(), batch([ONE_IMAGE], family=family)
    with torch.no_grad(), vitcop.prune(model, vitcop.Random(0.9)) as pruning:
        layers = pruning._family.stage_layers
        model(**inputs)
    first, last = layers[0], layers[-1]
    assert last == NUM_LAYERS - (2 if name == "gemma4" else 1)  # the last two make the keys of layers behind them
    for layer in (first, last):
        with torch.no_grad(), vitcop.prune(model, vitcop.Random(0.9, layer=layer)) as pruning:
            model(**inputs)
            assert [stage.layer for stage in pruning.report.stages] == [layer]
    for layer in {*range(1, first), *range(last + 1, NUM_LAYERS)}:
        refused = pytest.raises(vitcop.BudgetError, match=f"from {first} to {last}")
        with torch.no_grad(), vitcop.prune(model, vitcop.Random(0.9, layer=layer)), refused:
            model(**inputs)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("method", ["vitcop", "three_stages"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_makes_as_many_logits_as_are_asked_for(name, method, padding):
    """Whether the model cuts what enters the head, by how long it is, or lets no others through its last layers."""
    family = FAMILIES[name]
    model, inputs = family.model(), batch(ragged(family), padding, family)
    with torch.no_grad(), vitcop.prune(model, METHODS[method]):
        whole = model(**inputs).logits
        for count in (1, 2) if padding == "left" else (1,):
            torch.testing.assert_close(model(**inputs, logits_to_keep=count).logits, whole[:, -count:])


@dataclass(frozen=True)
class Recording(ThreeStages):
    """Keeps what its stages get."""

    tables: list = field(default_factory=list)

    def select(self, tokens, budget):
        self.tables.append(tokens)
        return super().select(tokens, budget)


@pytest.mark.parametrize("name", FAMILIES)
def test_methods_are_told_what_the_family_knows(name):
    family = FAMILIES[name]
    model, inputs, method = family.model(), batch(ragged(family), family=family), Recording()
    layers = model.get_decoder().layers
    normalised = any(name.endswith(("k_norm", "k_layernorm")) for name, _ in layers.named_modules())
    with torch.no_grad(), vitcop.prune(model, method) as pruning:
        pruning._family.key_cutoff = 3.0
        model(**inputs)
        images = pruning.report.to_dict()["images"]
    assert len(method.tables) == 3
    for tokens in method.tables:
        assert tokens.normalised_keys == normalised and tokens.key_cutoff == 3
    kinds = [image["modality"] for image in images]
    assert kinds == ["image"] * kinds.count("image") + ["video"] * kinds.count("video")
    assert set(kinds) == set(family.kinds)


def encoded(family, model, monkeypatch):
    """A batch of all that a family takes, and of each call of its encoder the modality, the arguments, the attention
    that is observed, and the observation.
    """
    inputs, calls, observe = batch(ragged(family), family=family), [], Pruning._observe

    def spy(self, modality, call, watched):
        observation = observe(self, modality, call, watched)
        calls.append((modality, call, watched[self._watched[modality][0]], observation))
        return observation

    monkeypatch.setattr(Pruning, "_observe", spy)
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        model(**inputs)
    return inputs, calls


@pytest.mark.parametrize("name", FAMILIES)
def test_grids_are_known_before_the_encoder_runs(name, monkeypatch):
    """From sizes alone, except where tiles of zeros are no pictures."""
    family, needs_pixels = FAMILIES[name], name in ("idefics3", "smolvlm")
    model = family.model()
    inputs, calls = encoded(family, model, monkeypatch)
    if not needs_pixels:
        inputs = {key: value.to("meta") if key.startswith("pixel_values") else value for key, value in inputs.items()}
    for modality, _, _, observation in calls:
        before = family_of(model).grids(modality, inputs)
        assert len(before) == len(observation.images)
        for grids, seen in zip(before, observation.images, strict=True):
            assert grids.shapes == seen.shapes
            assert torch.equal(grids.segments, seen.segments) and torch.equal(grids.places, seen.places)
        found = family_of(model).placeholders(inputs)[modality]
        assert sum(grids.placeholders for grids in before) == found.sum()


@pytest.mark.parametrize("name", FAMILIES)
def test_an_encoder_that_ran_on_more_than_the_sizes_say_raises(name, monkeypatch):
    """As on tiles that pad a picture to as many as another has: what shows which patch would be shifted."""
    family = FAMILIES[name]
    model = family.model()
    for modality, call, watched, _ in encoded(family, model, monkeypatch)[1]:
        axis = 1 if "pixtral" in name or name == "mistral3" else 0  # all patches stand in one row
        padded = {made: torch.cat([values, values], axis) for made, values in watched.projected.items()}
        with pytest.raises(vitcop.UnsupportedModelError, match="encoder ran on"):
            family_of(model).observe(modality, call, replace(watched, projected=padded))


@pytest.mark.parametrize("name", FAMILIES)
def test_costs_are_the_counted_ones(name):
    """Eager attention multiplies full n x n matrices, which is what the closed form states."""
    family = FAMILIES[name]
    model, inputs = family.model("eager"), batch([ONE_IMAGE], family=family)
    skip_where_all_tokens_run(model)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning, counter:
        output = model(**inputs, logits_to_keep=1)  # as `generate` does, on which it depends what runs in Gemma 4
    layers, counts = set(model.get_decoder().layers), counter.get_flop_counts()
    names = [f"{type(model).__name__}.{name}" for name, module in model.named_modules() if module in layers]
    counted = sum(sum(counts[name].values()) for name in names)
    dense, pruned = pruning.report.prefill_flops
    assert pruned == counted and dense > pruned
    held = bytes_held(output.past_key_values)
    expected = pruning.report.kv_cache_bytes[1]
    assert expected == held or (expected > held and family_of(model).has_windows)  # which hold less


@pytest.mark.parametrize("method", ["three_stages", "three_stages_compact"])
@pytest.mark.parametrize("name", FAMILIES)
def test_positions_are_compact_only_where_they_have_one_axis(name, method):
    family = FAMILIES[name]
    model, inputs, seen = family.model(), batch([ONE_IMAGE], family=family), []

    def spy(rotary, args, kwargs):
        seen.append(args[1] if len(args) > 1 else kwargs["position_ids"])

    hook = model.get_decoder().rotary_emb.register_forward_pre_hook(spy, with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
        dense = seen[-1]
        with vitcop.prune(model, KEEP_ONLY[method]) as pruning:
            model(**inputs)
            columns = pruning.report.positions_at(0)[0]
    hook.remove()
    compact = KEEP_ONLY[method].positions == "compact" and not KNOWN[model.config.model_type].keeps_positions
    assert torch.equal(seen[-1], dense[..., : len(columns)] if compact else dense[..., columns])
