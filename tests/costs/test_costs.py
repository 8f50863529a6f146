"""Closed forms against counted operations, and planned geometry against what a real run observes."""

from dataclasses import replace

import families.gemma4
import families.idefics3
import families.lfm2_vl
import families.minicpmv
import families.molmo2
import pytest
import torch
from families import FAMILIES
from families.base import DECODER, ENCODER
from families.llava import DINO, Llava, LlavaDinov2, LlavaSiglip
from measures import bytes_held, skip_where_all_tokens_run, skip_where_padding_is_left_out
from tiny import ENGINE, METHODS
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    ApertusConfig,
    ArceeConfig,
    Dinov2Config,
    Lfm2MoeConfig,
    Lfm2MoeModel,
    NemotronConfig,
    PhiConfig,
    SiglipVisionConfig,
    Starcoder2Config,
)

import vitcop
from vitcop.costs.closed_forms import layer_flops
from vitcop.costs.plan import Planner
from vitcop.models import (
    Size,
    family_of,
    gemma4,
    glm4v,
    lfm2_vl,
    minicpmv,
    molmo2,
    qwen2_vl,
    qwen3_vl,
    qwen_omni,
    video_llama_3,
)

VITCOP = METHODS["vitcop"]
QWEN_SIZE = {"shortest_edge": 64, "longest_edge": 5120}
BEFORE, BEHIND = [1, 7], [11, 12, 13]
CASES = [
    (name, kind, size)
    for name, family in FAMILIES.items()
    for kind in family.kinds
    for size in range(family.sizes if kind == "image" else 1)
]


class PoolingSiglip(LlavaSiglip):
    """SigLIP pools its patches by default, for nobody."""

    vision = SiglipVisionConfig(**ENCODER, image_size=84, patch_size=14, vision_use_head=True)


class GatedDinov2(LlavaDinov2):
    """As the giant one is."""

    vision = Dinov2Config(**DINO, mlp_ratio=4, image_size=56, use_swiglu_ffn=True)


def with_decoder(config):
    """A LLaVA with another decoder."""
    return type("WithDecoder", (Llava,), {"text": config})()


DENSE = {key: value for key, value in DECODER.items() if key != "head_dim"}
OTHERS = {
    "pooling siglip": PoolingSiglip(),
    "gated dinov2": GatedDinov2(),
    "apertus": with_decoder(ApertusConfig(**DENSE)),
    "arcee": with_decoder(ArceeConfig(**DENSE)),
    "nemotron": with_decoder(NemotronConfig(**DENSE)),
    "phi": with_decoder(PhiConfig(**DENSE)),
    "starcoder2": with_decoder(Starcoder2Config(**DENSE, sliding_window=None)),
    **({} if families.minicpmv.MISSING else {"minicpmv4_6 without merger": families.minicpmv.Unmerged()}),
}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """Settings of processors as small as the tiny models."""
    for processor in (
        qwen2_vl.Qwen2VLImageProcessorPil,
        glm4v.Glm4vImageProcessorPil,
        video_llama_3.VideoLlama3ImageProcessorPil,
    ):
        monkeypatch.setattr(processor, "size", QWEN_SIZE)
    for module in (qwen2_vl, qwen3_vl, qwen_omni, glm4v, video_llama_3):
        monkeypatch.setattr(module, "VIDEO_SIZE", QWEN_SIZE)
    monkeypatch.setattr(gemma4.Gemma4ImageProcessorPil, "max_soft_tokens", families.gemma4.MOST["image"])
    monkeypatch.setattr(gemma4, "VIDEO_TOKENS", families.gemma4.MOST["video"])
    monkeypatch.setattr(lfm2_vl, "PROCESSOR", families.lfm2_vl.SETTINGS)
    monkeypatch.setattr(minicpmv.MiniCPMV4_6ImageProcessorPil, "scale_resolution", families.minicpmv.SCALE)
    monkeypatch.setattr(molmo2, "MARGINS", families.molmo2.MARGINS)
    # Their processor always makes the longer side four tiles long.
    monkeypatch.setattr(families.idefics3, "TILES", (5, 17))
    monkeypatch.setattr(families.idefics3, "TILE_MARKERS", tuple(range(30, 46)))


def pixels(family, visual):
    """A size that the processor turns into what the tiny family gets."""
    height, width = visual.pixels.shape[2:]
    if family.name.startswith("minicpmv"):
        return family.given(visual)
    if visual.kind == "video":
        return Size(height, width, len(visual.pixels))
    if hasattr(family, "tiles"):
        height, width = family.image_sizes[visual.size]
    elif "idefics3" in type(family).__module__:
        height, width = ((30, 120), (100, 100))[visual.size]
    elif family.name in ("internvl", "llama4"):
        height, width = ((84, 84), (84, 168))[visual.size]
    elif "cohere" in type(family).__module__:
        height, width = ((48, 48), (48, 96))[visual.size]
    elif family.name == "lfm2_vl":
        height, width = ((16, 32), (48, 48))[visual.size]
    return Size(height, width)


def prompt(family, visual):
    ids = torch.tensor([[*BEFORE, *family.tokens(visual), *BEHIND]])
    return {"input_ids": ids} | family.token_kinds(ids) | family.inputs([[visual]])


def planner_of(family, model, visual):
    size = pixels(family, visual)
    planner = Planner.of(model.config, height=size.height, width=size.width, frames=size.frames)
    ids = len(family.tokens(visual)) + len(BEFORE) + len(BEHIND)
    text = ids - planner.geometry.image.placeholders - planner.geometry.markers
    return Planner(planner.family, size, text)


