"""What works and what raises, besides generation: the table in docs/limits.md, line by line."""

import copy
import pickle
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from families.base import IMAGE
from families.llama4 import Llama4
from needs import takes_encoder_outputs
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, LLAVA, ONE_IMAGE, RAGGED, Prompt, assert_same_logits, batch
from transformers import (
    AttentionInterface,
    BertConfig,
    BertModel,
    DynamicCache,
    Gemma3ForSequenceClassification,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    StaticCache,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import vitcop
from vitcop.engine.refusals import check_encoded

VITCOP = vitcop.ViTCoP(retention=0.3)
GREEDY = {"do_sample": False, "max_new_tokens": 4, "suppress_tokens": [63]}


@pytest.fixture
def model():
    return LLAVA.model()


@pytest.fixture
def inputs():
    return batch([ONE_IMAGE])


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"use_cache": False}, "needs the KV cache"),
        ({"cache_implementation": "static"}, "StaticLayer"),
        ({"cache_implementation": "offloaded"}, "offloaded cache"),
        ({"prefill_chunk_size": 8}, "prefill_chunk_size"),
    ],
    ids=["use_cache", "static", "offloaded", "chunked"],
)
def test_generate_raises(model, inputs, call, reason):
    if call.get("cache_implementation") == "offloaded" and not torch.accelerator.is_available():
        cache = DynamicCache()
        cache.offloading = True  # its constructor needs an accelerator
        call = {"past_key_values": cache}
    with torch.no_grad(), vitcop.prune(model, VITCOP), pytest.raises(vitcop.UnsupportedModelError, match=reason):
        model.generate(**inputs, **GREEDY, **call)


class Chunked(Llama4):
    def __init__(self, chunk, floor):
        self.chunk, self.floor = chunk, floor


@pytest.mark.parametrize(("chunk", "floor"), [(50, 1000), (1000, 51)], ids=["chunk", "scaled queries"])
def test_prompts_up_to_the_length_from_which_llama_4_attends_otherwise(chunk, floor):
    """There, and no earlier, the dense model answers otherwise than one that attends to all."""
    model, whole = Chunked(chunk, floor).model(), Chunked(1000, 1000).model()
    inputs, width = batch([ONE_IMAGE], family=FAMILIES["llama4"]), 51
    ids = torch.cat([inputs["input_ids"], torch.arange(2, width).remainder(50)[None]], 1)[:, :width]
    fits, beyond = inputs | {"input_ids": ids[:, :-1]}, inputs | {"input_ids": ids}
    with torch.no_grad():
        assert_same_logits(model(**fits).logits, whole(**fits).logits)
        assert not torch.allclose(model(**beyond).logits, whole(**beyond).logits, rtol=1e-3, atol=1e-4)
        with vitcop.prune(model, VITCOP):
            output = model(**fits)
            for longer in (beyond, {"input_ids": ids[:, -1:], "past_key_values": output.past_key_values}):
                with pytest.raises(vitcop.UnsupportedModelError, match="Beyond 50 tokens"):
                    model(**longer)


def test_sliding_window_raises(model, inputs):
    config = model.config.text_config
    config.layer_types, config.sliding_window = ["sliding_attention"] * config.num_hidden_layers, 16
    cache = DynamicCache(config=config)
    stock, refused = LLAVA.model(), pytest.raises(vitcop.UnsupportedModelError, match="without a sliding window")
    with torch.no_grad(), vitcop.prune(stock, VITCOP), refused:
        stock(**inputs, past_key_values=cache)
    with pytest.raises(vitcop.UnsupportedModelError, match="'llama' decoder has sliding-window"):
        vitcop.prune(model, VITCOP)


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_a_static_cache_is_named_where_masks_are_made_for_it(name):
    """`generate` makes them of four axes, or for each kind of layer, before the model is called."""
    family = FAMILIES[name]
    model, inputs = family.model(), batch([ONE_IMAGE], family=family)
    with vitcop.prune(model, VITCOP), pytest.raises(vitcop.UnsupportedModelError, match="A cache of StaticLayer"):
        model.generate(**inputs, **GREEDY, cache_implementation="static")


def test_chunks_from_which_a_video_is_lost_raise():
    """transformers finds the features of GLM's videos in none, and dense they are lost as well."""
    family = FAMILIES["glm4v with videos"]
    model, inputs = family.model(), batch([Prompt(0, seed=4, videos=1)], family=family)
    with vitcop.prune(model, VITCOP), pytest.raises(vitcop.UnsupportedModelError, match="leave out prefill_chunk_size"):
        model.generate(**inputs, **GREEDY, prefill_chunk_size=8)


