"""What the testbed looks like, which needs none of its weights."""

from __future__ import annotations

from transformers import Dinov2Config, LlamaConfig, LlavaConfig

SIDE = 224
"""Of a picture, in pixels."""
PATCH = 14
UNKNOWN, BOS, EOS, IMAGE = range(4)
"""Ids of SmolLM2's `<|endoftext|>`, `<|im_start|>`, `<|im_end|>`, and `<repo_name>`, which no chat has: a picture's."""


def encoder_config(side: int = SIDE) -> Dinov2Config:
    """DINOv2-small.

    Args:
        side: of the pictures that its table of positions is for, in pixels.
    """
    return Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=side, patch_size=PATCH)


def decoder_config() -> LlamaConfig:
    """SmolLM2-135M-Instruct."""
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )


def config() -> LlavaConfig:
    """The whole: features of the last encoder layer but one, without [CLS], 256 visual tokens to a picture."""
    return LlavaConfig(
        vision_config=encoder_config(),
        text_config=decoder_config(),
        image_token_id=IMAGE,
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
