"""Llama 4: tiles of 6 x 6 patches, shuffled to 3 x 3 tokens; one tile a picture, or two and all of it in a third.

Two of the decoder layers have no positions, and every other one has experts. Prompts of the shared tests reach neither
the end of a chunk nor the place from which these two layers scale their queries.
"""

import torch
from transformers import Llama4Config, Llama4ForConditionalGeneration
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from .base import DECODER, ENCODER, IMAGE, TinyFamily, of_kind

TILES = (1, 3)
BEGIN, END, BETWEEN, BEHIND, WHOLE = 59, 58, 57, 56, 55

# Transformers 5.24 looks for this in what the language model returns, which has none, so that its own Llama 4 ends in
# an AttributeError, dense as well.
MoeCausalLMOutputWithPast.image_outputs = None


class WithDecoder(Llama4ForConditionalGeneration):
    """Shows tests the layers where other models do. Its own shows the language model with its head."""

    def get_decoder(self):
        return self.language_model.model


class Llama4(TinyFamily):
    name = "llama4"
    has_cls = cls_behind = True
    sizes = 2
    chunk, floor = 128, 128

    def build(self, attention):
        vision = ENCODER | {
            "intermediate_size": 4 * ENCODER["hidden_size"],
            "image_size": 84,
            "patch_size": 14,
            "projector_input_dim": 24,
            "projector_output_dim": 24,
            "vision_output_dim": 24,
        }
        text = DECODER | {
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": self.chunk,
            "floor_scale": self.floor,
        }
        config = Llama4Config(
            vision_config=vision, text_config=text, image_token_index=IMAGE, boi_token_index=BEGIN, eoi_token_index=END
        )
        return WithDecoder._from_config(config, attn_implementation=attention)

    def shape(self, kind, size, alone):
        return TILES[size], 84, 84

    def tokens(self, visual):
        tile = [IMAGE] * 9
        cut = [*tile, BETWEEN, *tile, BEHIND] if TILES[visual.size] > 1 else []
        return [BEGIN, *cut, WHOLE, *tile, END]

    def inputs(self, rows):
        return {"pixel_values": torch.cat([visual.pixels for visual in of_kind(rows, "image")])}


LLAMA4 = Llama4()
