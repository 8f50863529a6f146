"""ViTCoP keeps what its authors' published code keeps; tests/golden/README.md says how the data was made."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vitcop

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGE_TOKEN = 63
TEXT_BEFORE = 4


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=32, num_attention_heads=4, vocab_size=64
        ),
        image_token_id=IMAGE_TOKEN,
        vision_feature_layer=-2,
    )
    model = LlavaForConditionalGeneration(config).eval()
    renamed = (
        ("model.mm_projector.0", "model.multi_modal_projector.linear_1"),
        ("model.mm_projector.2", "model.multi_modal_projector.linear_2"),
        ("model.vision_tower.vision_tower.vision_model", "model.vision_tower"),
        ("model.embed_tokens", "model.language_model.embed_tokens"),
        ("model.layers", "model.language_model.layers"),
        ("model.norm", "model.language_model.norm"),
    )
    weights = {}
    for name, value in np.load(GOLDEN / "weights.npz").items():
        for old, new in renamed:
            name = name.replace(old, new)
        weights[name] = torch.from_numpy(value).float()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing)
    return model


@pytest.mark.parametrize("case", ["retention_1_9", "retention_2_9", "retention_1_9_many_clusters"])
def test_matches_the_authors(model: LlavaForConditionalGeneration, case: str) -> None:
    golden = {name: torch.from_numpy(v) for name, v in np.load(GOLDEN / f"{case}.npz").items() if name != "settings"}
    settings = json.loads(str(np.load(GOLDEN / f"{case}.npz")["settings"]))
    settings.pop("layers")
    method = vitcop.ViTCoP(**settings, cutoff=8.0)

    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((golden["image"] / 255 - mean) / std).permute(2, 0, 1)[None]
    ids = golden["input_ids"]
    where = ids[0].tolist().index(IMAGE_TOKEN)
    ids = torch.cat([ids[:, :where], torch.full((1, 576), IMAGE_TOKEN), ids[:, where + 1 :]], dim=1)

    entering = {}

    def spy(layer, args, kwargs):
        entering[layer.self_attn.layer_idx] = args[0], kwargs["position_ids"]

    with torch.no_grad(), vitcop.prune(model, method) as pruning:
        hooks = [
            model.model.language_model.layers[layer].register_forward_pre_hook(spy, with_kwargs=True)
            for layer in (settings["shallow_layer"], settings["deep_layer"])
        ]
        output = model(input_ids=ids, pixel_values=pixels)
        for hook in hooks:
            hook.remove()

    lengths = [layer.keys.shape[2] for layer in output.past_key_values.layers]
    assert lengths == golden["cache_lengths"].tolist()
    stage = pruning.report.stages[0]
    assert stage.kept() == golden["stage1"].tolist()
    # Numbered by falling peak on both sides, but only the partition has a meaning.
    clusters = stage.cluster[stage.keep]
    assert torch.equal(clusters[:, None] == clusters, golden["labels"][:, None] == golden["labels"])
    for name, layer in (("shallow", settings["shallow_layer"]), ("deep", settings["deep_layer"])):
        hidden_states, positions = entering[layer]
        assert torch.equal(positions[0], golden[f"positions_{name}"])
        torch.testing.assert_close(hidden_states[0], golden[f"hidden_{name}"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.logits[0], golden["logits"], rtol=1e-4, atol=1e-4)
