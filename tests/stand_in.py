"""A processor for tiny models, which have none: whatever is asked, the model is shown the same."""

from types import SimpleNamespace

import torch
from families.base import TinyFamily, Visual
from transformers import BatchFeature


class StandIn:
    """What transformers' processors do that commands and the page rely on, for a tiny model."""

    chat_template = "given"
    image_processor = SimpleNamespace(image_mean=[0.4, 0.6, 0.2], image_std=[0.2, 0.4, 0.2])
    video_processor = SimpleNamespace(do_center_crop=False)

    def __init__(self, family: TinyFamily, visual: Visual) -> None:
        self.family, self.visual = family, visual

    def apply_chat_template(self, messages: list, add_generation_prompt: bool) -> str:
        self.content = messages[0]["content"]
        return "a prompt"

    def __call__(self, text: str, return_tensors: str, **visuals: object) -> BatchFeature:
        self.visuals = visuals
        tokens = torch.tensor([[1, *self.family.tokens(self.visual), 7]])
        inputs = {"input_ids": tokens} | self.family.token_kinds(tokens) | self.family.inputs([[self.visual]])
        return BatchFeature(inputs)

    def batch_decode(self, tokens: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        return [f"{tokens.shape[1]} tokens"]
