"""Models by name that anyone can measure without downloading: published configs, and processors set as published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import (
    AyaVisionConfig,
    CLIPVisionConfig,
    Cohere2Config,
    Gemma4AudioConfig,
    Gemma4Config,
    Gemma4TextConfig,
    Gemma4VisionConfig,
    Glm4vConfig,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    PretrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3_5Config,
    Qwen3VLConfig,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl import InternVLVisionConfig
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


@dataclass(frozen=True)
class Shape:
    """A model without its weights.

    Attributes:
        config: makes its config.
        image_processor: makes its image processor, as the checkpoint sets it.
    """

    config: Callable[[], PretrainedConfig]
    image_processor: Callable[[], Any]


_VICUNA_7B: dict[str, Any] = {"vocab_size": 32064, "max_position_embeddings": 4096}
_VICUNA_13B: dict[str, Any] = _VICUNA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
_QWEN2_5_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def _clip() -> PretrainedConfig:
    """ViT-L/14-336."""
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )


def _clip_processor() -> Any:
    return CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})


def _llava(text: dict[str, Any]) -> PretrainedConfig:
    return LlavaConfig(
        vision_config=_clip(),
        text_config=LlamaConfig(**text),
        image_token_index=32000,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def _llava_next(text: dict[str, Any]) -> PretrainedConfig:
    return LlavaNextConfig(
        vision_config=_clip(),
        text_config=LlamaConfig(**text),
        image_token_index=32000,
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def _llava_next_processor() -> Any:
    crop = {"height": 336, "width": 336}
    return LlavaNextImageProcessorPil(size={"shortest_edge": 336}, crop_size=crop, image_grid_pinpoints=_PINPOINTS)


def _onevision() -> PretrainedConfig:
    """SigLIP so400m/14-384 without its last layer, and Qwen2-0.5B."""
    vision = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=26,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=152000,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlavaOnevisionConfig(vision_config=vision, text_config=text, tie_word_embeddings=True)


def _qwen2_5_vl() -> PretrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    return Qwen2_5_VLConfig(
        vision_config=vision, text_config=_QWEN2_5_7B | {"vocab_size": 152064, "rope_parameters": rope}
    )


def _qwen3_vl() -> PretrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_parameters": rope,
    }
    vision = {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 4096,
        "patch_size": 16,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    }
    return Qwen3VLConfig(vision_config=vision, text_config=text)


def _qwen3_5() -> PretrainedConfig:
    """What the config class has by default, but for the rotary embedding and what the encoder hands on."""
    rope = {
        "rope_type": "default",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    }
    return Qwen3_5Config(vision_config={"out_hidden_size": 4096}, text_config={"rope_parameters": rope})


def _glm4v() -> PretrainedConfig:
    """What the config class has by default, but for the rotary embedding of half a head."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]}
    return Glm4vConfig(vision_config={}, text_config={"rope_parameters": rope})


def _gemma4_e4b() -> PretrainedConfig:
    """Five layers with a window to one without, of which the last 18 use the keys and values of others."""
    text = Gemma4TextConfig(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=42,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_kv_shared_layers=18,
        sliding_window=512,
        final_logit_softcapping=30.0,
    )
    vision = Gemma4VisionConfig(use_clipped_linears=True)
    return Gemma4Config(text_config=text, vision_config=vision, audio_config=Gemma4AudioConfig())


def _internvl3() -> PretrainedConfig:
    """InternViT-300M-448px, and Qwen2.5-7B."""
    vision = InternVLVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=[448, 448],
        patch_size=[14, 14],
        attention_bias=True,
    )
    text = Qwen2Config(**_QWEN2_5_7B, vocab_size=151674)
    return InternVLConfig(vision_config=vision, text_config=text, image_token_id=151667, tie_word_embeddings=False)


def _aya_vision() -> PretrainedConfig:
    """SigLIP 2 so400m/14 for pictures of 364 pixels, and Command R7B."""
    vision = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=364,
        patch_size=14,
        vision_use_head=False,
    )
    text = Cohere2Config(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        logit_scale=0.25,
        rope_parameters={"rope_type": "default", "rope_theta": 5e4},
    )
    return AyaVisionConfig(vision_config=vision, text_config=text, alignment_intermediate_size=28672)


def _qwen2_5_processor() -> Any:
    return Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384})


def _qwen3_processor() -> Any:
    half = [0.5, 0.5, 0.5]
    size = {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}
    return Qwen2VLImageProcessorPil(patch_size=16, size=size, image_mean=half, image_std=half)


def _internvl_processor() -> Any:
    return GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True)


def _aya_vision_processor() -> Any:
    return GotOcr2ImageProcessorPil(size={"height": 364, "width": 364}, crop_to_patches=True)


SHAPES: dict[str, Shape] = {
    "llava-1.5-7b": Shape(lambda: _llava(_VICUNA_7B), _clip_processor),
    "llava-1.5-13b": Shape(lambda: _llava(_VICUNA_13B), _clip_processor),
    "llava-next-7b": Shape(lambda: _llava_next(_VICUNA_7B), _llava_next_processor),
    "llava-next-13b": Shape(lambda: _llava_next(_VICUNA_13B), _llava_next_processor),
    "llava-onevision-0.5b": Shape(_onevision, LlavaOnevisionImageProcessorPil),
    "qwen2.5-vl-7b": Shape(_qwen2_5_vl, _qwen2_5_processor),
    "qwen3-vl-8b": Shape(_qwen3_vl, _qwen3_processor),
    "qwen3.5-9b": Shape(_qwen3_5, _qwen3_processor),
    "glm-4.1v-9b": Shape(_glm4v, Glm4vImageProcessorPil),
    "gemma-4-e4b": Shape(_gemma4_e4b, Gemma4ImageProcessorPil),
    "internvl3-8b": Shape(_internvl3, _internvl_processor),
    "aya-vision-8b": Shape(_aya_vision, _aya_vision_processor),
}