def test_static_cache_is_accepted_for_text(model):
    """Nothing is pruned there, so nothing has to be refused."""
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        cache = StaticCache(config=model.config.text_config, max_cache_len=16)
        model(input_ids=torch.tensor([[1, 2, 3]]), past_key_values=cache)


def test_what_is_aligned_with_the_whole_prompt_raises(model, inputs):
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        with pytest.raises(vitcop.UnsupportedModelError, match="labels"):
            model(**inputs, labels=inputs["input_ids"])
        for kept in (torch.tensor([3]), slice(-2, None), -1):
            with pytest.raises(vitcop.UnsupportedModelError, match="logits_to_keep"):
                model(**inputs, logits_to_keep=kept)
        text = torch.tensor([[1, 2, 3]])
        assert model(input_ids=text, labels=text).loss > 0


def test_the_last_logits_are_of_the_columns_asked_for(model):
    """As far as these are text. Where a prompt is padded behind its text, they stand elsewhere."""
    prompts = (ONE_IMAGE, Prompt(1, seed=7), Prompt(images=0, seed=3))
    left, right = batch(prompts), batch(prompts, "right")
    text = [row.tolist().index(IMAGE) for row in left["input_ids"].flip(1)[:2]]
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        whole, some = model(**left).logits, min(text) + 1
        assert torch.equal(model(**left, logits_to_keep=some).logits, whole[:, -some:])
        with pytest.raises(vitcop.UnsupportedModelError, match="reaches into"):
            model(**left, logits_to_keep=some + 1)
        with pytest.raises(vitcop.UnsupportedModelError, match="pad on the left"):
            model(**right, logits_to_keep=2)
        assert_same_logits(model(**right, logits_to_keep=1).logits, whole[:, -1:])


def test_encoder_outputs_that_a_model_would_pass_over_raise(model):
    def forward(input_ids, **kwargs): ...

    call = {"mm_encoder_outputs": {"image": torch.zeros(1)}}
    with pytest.raises(vitcop.UnsupportedModelError, match="would go on without the images"):
        check_encoded(call, forward)
    check_encoded({}, forward)


def test_router_losses_raise():
    family = FAMILIES["qwen3_vl_moe"]
    model, inputs = family.model(), batch([ONE_IMAGE], family=family)
    asked = {"attention_mask": torch.ones_like(inputs["input_ids"]), "output_router_logits": True}
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        with pytest.raises(vitcop.UnsupportedModelError, match="leave out output_router_logits"):
            model(**inputs, **asked)
        model.config.text_config.output_router_logits = True
        with pytest.raises(vitcop.UnsupportedModelError, match="leave out output_router_logits"):
            model(**inputs)
        model(**inputs, output_router_logits=False)


def test_keys_that_layers_share_are_not_handed_to_an_assistant():
    family = FAMILIES["gemma4"]
    model, inputs = family.model(), batch([ONE_IMAGE], family=family)
    refused = pytest.raises(vitcop.UnsupportedModelError, match="leave it out, and the assistant")
    with torch.no_grad(), vitcop.prune(model, vitcop.ViTCoP(0.5)), refused:
        model(**inputs, return_shared_kv_states=True)


def test_a_draft_that_a_whole_prompt_would_see_raises():
    family = FAMILIES["paligemma"]
    model, inputs = family.model(), batch([ONE_IMAGE], family=family)
    # Words that come again, so that prompt lookup drafts what follows them.
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[5, 6, 7, 8, 5]])], 1)
    answered = family.token_kinds(inputs["input_ids"])["token_type_ids"]
    asked = GREEDY | {"prompt_lookup_num_tokens": 2}
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        plain = model.generate(**inputs | {"token_type_ids": answered}, **GREEDY)
        assert torch.equal(model.generate(**inputs | {"token_type_ids": answered}, **asked), plain)
        with pytest.raises(vitcop.UnsupportedModelError, match="leave out the assistant"):
            model.generate(**inputs | {"token_type_ids": torch.zeros_like(answered)}, **asked)


def test_heads_that_pick_a_token_by_its_column_raise():
    config = copy.deepcopy(FAMILIES["gemma3"].model().config)
    config.num_labels = config.text_config.num_labels = 2
    with pytest.raises(vitcop.UnsupportedModelError, match="classification"):
        vitcop.prune(Gemma3ForSequenceClassification(config), VITCOP)


