"""LLaVA with each of its encoders."""

import copy

import torch
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    PixtralVisionConfig,
    SiglipVisionConfig,
)

from .base import BREAK, DECODER, ENCODER, IMAGE, TinyFamily, of_kind, sized


class Llava(TinyFamily):
    name = "llava"
    has_cls = True
    vision = CLIPVisionConfig(**ENCODER, image_size=84, patch_size=14)
    text = LlamaConfig(**DECODER)
    features = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}

    def build(self, attention):
        vision, text = copy.deepcopy(self.vision), copy.deepcopy(self.text)
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, **self.features)
        return LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)

    def shape(self, kind, size, alone):
        return 1, 84, 84

    def tokens(self, visual):
        return [IMAGE] * 36

    def inputs(self, rows):
        return {"pixel_values": torch.cat([visual.pixels for visual in of_kind(rows, "image")])}


class LlavaMixtral(Llava):
    """Experts whose configuration names less than Qwen's."""

    name = "llava with mixtral"
    text = MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2)

    def build(self, attention):
        model = super().build(attention)
        model.set_experts_implementation("eager")  # whose products can be counted
        return model


class LlavaSiglip(Llava):
    name = "llava with siglip"
    has_cls = False
    vision = SiglipVisionConfig(**ENCODER, image_size=84, patch_size=14, vision_use_head=False)
    features = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}


class LlavaPixtral(LlavaSiglip):
    name = "llava with pixtral"
    vision = PixtralVisionConfig(**ENCODER, image_size=32, patch_size=4)
    sizes = 2

    def shape(self, kind, size, alone):
        return 1, *((16, 24), (24, 16))[size]

    def tokens(self, visual):
        rows, columns = ((4, 6), (6, 4))[visual.size]
        return ([IMAGE] * columns + [BREAK]) * rows

    def inputs(self, rows):
        return sized(rows)


DINO = {key: value for key, value in ENCODER.items() if key != "intermediate_size"} | {"patch_size": 14}


class LlavaDinov2(Llava):
    """Positions for 4 x 4 patches, interpolated to 5 x 7."""

    name = "llava with dinov2"
    vision = Dinov2Config(**DINO, mlp_ratio=2, image_size=56)

    def shape(self, kind, size, alone):
        return 1, 70, 98

    def tokens(self, visual):
        return [IMAGE] * 35


class LlavaRegisters(Llava):
    """Whose placeholders begin with those of the registers, from the last layer."""

    name = "llava with registers"
    registers = 4
    vision = Dinov2WithRegistersConfig(**DINO, mlp_ratio=2, image_size=84, num_register_tokens=registers)
    features = {"vision_feature_layer": -1, "vision_feature_select_strategy": "default"}

    def build(self, attention):
        model = super().build(attention)
        # Which begin as zeros, each like the others.
        torch.nn.init.normal_(model.model.vision_tower.embeddings.register_tokens)
        return model

    def tokens(self, visual):
        return [IMAGE] * (self.registers + 36)


LLAVA, MIXTRAL, SIGLIP, PIXTRAL = Llava(), LlavaMixtral(), LlavaSiglip(), LlavaPixtral()
DINOV2, REGISTERS = LlavaDinov2(), LlavaRegisters()
