"""What families know about their models beyond what the shared tests see."""

import pytest
import torch
from tiny import LLAVA
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vitcop.models import family_of


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
