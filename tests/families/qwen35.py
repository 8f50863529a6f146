"""Qwen3.5 and its mixture of experts: layers that fold tokens into a state, and some that attend, half of each head
turned.
"""

import torch
from transformers import (
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
)

from .base import DECODER
from .qwen import TOKENS, VISION, Qwen3VL

ENCODER = VISION | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75, "mrope_section": [1, 1, 1]}
# More value heads than key heads, of another size.
STATES = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_conv_kernel_dim": 4,
}
KINDS = {"s": "linear_attention", "a": "full_attention"}
TEXT = DECODER | STATES | {"rope_parameters": ROPE}


def remembering(model):
    """States that last for the whole prompt, so that a token too many or too few in them shows in the logits."""
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            torch.nn.init.uniform_(parameter, -5.0, -2.0)
    return model


class Qwen35(Qwen3VL):
    """The layers attend before which methods look ahead, but for the first."""

    name = "qwen3_5"
    kinds_of_layers = "saasasaa"
    refuses = frozenset({"hawk"})

    @property
    def text(self):
        return TEXT | {"layer_types": [KINDS[kind] for kind in self.kinds_of_layers]}

    def build(self, attention):
        config = Qwen3_5Config(vision_config=ENCODER, text_config=self.text, **TOKENS)
        return remembering(Qwen3_5ForConditionalGeneration._from_config(config, attn_implementation=attention))


class Qwen35Moe(Qwen35):
    """Stages stand behind layers that have no keys, and other stages between them and those that have."""

    name = "qwen3_5_moe"
    kinds_of_layers = "ssasssaa"
    refuses = frozenset({"hawk", "pyramiddrop"})

    def build(self, attention):
        experts = {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
        }
        text = {key: value for key, value in self.text.items() if key != "intermediate_size"}
        config = Qwen3_5MoeConfig(vision_config=ENCODER, text_config=text | experts, **TOKENS)
        model = Qwen3_5MoeForConditionalGeneration._from_config(config, attn_implementation=attention)
        model.set_experts_implementation("eager")  # whose products can be counted
        return remembering(model)


QWEN35, QWEN35_MOE = Qwen35(), Qwen35Moe()