def counted(model, counter, modules):
    """Operations in each of the modules, by their names in the model."""
    names = {id(module): name for name, module in model.named_modules()}
    counts = counter.get_flop_counts()
    return sum(sum(counts[f"{type(model).__name__}.{names[id(module)]}"].values()) for module in modules)


@pytest.mark.parametrize(("name", "kind", "size"), CASES + [(name, "image", 0) for name in OTHERS])
def test_closed_forms_are_the_counted_operations(name, kind, size):
    """Each part to the last one: eager attention multiplies full n x n matrices, as the closed forms do."""
    family = (FAMILIES | OTHERS)[name]
    visual = family.visual(kind, size, seed=1)
    model, inputs = family.model("eager"), prompt(family, visual)
    skip_where_all_tokens_run(model)
    skip_where_padding_is_left_out(model)
    plan = planner_of(family, model, visual).plan(VITCOP)
    modules = family_of(model).vision(kind)
    projector = list(modules.projector)
    inner = [module for module in projector if any(module is child for child in modules.tower.modules())]

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs, logits_to_keep=1)  # as `generate` does, on which it depends what runs in Gemma 4
    tower = counted(model, counter, [modules.tower]) - (counted(model, counter, inner) if inner else 0)
    # Older releases make Pixtral's position embeddings by a product, which is not counted here; so are LFM2-VL's.
    if name == "lfm2_vl":
        tower -= counted(model, counter, [modules.tower.embeddings]) - counted(model, counter, modules.embedding)
    assert plan.dense_flops.vision == pytest.approx(tower, rel=1e-3)
    assert plan.dense_flops.projector == counted(model, counter, projector)
    assert plan.dense_flops.decoder == counted(model, counter, model.get_decoder().layers)

    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning, FlopCounterMode(display=False) as counter:
        output = model(**inputs, logits_to_keep=1)
    assert plan.flops.decoder == counted(model, counter, model.get_decoder().layers)
    report = pruning.report
    assert (plan.dense_flops.decoder, plan.flops.decoder) == report.prefill_flops
    assert list(plan.visual_tokens) == report.visual_tokens()
    held = bytes_held(output.past_key_values)
    wide = torch.float32.itemsize // plan.bytes_per_value
    windows = family_of(model).has_windows  # which hold less
    assert wide * plan.kv_bytes == held or (wide * plan.kv_bytes > held and windows)


SELECTIONS = [
    (name, kind, method)
    for name, kind, size in CASES
    for method in METHODS
    if size == 0 and method not in FAMILIES[name].refuses | ENGINE.keys()
]


@pytest.mark.parametrize(("name", "kind", "method"), SELECTIONS)
def test_selection_costs_what_its_closed_form_says(name, kind, method, monkeypatch):
    """What the encoder shows is worked out within `select`, where it is read; the layers of a probe run there as well,
    eager, since the operations of fused attention are not counted on a CPU.
    """
    family = FAMILIES[name]
    visual, selected, text = family.visual(kind, 0, seed=1), [], []
    model, pruner = family.model("eager"), METHODS[method]
    select, closed_form = type(pruner).select, type(pruner).selection_flops

    def count(self, tokens, budget):
        with FlopCounterMode(display=False) as inside:
            result = select(self, tokens, budget)
        selected.append(inside.get_total_flops())
        text.append(len(tokens.text.slots))
        return result

    def with_text(self, stage):
        # A plan takes all text to stand behind the picture, and markers for none.
        return closed_form(self, replace(stage, text=text[0]))

    monkeypatch.setattr(type(pruner), "select", count)
    monkeypatch.setattr(type(pruner), "selection_flops", with_text)
    with torch.no_grad(), vitcop.prune(model, pruner):
        model(**prompt(family, visual))
    plan = planner_of(family, model, visual).plan(pruner)
    assert plan.flops.selection == pytest.approx(sum(selected), rel=0.01)


@pytest.mark.parametrize(("name", "kind", "size"), CASES)
def test_geometry_is_the_observed_one(name, kind, size):
    family = FAMILIES[name]
    visual = family.visual(kind, size, seed=1)
    model, inputs = family.model(), prompt(family, visual)
    planned = planner_of(family, model, visual).geometry.image
    with torch.no_grad(), vitcop.prune(model, VITCOP) as pruning:
        model(**inputs)
    (seen,) = pruning.report.images
    assert planned.shapes == seen.shapes
    assert torch.equal(planned.segments, seen.segments)
    assert torch.equal(planned.places, seen.places)


def test_the_first_layers_of_a_decoder_with_experts_may_have_none():
    """LFM2 has a name of its own for how many these are."""
    kinds = ["full_attention"] * DECODER["num_hidden_layers"]
    text = DECODER | {"layer_types": kinds, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    with torch.device("meta"):
        config = Lfm2MoeConfig(**text, num_dense_layers=2)
        layers = Lfm2MoeModel(config).layers
    token = sum(weight.numel() for weight in layers[1].parameters() if weight.ndim > 1)
    keys_seen = 4 * DECODER["num_attention_heads"] * DECODER["head_dim"]  # the products of attention to itself
    assert layer_flops(config, 1, 1) == 2 * token + keys_seen
    assert layer_flops(config, 2, 1) < layer_flops(config, 1, 1)