def test_labels_raise_where_nothing_is_dropped(model, inputs):
    with vitcop.prune(model, vitcop.Random(retention=1.0)), pytest.raises(vitcop.UnsupportedModelError, match="labels"):
        model(**inputs, labels=inputs["input_ids"])


def test_the_text_of_a_batch_is_cropped_and_padding_behind_it_is_not(model):
    inputs, token = batch(RAGGED), torch.tensor([[9]] * len(RAGGED))
    shorter = inputs | {name: inputs[name][:, :-1] for name in ("input_ids", "attention_mask")}
    with torch.no_grad(), vitcop.prune(model, vitcop.KNorm(retention=0.6)):
        cache, short = model(**inputs).past_key_values, model(**shorter).past_key_values
        cache.crop(-1)
        given = {"input_ids": token, "attention_mask": inputs["attention_mask"]}
        expected = model(**given, past_key_values=short).logits
        torch.testing.assert_close(model(**given, past_key_values=cache).logits, expected, rtol=1e-4, atol=1e-5)
        cache = model(**batch(RAGGED, "right")).past_key_values
        with pytest.raises(vitcop.UnsupportedModelError, match="Only the text at the end"):
            cache.crop(-1)


def test_a_window_is_cropped_as_far_as_in_the_dense_model():
    family = FAMILIES["gemma3"]
    model, inputs, messages = family.model(), batch([ONE_IMAGE], family=family), []
    for pruned in (False, True):
        with torch.no_grad(), vitcop.prune(model, VITCOP) if pruned else nullcontext():
            cache = model(**inputs).past_key_values
            with pytest.raises(RuntimeError) as refused:
                cache.crop(-1)
            messages.append(str(refused.value))
            model(input_ids=torch.tensor([[5]]), past_key_values=cache)  # nothing has been taken back
    assert messages[0] == messages[1]


def test_gradient_checkpointing_raises(model, inputs):
    model.train()
    model.gradient_checkpointing_enable()
    with vitcop.prune(model, VITCOP), pytest.raises(vitcop.UnsupportedModelError, match="checkpointing"):
        model(**inputs)


def test_masks_of_other_shapes_raise(model, inputs):
    width = inputs["input_ids"].shape[1]
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        with pytest.raises(vitcop.UnsupportedModelError, match="2-D"):
            model(**inputs, attention_mask=torch.ones(1, 1, width, width))
        for other in (width - 5, width + 5):
            with pytest.raises(vitcop.UnsupportedModelError, match=rf"\(1, {width}\).*got shape \(1, {other}\)"):
                model(**inputs, attention_mask=torch.ones(1, other, dtype=torch.long))
        half = (torch.arange(width) < width // 2)[None].long()
        with pytest.raises(vitcop.UnsupportedModelError, match="hides visual tokens"):
            model(**inputs, attention_mask=half)
        cache = model(**inputs).past_key_values
        with pytest.raises(vitcop.UnsupportedModelError, match=f"cover the {width + 1} tokens"):
            model(input_ids=torch.tensor([[5]]), past_key_values=cache, attention_mask=torch.ones(1, 9))


def test_prompts_that_are_no_batch_raise(model, inputs):
    ids = inputs["input_ids"]
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        cache = model(**inputs).past_key_values
        for given in (inputs | {"input_ids": ids[0]}, inputs | {"input_ids": ids.tolist()}):
            with pytest.raises(vitcop.UnsupportedModelError, match=r"return_tensors='pt'"):
                model(**given)
        with pytest.raises(vitcop.UnsupportedModelError, match=r"got shape \(1,\)"):
            model(input_ids=torch.tensor([5]), past_key_values=cache)


@pytest.mark.parametrize("name", ["gemma3", "gemma4 with experts", "paligemma"])
def test_kinds_of_a_part_of_the_prompt_raise(name):
    """As where a question is put behind what the processor has made."""
    family = FAMILIES[name]
    model, inputs = family.model(), batch([ONE_IMAGE], family=family)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[5, 6]])], 1)
    with vitcop.prune(model, VITCOP), pytest.raises(vitcop.UnsupportedModelError, match="must be of shape"):
        model(**inputs)


def test_counts_of_other_pictures_raise():
    family = FAMILIES["llava_onevision"]
    model, inputs = family.model(), batch([ONE_IMAGE], family=family)
    inputs["batch_num_images"] = torch.tensor([1, 1])
    with vitcop.prune(model, VITCOP), pytest.raises(vitcop.UnsupportedModelError, match="batch_num_images counts 2"):
        model(**inputs)


