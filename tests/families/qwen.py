"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and its mixture of experts: patches of 4 x 4 pixels, merged by two."""

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from .base import DECODER, IMAGE, SPREAD, VIDEO, TinyFamily, of_kind

PATCH, MERGE, FRAMES_PER_PATCH = 4, 2, 2
VISION = {
    "depth": 3,
    "num_heads": 4,
    "patch_size": PATCH,
    "temporal_patch_size": FRAMES_PER_PATCH,
    "spatial_merge_size": MERGE,
    "initializer_range": SPREAD,
}
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": 59, "vision_end_token_id": 58}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


def patches(frames):
    """(frames, 3, height, width) -> one row per patch, those of a token one after another, as the processor does it."""
    count, _, height, width = frames.shape
    side = MERGE * PATCH
    frames = frames.view(count // 2, 2, 3, height // side, MERGE, PATCH, width // side, MERGE, PATCH)
    return frames.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(count // 2 * (height // PATCH) * (width // PATCH), -1)


class Qwen2VL(TinyFamily):
    name = "qwen2_vl"
    kinds = ("image", "video")
    sizes = 2
    frames_per_grid = FRAMES_PER_PATCH
    image_sizes = ((24, 40), (40, 32))

    def build(self, attention):
        config = Qwen2VLConfig(
            vision_config=VISION | {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
            text_config=DECODER | {"rope_parameters": ROPE},
            **TOKENS,
        )
        return Qwen2VLForConditionalGeneration._from_config(config, attn_implementation=attention)

    def shape(self, kind, size, alone):
        return (4, 24, 24) if kind == "video" else (1, *self.image_sizes[size])

    def tokens(self, visual):
        frames, height, width = len(visual.pixels), *visual.pixels.shape[2:]
        per_grid = height // (PATCH * MERGE) * (width // (PATCH * MERGE))
        return [VIDEO] * (frames // 2 * per_grid) if visual.kind == "video" else [IMAGE] * per_grid

    def inputs(self, rows):
        inputs = {}
        for kind, suffix in (("image", ""), ("video", "_videos")):
            visuals = of_kind(rows, kind)
            if not visuals:
                continue
            frames = [v.pixels if kind == "video" else v.pixels.expand(2, -1, -1, -1) for v in visuals]
            grids = [(len(f) // 2, f.shape[2] // PATCH, f.shape[3] // PATCH) for f in frames]
            inputs[f"pixel_values{suffix}"] = torch.cat([patches(f.contiguous()) for f in frames])
            inputs[f"{kind}_grid_thw"] = torch.tensor(grids)
        return inputs

    def token_kinds(self, input_ids):
        return {"mm_token_type_ids": (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()}


class Qwen25VL(Qwen2VL):
    """Windows of 2 x 2 tokens; only the second of three layers attends to the whole picture."""

    name = "qwen2_5_vl"

    def build(self, attention):
        vision = VISION | {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32}
        config = Qwen2_5_VLConfig(
            vision_config=vision | {"window_size": 2 * MERGE * PATCH, "fullatt_block_indexes": [1]},
            text_config=DECODER | {"rope_parameters": ROPE},
            **TOKENS,
        )
        return Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=attention)


class Qwen3VL(Qwen2VL):
    """Every layer of the encoder feeds DeepStack, and time stamps stand between the frames of a video."""

    name = "qwen3_vl"
    vision = VISION | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1, 2],
    }

    def build(self, attention):
        config = Qwen3VLConfig(vision_config=self.vision, text_config=DECODER | {"rope_parameters": ROPE}, **TOKENS)
        return Qwen3VLForConditionalGeneration._from_config(config, attn_implementation=attention)

    def tokens(self, visual):
        tokens = super().tokens(visual)
        if visual.kind == "image":
            return tokens
        per_grid = len(tokens) // 2
        return [30, 59, *tokens[:per_grid], 58, 31, 59, *tokens[per_grid:], 58]


class Qwen3VLMoe(Qwen3VL):
    name = "qwen3_vl_moe"

    def build(self, attention):
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        config = Qwen3VLMoeConfig(
            vision_config=self.vision, text_config=DECODER | experts | {"rope_parameters": ROPE}, **TOKENS
        )
        model = Qwen3VLMoeForConditionalGeneration._from_config(config, attn_implementation=attention)
        model.set_experts_implementation("eager")  # whose products can be counted
        return model


QWEN2, QWEN25, QWEN3, QWEN3_MOE = Qwen2VL(), Qwen25VL(), Qwen3VL(), Qwen3VLMoe()
