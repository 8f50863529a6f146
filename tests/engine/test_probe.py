"""What a probe shows of an image is what the stock decoder makes of it behind the first token of a prompt."""

from dataclasses import dataclass, field

import pytest
import torch
from families.base import DECODER, IMAGE, VIDEO
from families.llava import Llava
from tiny import FAMILIES, LLAVA, METHODS, ONE_IMAGE, batch, ragged
from transformers import GraniteConfig, Phi3Config

import vitcop
from vitcop.models import family_of
from vitcop.ops.saliency import key_norm

NORMALISED = (
    "gemma3",
    "gemma4",
    "gemma4 with experts",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "lfm2_vl",
    "llama4",
    "minicpmv4_6",
    "minicpmv4_7",
    "qwen3_omni_moe_thinker",
    "molmo2",
    "molmo2 with videos",
)
PROBED = [name for name, family in FAMILIES.items() if name not in NORMALISED and "earlyvitcop" not in family.refuses]
START = DECODER["bos_token_id"]


@dataclass(frozen=True)
class Probing(vitcop.Random):
    """Drops at random, and looks at every third token of each image by itself."""

    until: int = 2
    read: list = field(default_factory=list)

    def score(self, tokens):
        some = tokens.take((tokens.index % 3 == 0).nonzero()[:, 0], [-(-n // 3) for n in tokens.lengths])
        self.read.append((some, some.hidden_states, some.probed_keys(self.until)))
        return super().score(tokens)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [1, 2, 4])
@pytest.mark.parametrize("name", PROBED)
def test_probed_keys_are_those_of_the_stock_decoder(name, layer, attention):
    """But for their rotary embedding, which leaves all norms as they are. Images are of different sizes."""
    family, method = FAMILIES[name], Probing(until=layer)
    model = family.model(attention)
    with torch.no_grad(), vitcop.prune(model, method):
        model(**batch(ragged(family), family=family))
        ((tokens, states, keys),) = method.read
    positions = family_of(model).positions_alone(tokens) + 1
    start = model.get_input_embeddings()(torch.tensor([START]))
    for features, places, found in zip(
        *(part.split(tokens.lengths) for part in (states, positions, keys)), strict=True
    ):
        places = torch.cat([torch.zeros_like(places[:1]), places])[None]
        with torch.no_grad():
            cache = model.get_decoder()(
                inputs_embeds=torch.cat([start, features])[None],
                position_ids=places if places.ndim == 2 else places.movedim(-1, 0),
                use_cache=True,
            ).past_key_values
        held = cache.layers[layer - 1].keys[0].transpose(0, 1)[-len(found) :]
        found = found[-len(held) :]  # a cache with a window has forgotten some
        torch.testing.assert_close(found.norm(dim=-1), held.norm(dim=-1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(key_norm(found), key_norm(held), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2_vl", "glm4v", "glm4v with videos"])
def test_positions_alone_are_those_of_a_prompt_less_its_text(name):
    """On each of their axes, also where text stands between the frames of a video."""
    family = FAMILIES[name]
    for kind in family.kinds:
        visual, method = family.visual(kind, 0, seed=1), Probing()
        model, ids = family.model(), torch.tensor([[START, *family.tokens(visual), 5, 6, 7]])
        inputs = {"input_ids": ids} | family.token_kinds(ids) | family.inputs([[visual]])
        with torch.no_grad(), vitcop.prune(model, method) as pruning:
            model(**inputs)
            alone = pruning._family.positions_alone(method.read[0][0])
        given = {name: value for name, value in inputs.items() if not name.startswith("pixel_values")}
        positions, visible = model.model.get_rope_index(**given)[0][:, 0], (ids[0] == IMAGE) | (ids[0] == VIDEO)
        assert torch.equal((positions - (~visible).cumsum(0))[:, visible].T[::3], alone)


def unmixed(name):
    """Images and videos that are nothing but visual tokens in a prompt."""
    family = FAMILIES[name]
    sizes = [(kind, size) for kind in family.kinds for size in range(family.sizes if kind == "image" else 1)]
    visuals = [family.visual(kind, size, seed=size) for kind, size in sizes]
    with torch.device("meta"):
        known = family_of(family.build("eager"))
    grids = [known.grids(visual.kind, family.inputs([[visual]])) for visual in visuals]
    return [
        visual
        for visual, images in zip(visuals, grids, strict=True)
        if set(family.tokens(visual)) <= {IMAGE, VIDEO} and all(image.visual.all() for image in images)
    ]


UNMIXED = [(name, visual) for name in PROBED for visual in unmixed(name)]


@pytest.mark.parametrize(("name", "visual"), UNMIXED, ids=lambda value: value if isinstance(value, str) else value.kind)
def test_alone_in_a_prompt_an_image_keeps_what_the_second_stage_of_vitcop_leaves(name, visual):
    """Where stage 1 leaves as many. It is in the decoder that stage 2 then merges, and so other states."""
    family = FAMILIES[name]
    model, ids = family.model(), torch.tensor([[START, *family.tokens(visual), 5, 6, 7]])
    inputs = {"input_ids": ids} | family.token_kinds(ids) | family.inputs([[visual]])
    n = int(((ids == IMAGE) | (ids == VIDEO)).sum())
    first, second = 2 * n // 3 / n, n // 3 / n
    stages = [
        vitcop.Stage(vitcop.SalientClusters(0.2), 0, first),
        vitcop.Stage(vitcop.MergeClusters(), 2, second),
    ]
    kept = []
    for method in (
        vitcop.Pipeline(stages, (2 * first + 6 * second) / 8, positions="compact"),
        vitcop.EarlyViTCoP(second, vision_retention=first, centre_fraction=0.2),
    ):
        with torch.no_grad(), vitcop.prune(model, method) as pruning:
            model(**inputs)
        kept.append((pruning.report.stages[-1].kept(), pruning.report.stages[-1].merged()))
    assert kept[0] == kept[1] and any(len(group) > 1 for group in kept[0][1].values())


@pytest.mark.parametrize("name", PROBED)
def test_outputs_of_layers_are_those_of_the_prompt(name):
    """Transformers collects them by hooks, which must not take those of a probe for these."""
    family = FAMILIES[name]
    model, inputs = family.model("eager"), batch(ragged(family), family=family)
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad(), vitcop.prune(model, METHODS["earlyvitcop"]) as pruning:
        output = model(**inputs, **asked)
    width = pruning.report.positions.shape[1]
    assert len(output.hidden_states) == len(output.attentions) + 1 == DECODER["num_hidden_layers"] + 1
    assert {states.shape[1] for states in output.hidden_states} == {width}
    assert {weights.shape[2] for weights in output.attentions} == {width}


class WithGranite(Llava):
    """Embeddings are scaled before the first layer."""

    text = GraniteConfig(**DECODER, embedding_multiplier=12.0)


class WithPhi3(Llava):
    """Queries, keys and values in one projection."""

    text = Phi3Config(**DECODER, num_key_value_groups=2)


@dataclass(frozen=True)
class TooLate(Probing):
    """Looks at images by themselves between layers."""

    retention: float = 0.5
    layer: int = 3


@pytest.mark.parametrize(
    ("family", "method", "reason"),
    [
        (WithGranite(), Probing(), "more than embeddings"),
        (FAMILIES["gemma3"], Probing(), "more than embeddings"),
        (FAMILIES["qwen3_vl"], Probing(), "more than embeddings"),
        (FAMILIES["qwen3_5"], Probing(), "more than embeddings"),
        (WithPhi3(), Probing(), "rows cannot be worked out"),
        (LLAVA, TooLate(), "at the entrance alone"),
        (LLAVA, Probing(until=0), "one of 1 to 8"),
        (LLAVA, Probing(until=9), "one of 1 to 8"),
    ],
    ids=[
        "scaled embeddings",
        "windows",
        "deepstack",
        "states",
        "fused",
        "between layers",
        "no layer",
        "beyond the last",
    ],
)
def test_what_cannot_be_probed_raises(family, method, reason):
    model = family.model()
    with torch.no_grad(), vitcop.prune(model, method), pytest.raises(vitcop.VitcopError, match=reason):
        model(**batch([ONE_IMAGE], family=family))


def test_a_decoder_without_a_token_that_prompts_begin_with_raises():
    model = LLAVA.model()
    model.config.text_config.bos_token_id = None
    refused = pytest.raises(vitcop.UnsupportedModelError, match="set it to the token that prompts begin with")
    with torch.no_grad(), vitcop.prune(model, METHODS["earlyvitcop"]), refused:
        model(**batch([ONE_IMAGE]))