@pytest.mark.parametrize("by", ["ids", "embeddings", "encoder outputs"])
def test_images_in_a_later_turn_raise(model, inputs, by):
    again = dict(inputs)
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        if by == "embeddings":
            again["inputs_embeds"] = model.get_input_embeddings()(again.pop("input_ids"))
        elif by == "encoder outputs":
            encoded = model.model.get_image_features(again.pop("pixel_values"), return_dict=True)
            again["mm_encoder_outputs"] = {"image": encoded}
        for first in (inputs, {"input_ids": torch.tensor([[1, 2, 3]])}):
            cache = model(**first).past_key_values
            with pytest.raises(vitcop.UnsupportedModelError, match="first turn"):
                model(**again, past_key_values=cache)


def test_the_placeholder_may_be_said_without_an_image(model, inputs):
    """As an answer it is a token like any other; so it is for the dense model."""
    token = torch.tensor([[63]])
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        for first in (inputs, {"input_ids": torch.tensor([[1, 2, 3]])}):
            assert model(input_ids=token, past_key_values=model(**first).past_key_values).logits.isfinite().all()


def test_placeholders_must_match_images(model, inputs):
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        with pytest.raises(vitcop.UnsupportedModelError, match="pass pixel_values"):
            model(input_ids=inputs["input_ids"])
        with pytest.raises(ValueError, match="do not match"):
            model(input_ids=inputs["input_ids"][:, :-12], pixel_values=inputs["pixel_values"])


def test_placeholders_must_match_images_in_every_row(model):
    """The model counts those of the whole batch, and would put a part of a picture into another prompt."""
    inputs = batch([ONE_IMAGE, ONE_IMAGE])
    ids = inputs["input_ids"]
    ids[0, -1], ids[1, (ids[1] == IMAGE).nonzero()[0, 0]] = IMAGE, 5
    refused = pytest.raises(vitcop.UnsupportedModelError, match="do not match the 72 visual tokens")
    with torch.no_grad(), vitcop.prune(model, VITCOP), refused:
        model(**inputs)


def test_another_batch_size_raises(model, inputs):
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        cache = model(**inputs).past_key_values
        with pytest.raises(vitcop.UnsupportedModelError, match="batch of 1, and one of 2"):
            model(input_ids=torch.tensor([[5], [6]]), past_key_values=cache)


def test_compiled_models_raise(model, inputs):
    with pytest.raises(vitcop.UnsupportedModelError, match="compiled"):
        vitcop.prune(torch.compile(model), VITCOP)
    model.model.language_model.layers[0].compile()
    with pytest.raises(vitcop.UnsupportedModelError, match="compiled"):
        vitcop.prune(model, VITCOP)


WHOLE = "model = torch.compile(model, backend='eager')"
LAYERS = """
for layer in (model.model.vision_tower.encoder.layers[0], model.model.vision_tower.encoder.layers[2]):
    layer.forward = torch.compile(layer.forward, backend="eager")
for layer in model.model.language_model.layers:
    layer.forward = torch.compile(layer.forward, backend="eager", dynamic=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiling", [WHOLE, LAYERS])
def test_compiling_a_pruned_model_breaks_the_graph_but_not_the_answer(compiling):
    """In a process of its own: Dynamo cannot trace the shape checks that this test run adds to every function."""
    script = f"""
import torch, vitcop
from tiny import LLAVA, ONE_IMAGE, batch
model, inputs = LLAVA.model(), batch([ONE_IMAGE])
with torch.no_grad(), vitcop.prune(model, vitcop.ViTCoP(retention=0.3)) as pruning:
    expected, kept = model(**inputs).logits, [stage.kept() for stage in pruning.report.stages]
    {compiling.replace(chr(10), chr(10) + "    ")}
    torch.testing.assert_close(model(**inputs).logits, expected)
    assert [stage.kept() for stage in pruning.report.stages] == kept
