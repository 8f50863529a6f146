"""GLM-4.1V, GLM-4.5V's mixture of experts and GLM-4.6V: Qwen-VL's patches, half of each head turned, three axes.

Pictures and videos have one placeholder and no batch in common, so that there is a family of either.
"""

from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
)

from .base import DECODER, IMAGE
from .qwen import FRAMES_PER_PATCH, PATCH, TOKENS, VISION, Qwen2VL

ENCODER = VISION | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 32,
    "image_size": 4 * PATCH,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75, "mrope_section": [1, 1, 1]}
TEXT = DECODER | {"rope_parameters": ROPE}
MARKERS = {"image_start_token_id": 59, "image_end_token_id": 58, "video_start_token_id": 57, "video_end_token_id": 56}
GLM_TOKENS = {name: token for name, token in TOKENS.items() if not name.startswith("vision")} | MARKERS


class Glm4v(Qwen2VL):
    name = "glm4v"
    kinds = ("image",)

    def build(self, attention):
        config = Glm4vConfig(vision_config=ENCODER, text_config=TEXT, **GLM_TOKENS)
        return Glm4vForConditionalGeneration._from_config(config, attn_implementation=attention)

    def tokens(self, visual):
        per_grid = len(super().tokens(visual)) // max(1, len(visual.pixels) // FRAMES_PER_PATCH)
        frame = [59, *[IMAGE] * per_grid, 58]
        return [57, *frame, 30, *frame, 31, 56] if visual.kind == "video" else frame

    def token_kinds(self, input_ids):
        return {"mm_token_type_ids": (input_ids == IMAGE).int() * (2 if "video" in self.kinds else 1)}


class Glm4vVideo(Glm4v):
    name = "glm4v with videos"
    kinds = ("video",)


class Glm46V(Glm4v):
    """An outer model of its own around the parts of the first."""

    name = "glm46v"

    def build(self, attention):
        vision, text = {"model_type": "glm4v_vision"}, {"model_type": "glm4v_text"}
        config = Glm46VConfig(vision_config=ENCODER | vision, text_config=TEXT | text, **GLM_TOKENS)
        return Glm46VForConditionalGeneration._from_config(config, attn_implementation=attention)


class Glm4vMoe(Glm4v):
    """The first of its layers is dense, and one expert of the others sees every token."""

    name = "glm4v_moe"

    def build(self, attention):
        experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        config = Glm4vMoeConfig(vision_config=ENCODER, text_config=TEXT | experts, **GLM_TOKENS)
        model = Glm4vMoeForConditionalGeneration._from_config(config, attn_implementation=attention)
        model.set_experts_implementation("eager")  # whose products can be counted
        return model


GLM4V, GLM4V_VIDEO, GLM46V, GLM4V_MOE = Glm4v(), Glm4vVideo(), Glm46V(), Glm4vMoe()
