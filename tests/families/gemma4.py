"""Gemma 4, as its small models are and as the one with experts is: 3 x 3 patches of 4 x 4 pixels pooled to a token.

Pictures are padded to 63 patches and frames to 36. Behind eight layers of the small one stand four that use the keys
and values of the last two of these.
"""

import inspect

import torch
from torch.nn.functional import pad
from transformers import Gemma4Config, Gemma4ForConditionalGeneration, Gemma4TextConfig, Gemma4VisionConfig

from .base import DECODER, ENCODER, IMAGE, NUM_LAYERS, SPREAD, VIDEO, TinyFamily, of_kind

PATCH, POOLED, MOST = 4, 3, {"image": 7, "video": 4}
SIDE = PATCH * POOLED
TEXT = DECODER | {"sliding_window": 12, "global_head_dim": 16}
KINDS = ["sliding_attention", "full_attention"]


def patches(picture, most):
    """(3, height, width) -> one row per patch with its column and row, padded, as the processor does it."""
    rows, columns = (pixels // PATCH for pixels in picture.shape[1:])
    values = picture.reshape(3, rows, PATCH, columns, PATCH).permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(-1)
    missing = most * POOLED**2 - len(values)
    return pad(values, (0, 0, 0, missing)), pad(places, (0, 0, 0, missing), value=-1)


class Gemma4(TinyFamily):
    name = "gemma4"
    kinds = ("image", "video")
    sizes = 2
    image_sizes = ((2 * SIDE, 3 * SIDE), (6 * SIDE, SIDE))
    text = TEXT | {
        "num_hidden_layers": NUM_LAYERS + 4,
        "layer_types": KINDS * (NUM_LAYERS // 2 + 2),
        "num_kv_shared_layers": 4,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": DECODER["vocab_size"],
    }

    def build(self, attention):
        vision = Gemma4VisionConfig(
            **ENCODER, num_key_value_heads=4, head_dim=8, patch_size=PATCH, pooling_kernel_size=POOLED
        )
        config = Gemma4Config(
            text_config=Gemma4TextConfig(**self.text),
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=60,
            initializer_range=SPREAD,
        )
        model = Gemma4ForConditionalGeneration._from_config(config, attn_implementation=attention)
        # Normalised to 1, a branch would count for as much as all before it, and attention leave one token of all:
        # rounding would grow from layer to layer.
        for name, weight in model.named_parameters():
            if "layers" in name and ("post_" in name or "q_norm" in name):
                torch.nn.init.constant_(weight, 0.4)
            if "k_norm" in name:  # or all keys of one head would be of one length
                torch.nn.init.normal_(weight, 1, SPREAD)
        return model

    def shape(self, kind, size, alone):
        return (2, 2 * SIDE, 2 * SIDE) if kind == "video" else (1, *self.image_sizes[size])

    def tokens(self, visual):
        height, width = visual.pixels.shape[2:]
        grid = [VIDEO if visual.kind == "video" else IMAGE] * (height // SIDE * (width // SIDE))
        return [30, 59, *grid, 58, 31, 59, *grid, 58] if visual.kind == "video" else [59, *grid, 58]

    def inputs(self, rows):
        inputs = {}
        for kind, suffix in (("image", ""), ("video", "_videos")):
            visuals = of_kind(rows, kind)
            if not visuals:
                continue
            made = [patches(picture, MOST[kind]) for visual in visuals for picture in visual.pixels]
            inputs[f"pixel_values{suffix}"] = torch.stack([values for values, _ in made])
            inputs[f"{kind}_position_ids"] = torch.stack([places for _, places in made])
            if kind == "video":
                frames = [len(visual.pixels) for visual in visuals]
                inputs["num_frames_per_video"] = torch.tensor(frames)
        return inputs if counts_frames() else by_video(inputs)

    def token_kinds(self, input_ids):
        return {"mm_token_type_ids": (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()}


class Gemma4Moe(Gemma4):
    """Pictures see themselves both ways within windows, values are keys in the other layers, and all inputs are one."""

    name = "gemma4 with experts"
    text = TEXT | {
        "layer_types": KINDS * (NUM_LAYERS // 2),
        "use_bidirectional_attention": "vision",
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    }

    def build(self, attention):
        model = super().build(attention)
        model.set_experts_implementation("eager")  # whose products can be counted
        return model


def counts_frames():
    """Whether this transformers is told how many frames a video has."""
    return "num_frames_per_video" in inspect.signature(Gemma4ForConditionalGeneration.forward).parameters


def by_video(inputs):
    """As older releases of transformers take videos, which have as many frames each."""
    frames = inputs.pop("num_frames_per_video", None)
    if frames is not None:
        for name in ("pixel_values_videos", "video_position_ids"):
            inputs[name] = inputs[name].unflatten(0, (len(frames), -1))
    return inputs


GEMMA4, GEMMA4_MOE = Gemma4(), Gemma4Moe()
