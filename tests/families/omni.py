"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: as Qwen-VL, with markers around what is shown, and sound."""

import torch
from transformers import (
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
)
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni

from .base import DECODER, IMAGE, SPREAD, VIDEO, of_kind
from .qwen import MERGE, PATCH, ROPE, VISION, Qwen2VL, Qwen3VL

AUDIO = 60
MARKERS = {"vision_start_token_id": 59, "vision_end_token_id": 58, "audio_start_token_id": 57, "audio_end_token_id": 56}
HEARING = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "max_source_positions": 40,
    "n_window": 20,
    "output_dim": 32,
    "initializer_range": SPREAD,
}


class Qwen25Omni(Qwen2VL):
    name = "qwen2_5_omni_thinker"

    def build(self, attention):
        windows = {"window_size": 2 * MERGE * PATCH, "fullatt_block_indexes": [1]}
        config = Qwen2_5OmniThinkerConfig(
            audio_config=HEARING | {"num_mel_bins": 4},
            vision_config=VISION | windows | {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32},
            text_config=DECODER | {"rope_parameters": ROPE},
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            audio_token_index=AUDIO,
            initializer_range=SPREAD,
            **MARKERS,
        )
        return silent(Qwen2_5OmniThinkerForConditionalGeneration._from_config(config, attn_implementation=attention))

    def tokens(self, visual):
        return [59, *Qwen2VL.tokens(self, visual), 58]

    def inputs(self, rows):
        videos = len(of_kind(rows, "video"))
        return super().inputs(rows) | ({"video_second_per_grid": torch.ones(videos)} if videos else {})

    def token_kinds(self, input_ids):
        """Without a mask, the model takes what is shown for text."""
        return {"attention_mask": torch.ones_like(input_ids)}


class Qwen3Omni(Qwen25Omni):
    """Every layer of the encoder feeds DeepStack, and positions are fractions."""

    name = "qwen3_omni_moe_thinker"

    def build(self, attention):
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        config = Qwen3OmniMoeThinkerConfig(
            audio_config=HEARING | {"num_mel_bins": 16, "downsample_hidden_size": 8},
            vision_config=Qwen3VL.vision,
            text_config=DECODER | experts | {"rope_parameters": ROPE},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
            initializer_range=SPREAD,
            **MARKERS,
        )
        model = Qwen3OmniMoeThinkerForConditionalGeneration._from_config(config, attn_implementation=attention)
        model.set_experts_implementation("eager")  # whose products can be counted
        return silent(model)


def silent(model):
    """Does not say the marker behind which the model looks for a picture, as random weights are ready to do."""
    with torch.no_grad():
        model.lm_head.weight[MARKERS["vision_start_token_id"]] = 0
    return model


MISSING = () if hasattr(modeling_qwen2_5_omni, "Qwen2_5OmniThinkerModel") else (Qwen25Omni.name, Qwen3Omni.name)
"""Those that have no base model in this transformers, which raises."""

if not MISSING:
    QWEN25_OMNI, QWEN3_OMNI = Qwen25Omni(), Qwen3Omni()