"""
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], check=True)


def test_tensor_parallel_raises(model, monkeypatch):
    monkeypatch.setattr(type(model), "tp_size", 2)
    with pytest.raises(vitcop.UnsupportedModelError, match="tensor-parallel"):
        vitcop.prune(model, VITCOP)


def test_unknown_models_raise():
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(vitcop.UnsupportedModelError, match=r"type 'bert' take no pictures, .* See docs/models\.md"):
        vitcop.prune(BertModel(config), VITCOP)
    with pytest.raises(vitcop.UnsupportedModelError, match="Linear cannot be pruned"):
        vitcop.prune(torch.nn.Linear(2, 2), VITCOP)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"vision_config": SiglipVisionConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=1)},
            "use 'full' with this encoder",
        ),
        ({"vision_feature_select_strategy": "full"}, "full"),
        ({"vision_feature_layer": [-2, -1]}, "single"),
        ({"vision_feature_layer": -4}, "one of the 3 encoder layers"),
    ],
    ids=["siglip", "full", "layers", "range"],
)
def test_llavas_without_a_cls_query_raise(model, change, reason):
    config = LlavaConfig(**{**model.config.to_dict(), **change})
    with pytest.raises(vitcop.UnsupportedModelError, match=reason):
        vitcop.prune(LlavaForConditionalGeneration(config), VITCOP)


def test_caches_of_other_libraries_raise(model):
    with vitcop.prune(model, VITCOP), pytest.raises(vitcop.UnsupportedModelError, match="A tuple cannot be pruned"):
        model.model(input_ids=torch.tensor([[1, 2]]), past_key_values=())


def test_a_cache_rebuilt_by_hand_raises(model, inputs):
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        cache = model(**inputs).past_key_values
        rebuilt = DynamicCache([(layer.keys, layer.values) for layer in cache.layers])
        with pytest.raises(vitcop.UnsupportedModelError, match=r"copy\.deepcopy"):
            model(input_ids=torch.tensor([[5]]), past_key_values=rebuilt)
        with pytest.raises(Exception, match="pickle"):
            pickle.dumps(cache)


def test_another_feature_layer_raises(model, inputs):
    """The saliency would be of a layer whose features the projector does not take."""
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        with pytest.raises(vitcop.UnsupportedModelError, match="vision_feature_layer cannot change"):
            model.generate(**inputs, **GREEDY, vision_feature_layer=-1)
        model.config.vision_feature_layer = -1
        with pytest.raises(vitcop.UnsupportedModelError, match="vision_feature_layer cannot change"):
            model.generate(**inputs, **GREEDY)
        model.config.vision_feature_layer = -2
        with pytest.raises(vitcop.UnsupportedModelError, match="vision_feature_layer cannot change"):
            model(**inputs, vision_feature_layer=-1)
        model(**inputs, vision_feature_layer=-2)


def test_inference_mode_and_autocast_work(model, inputs):
    with vitcop.prune(model, VITCOP) as pruning:
        with torch.no_grad():
            expected = model(**inputs).logits
        with torch.inference_mode():
            assert torch.equal(model(**inputs).logits, expected)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert model(**inputs).logits.isfinite().all()
    assert pruning.report.average_retention() < 0.35


def test_an_adapter_that_comes_after_counts(model, inputs):
    """It is put around the projection whose results were to be kept."""
    lora = LoraConfig(target_modules=["k_proj"], init_lora_weights=False)
    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
        torch.manual_seed(0)
        get_peft_model(model, lora)
        model(**inputs)
    after = pruning.report
    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
        model(**inputs)
    for stage, again in zip(after.stages, pruning.report.stages, strict=True):
        assert torch.equal(stage.keep, again.keep)
        assert torch.equal(stage.cluster, again.cluster)


def test_lora_works(model, inputs):
    """What is observed is what the wrapped projections make, so that an adapter on them changes what is kept."""
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj", "k_proj"], init_lora_weights=False))
    with torch.no_grad(), vitcop.prune(wrapped, VITCOP) as pruning:
        adapted = wrapped(**inputs).logits
        kept = pruning.report.stages[0].kept()
        with wrapped.disable_adapter():
            wrapped(**inputs)
        assert pruning.report.stages[0].kept() != kept
    merged = wrapped.merge_and_unload()
    with torch.no_grad(), vitcop.prune(merged, VITCOP) as pruning:
        torch.testing.assert_close(merged(**inputs).logits, adapted, rtol=1e-3, atol=1e-4)
        assert pruning.report.stages[0].kept() == kept


@pytest.mark.parametrize("method", [VITCOP, vitcop.EarlyViTCoP(0.3)], ids=lambda method: method.name)
@pytest.mark.parametrize("how", ["device_map", "cpu_offload"])
def test_weights_that_move_work(model, how, method):
    """Also where layers are run by a method that probes them."""
    inputs = batch(RAGGED)
    with torch.no_grad(), vitcop.prune(model, method):
        expected = model.generate(**inputs, **GREEDY)
    moved = LLAVA.model()
    if how == "device_map":
        moved = dispatch_model(moved, {"": "cpu"}, force_hooks=True)
    else:
        moved = cpu_offload(moved, torch.device("cpu"))
    with torch.no_grad(), vitcop.prune(moved, method):
        assert torch.equal(moved.generate(**inputs, **GREEDY), expected)


def test_quantised_weights_work(model, inputs):
    """Quantised layers have no weight of the usual kind: modules must be called, never read."""

    class Opaque(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.call = lambda x: linear(x)

        def forward(self, x):
            return self.call(x)

    with torch.no_grad(), vitcop.prune(model, VITCOP):
        expected = model.generate(**inputs, **GREEDY)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, Opaque(child))
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        assert torch.equal(model.generate(**inputs, **GREEDY), expected)


def test_features_that_are_not_those_observed_raise(model, inputs, monkeypatch):
    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
        observe = pruning._family.observe
        monkeypatch.setattr(pruning._family, "observe", lambda *args: observe(*args).take([(0, 1), (0, 1)]))
        with pytest.raises(vitcop.UnsupportedModelError, match="36 visual tokens where 72 were expected"):
            model(**inputs)


def test_decoders_of_another_kind_raise(model):
    decoder = model.model.language_model
    decoder.layers[0].forward = lambda hidden_states, mask: hidden_states
    with pytest.raises(vitcop.UnsupportedModelError, match="usual names"):
        vitcop.prune(model, VITCOP)
    decoder.layers[1].attention = decoder.layers[1]._modules.pop("self_attn")
    with pytest.raises(vitcop.UnsupportedModelError, match="`self_attn` each"):
        vitcop.prune(model, VITCOP)
    decoder.blocks = decoder._modules.pop("layers")
    with pytest.raises(vitcop.UnsupportedModelError, match="no `layers`"):
        vitcop.prune(model, VITCOP)


def test_decoders_that_scale_queries_by_position_raise_under_flash_attention(model):
    config = model.config.text_config
    config.rope_parameters["llama_4_scaling_beta"] = 0.1
    vitcop.prune(model, VITCOP).remove()
    config._attn_implementation = "flash_attention_2"
    with pytest.raises(vitcop.UnsupportedModelError, match="use attn_implementation='sdpa'"):
        vitcop.prune(model, VITCOP)


def test_attention_backends_that_are_shown_no_masks_raise(model):
    """transformers gives them none, and rows of a batch that keep fewer tokens would see padding."""
    AttentionInterface.register("maskless", sdpa_attention_forward)
    model.config.text_config._attn_implementation = "maskless"
    try:
        with pytest.raises(vitcop.UnsupportedModelError, match="'maskless' has no function that makes its masks"):
            vitcop.prune(model, VITCOP)
    finally:
        AttentionInterface._global_mapping.pop("maskless")


@takes_encoder_outputs
def test_bare_encoder_outputs_raise():
    """Nothing is known of them; Idefics3 takes them."""
    family = FAMILIES["idefics3"]
    model, ids = family.model(), batch([ONE_IMAGE], family=family)["input_ids"]
    features = torch.randn(int((ids == IMAGE).sum()), 32)
    with torch.no_grad(), vitcop.prune(model, VITCOP):
        with pytest.raises(vitcop.UnsupportedModelError, match="did not come through"):
            model(input_ids=ids, mm_encoder_outputs=features)
        cache = model(input_ids=torch.tensor([[1, 2, 3]])).past_key_values
        with pytest.raises(vitcop.UnsupportedModelError, match="first turn"):
            model(input_ids=ids, mm_encoder_outputs=features, past_key_values=cache)


def test_flash_attention_is_not_shown_positions_with_gaps(inputs):
    """It would take them for the borders of packed sequences. Here sdpa goes by its name."""
    AttentionInterface.register("flash_fake", sdpa_attention_forward)
    AttentionMaskInterface.register("flash_fake", sdpa_mask)
    model, seen = LLAVA.model(), []
    model.config.text_config._attn_implementation = "flash_fake"

    def spy(attention, args, kwargs):
        seen.append(kwargs["position_ids"])

    for layer in model.model.language_model.layers:
        layer.self_attn.register_forward_pre_hook(spy, with_kwargs=True)
    try:
        with torch.no_grad(), vitcop.prune(model, VITCOP):
            model(**inputs)
        assert seen == [None] * len(model.model.language_model.layers)
    finally:
        AttentionInterface._global_mapping.pop("flash_fake")
        AttentionMaskInterface._global_mapping.pop("flash_fake")
