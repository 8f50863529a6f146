"""What families know about their models beyond what the shared tests see, and the table that says it."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from families import MISSING, minicpmv
from families.base import IMAGE
from families.internvl import InternVL35, InternVL35Oss
from families.omni import Qwen3Omni, Qwen25Omni
from needs import has_molmo2
from oracle import masked_dense_logits, pruned_logits
from tiny import FAMILIES, LLAVA, ONE_IMAGE, ThreeStages, batch, ragged
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    ShieldGemma2Config,
    ShieldGemma2ForImageClassification,
)

import vitcop
from docs.models_page import page
from vitcop.models import FAMILIES as KNOWN
from vitcop.models import Description, Encoder, Geometry, Grids, TowerFamily, family_of

WRAPPED = ("shieldgemma2",)
"""Gemma 3 by another name, which has a test of its own."""
TILED = {"idefics3", "internvl", "aya_vision", "cohere2_vision", "lfm2_vl", "llama4", "minicpmv4_6"} - set(MISSING)
needs_minicpmv = pytest.mark.skipif(bool(minicpmv.MISSING), reason="this transformers has none that can be pruned")


def test_the_table_is_up_to_date():
    committed = Path(__file__).parents[2] / "docs" / "models.md"
    assert committed.read_text(encoding="utf-8") == page(), "make docs"


def test_every_family_has_a_tiny_model_for_each_of_its_encoders_and_of_what_it_takes():
    configs = {name: built_model(name).config for name in FAMILIES}
    assert {config.model_type for config in configs.values()} == set(KNOWN) - {*MISSING, *WRAPPED}
    for model_type, family in KNOWN.items():
        if model_type in MISSING:
            continue
        own = [name for name, config in configs.items() if KNOWN[config.model_type] is family]
        encoders = {configs[name].vision_config.model_type for name in own}
        assert encoders == set(getattr(family, "encoders", encoders)), model_type
        assert {kind for name in own for kind in FAMILIES[name].kinds} == set(family.modalities), model_type


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_says_what_the_models_are(name):
    tiny, model = FAMILIES[name], built_model(name)
    family = family_of(model)
    assert not tiny.has_cls or "[CLS]" in family.described.saliency
    deepstack = len(getattr(model.config.vision_config, "deepstack_visual_indexes", []))
    attends = [hasattr(layer, "self_attn") for layer in model.get_decoder().layers]
    assert ("DeepStack" in family.described.first_layer) == (deepstack > 0)
    assert ("full-attention" in family.described.first_layer) == family.has_states == (not all(attends))
    assert family.first_stage_layer == max(deepstack, attends.index(True) + 1)
    assert family.normalises_keys == model.config.model_type.startswith(
        ("gemma", "qwen3_", "lfm2", "llama4", "minicpmv", "molmo2")
    )


def built_model(name):
    with torch.device("meta"):
        return FAMILIES[name].build("eager")


def with_text(model, **settings):
    for setting, value in settings.items():
        setattr(model.config.text_config, setting, value)


# Changes to a model that make it one that the table says raises: at once, or in its first forward.
REFUSED = {
    "no vision encoder": lambda model: setattr(model.config, "vision_config", None),
    "another encoder": lambda model: setattr(model.config.vision_config, "model_type", "vit"),
    "several feature layers": lambda model: setattr(model.config, "vision_feature_layer", [-2, -1]),
    "another feature strategy": lambda model: setattr(
        model.config,
        "vision_feature_select_strategy",
        "default" if model.config.vision_feature_select_strategy == "full" else "full",
    ),
    "sliding windows in the decoder": lambda model: with_text(model, layer_types=["sliding_attention"] * 8),
    "text that sees what follows it": lambda model: with_text(model, use_bidirectional_attention="all"),
    "flash attention": lambda model: with_text(model, _attn_implementation="flash_attention_2"),
    "flash attention where there are sliding windows": lambda model: with_text(
        model, layer_types=["sliding_attention"] * 8, _attn_implementation="flash_attention_2"
    ),
    "stages between the layers of DeepStack": lambda model: None,
    "pictures and videos in one batch": lambda model: None,
    "looking ahead at a layer that does not attend": lambda model: None,
    "prompts without token_type_ids": lambda model: None,
    "the classifier of ShieldGemma 2, whose `.model` can be pruned": lambda model: (
        setattr(model.config, "model_type", "shieldgemma2"),
        setattr(model, "can_generate", lambda: False),
    ),
    "videos that the processor has compressed": lambda model: None,
    "prompts that are longer than a chunk": lambda model: with_text(model, attention_chunk_size=8),
    "mergers of other than 2 x 2": lambda model: setattr(model.config, "merger_times", 2),
    "biases in short convolutions": lambda model: with_text(model, conv_bias=True),
}
# What comes along with such a forward, of no matter what sizes.
BROUGHT = {
    "pictures and videos in one batch": dict.fromkeys(("pixel_values", "pixel_values_videos"), torch.zeros(1)),
    "prompts without token_type_ids": {"token_type_ids": None},
    "videos that the processor has compressed": {"video_compression_mask": torch.zeros(1, dtype=torch.bool)},
}
# What such a forward is asked for.
ASKED = {
    "stages between the layers of DeepStack": vitcop.Random(0.9, layer=1),
    "looking ahead at a layer that does not attend": vitcop.HAWK(),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_table_says_raises(name):
    for refused in KNOWN[built_model(name).config.model_type].described.refuses:
        model = FAMILIES[name].model()
        inputs = batch([ONE_IMAGE], family=FAMILIES[name]) | BROUGHT.get(refused, {})
        REFUSED[refused](model)
        method = ASKED.get(refused, vitcop.Random())
        with torch.no_grad(), pytest.raises(vitcop.VitcopError), vitcop.prune(model, method):
            model(**inputs)


def test_shieldgemma_classifies_by_a_pruned_gemma():
    """Its own classifier reads the last logits, which stay the last."""
    family = FAMILIES["gemma3"]
    gemma = family.model().config
    config = ShieldGemma2Config(
        text_config=gemma.text_config,
        vision_config=gemma.vision_config,
        mm_tokens_per_image=gemma.mm_tokens_per_image,
        image_token_index=IMAGE,
        yes_token_index=7,
        no_token_index=9,
    )
    torch.manual_seed(0)
    model, inputs = ShieldGemma2ForImageClassification(config).eval(), batch(ragged(family), family=family)
    with pytest.raises(vitcop.UnsupportedModelError, match=r"prune that, vitcop\.prune\(model\.model"):
        vitcop.prune(model, vitcop.ViTCoP(0.3))
    with torch.no_grad(), vitcop.prune(model.model, vitcop.ViTCoP(0.3)) as pruning:
        classes = model(**inputs).logits
        assert abs(pruning.report.average_retention(0) - 0.3) <= 1 / 16
        assert torch.equal(classes, model.model(**inputs).logits[:, -1, [7, 9]])


def test_internvl_with_the_decoder_of_qwen3():
    family = InternVL35()
    model, inputs = family.model(), batch(ragged(family), family=family)
    assert family_of(model).normalises_keys
    report, pruned = pruned_logits(model, inputs, ThreeStages())
    for after, before in zip(pruned, masked_dense_logits(model, inputs, ThreeStages(), report), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_internvl_with_the_decoder_of_gpt_oss_raises():
    with torch.device("meta"):
        model = InternVL35Oss().build("eager")
    with pytest.raises(vitcop.UnsupportedModelError, match="'gpt_oss' decoder has sliding-window"):
        family_of(model)


@pytest.mark.parametrize("tiny", [Qwen25Omni(), Qwen3Omni()], ids=lambda tiny: tiny.name)
def test_a_thinker_without_a_base_model_raises(tiny, monkeypatch):
    """As before transformers 5.24."""
    with torch.device("meta"):
        model = tiny.build("eager")
    monkeypatch.setattr(type(model), "base_model_prefix", "thinker")
    with pytest.raises(vitcop.UnsupportedModelError, match=r"install transformers 5\.24"):
        family_of(model)


def test_a_minicpmv_that_takes_all_pictures_for_as_large_as_the_first_raises(monkeypatch):
    """As that of transformers 5.17."""
    with torch.device("meta"):
        model = minicpmv.MiniCPMV().build("eager")
    monkeypatch.setattr(minicpmv.modeling_minicpmv4_6, "get_vision_merged_shape", None, raising=False)
    with pytest.raises(vitcop.UnsupportedModelError, match=r"install transformers 5\.24"):
        family_of(model)


@needs_minicpmv
def test_minicpmv_merges_what_it_is_asked_to():
    """In a call, whatever the config says: four times as many visual tokens."""
    model, unmerged = FAMILIES["minicpmv4_6"].model(), minicpmv.Unmerged()
    inputs = batch(ragged(unmerged), family=unmerged) | {"downsample_mode": "4x"}
    report, pruned = pruned_logits(model, inputs, ThreeStages())
    for after, before in zip(pruned, masked_dense_logits(model, inputs, ThreeStages(), report), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@needs_minicpmv
def test_frames_are_joined_and_pictures_are_not_where_none_has_a_number():
    """As a processor of MiniCPM-V writes them with use_image_id=False."""
    tiny = FAMILIES["minicpmv4_6"]
    visuals = [tiny.visual(kind, size, 0) for kind, size in (("image", 1), ("image", 0), ("video", 0), ("image", 1))]
    rows = [[1, *(token for visual in visuals for token in tiny.tokens(visual)[len(minicpmv.NUMBER) :]), 5, 6]]
    with torch.no_grad(), vitcop.prune(tiny.model(), vitcop.Random(0.5)) as pruning:
        pruning._family.model(input_ids=torch.tensor(rows), **tiny.inputs([visuals]))
    assert pruning.report.image_lengths == (16, 6, 16, 32)


@pytest.mark.parametrize(("image_size", "cutoff"), [(336, 8.0), (224, None)])
def test_cutoff_is_known_for_one_encoder(image_size, cutoff):
    vision = CLIPVisionConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=image_size, patch_size=14
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=LlamaConfig(num_hidden_layers=1))
        )
    assert family_of(model).key_cutoff == cutoff


def test_feature_layers_count_from_both_ends():
    """hidden_states[2] and hidden_states[-2] of 3 layers both leave the second one."""
    model = LLAVA.model()
    second = model.model.vision_tower.encoder.layers[1].self_attn
    for layer in (-2, 2):
        model.config.vision_feature_layer = layer
        assert family_of(model).observed == {"image": second}


@has_molmo2
def test_the_feature_layers_of_molmo2_are_those_that_it_was_pruned_with():
    family = FAMILIES["molmo2"]
    model, inputs = family.model(), batch([ONE_IMAGE], family=family)
    with torch.no_grad(), vitcop.prune(model, vitcop.Random()) as pruning:
        assert pruning._family.observed["image"] is model.model.vision_tower.layers[1].self_attn
        model.config.adapter_config.vision_feature_layer = [-1, 0]
        with pytest.raises(vitcop.UnsupportedModelError, match="set it in the config before"):
            model(**inputs)


class Mine(TowerFamily):
    """As somebody outside this repository would write it, with nothing but public names."""

    encoders: ClassVar = {"clip_vision_model": Encoder("encoder.layers", "self_attn", has_cls=True)}
    described = Description(saliency="attention of [CLS]")

    def grids(self, modality, call):
        return (Grids.full((6, 6)),) * len(call["pixel_values"])

    def shown(self, modality, call, watched):
        return self.patches(watched, len(call["pixel_values"]))

    def geometry(self, size):
        return Geometry.of([(6, 6)], cls=True)


def test_families_of_ones_own_can_be_registered(monkeypatch):
    model, inputs, kept = LLAVA.model(), batch([ONE_IMAGE]), []
    for family in (KNOWN["llava"], Mine):
        monkeypatch.setitem(vitcop.FAMILIES, "llava", family)
        with torch.no_grad(), vitcop.prune(model, vitcop.ViTCoP(0.3)) as pruning:
            model(**inputs)
        assert type(pruning.report) is vitcop.Report
        kept.append([stage.kept() for stage in pruning.report.stages])
    assert kept[0] == kept[1]


@pytest.mark.parametrize("by", ["ids", "embeddings"])
@pytest.mark.parametrize("name", sorted(TILED))
def test_pictures_of_several_tiles_stay_apart(name, by):
    """Also next to one another; each tile comes to the encoder without saying which picture it is of."""
    tiny = FAMILIES[name]
    model, visuals = tiny.model(), [tiny.visual("image", size, seed) for seed, size in enumerate((1, 1, 0, 1))]
    rows = [[1, *(token for visual in visuals for token in tiny.tokens(visual)), 5, 6]]
    inputs = {"input_ids": torch.tensor(rows)} | tiny.inputs([visuals])
    if by == "embeddings":
        inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    with torch.no_grad(), vitcop.prune(model, vitcop.Random(0.5)) as pruning:
        if name == "llama4" and by == "embeddings":  # beside which it takes no pixels
            if not hasattr(model, "_expand_multimodal_outputs"):
                pytest.skip("this transformers takes no encoded pictures")
            inputs["mm_encoder_outputs"] = {"image": model.get_image_features(inputs.pop("pixel_values"))}
        model(**inputs)
    of_sizes = [tiny.tokens(tiny.visual("image", size, 0)).count(IMAGE) for size in (0, 1)]
    assert pruning.report.image_lengths == tuple(of_sizes[size] for size in (1, 1, 0, 1))
