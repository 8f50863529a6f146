"""The architecture, a small LLaVA-1.5, and its processor."""

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from training.vocabulary import CHAT_TEMPLATE, make_tokenizer
from vitcop.scenes import SIZE

PATCH = 8
SIDE = SIZE // PATCH  # patches on a side
DEPTH = 20  # decoder layers
LONGEST_ANSWER = 4  # tokens, the end of the sequence among them


def make_processor() -> LlavaProcessor:
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=make_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        hidden_act="gelu",
    )


def make_model(depth: int = DEPTH) -> LlavaForConditionalGeneration:
    """An untrained model. Its decoder is deep and thin, for pruning at several depths."""
    tokenizer = make_tokenizer()
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=depth,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        # Slower rotations than the usual: most of the few dimensions of a head mean the same across the picture.
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        initializer_range=0.08,  # the usual 0.02 is meant for layers many times as wide
        **special,
    )
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text,
        image_token_id=tokenizer.image_token_id,
        image_seq_length=SIDE * SIDE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        **special,
    )
    model = LlavaForConditionalGeneration(config)
    # GPT-2's rule: what a block adds to the residual stream starts small in a deep stack.
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                matrix.mul_((2 * depth) ** -0.5)
    model.generation_config = GenerationConfig(max_new_tokens=LONGEST_ANSWER, do_sample=False, **special)
    return model
