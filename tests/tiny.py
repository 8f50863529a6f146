"""Tiny models with random weights, and prompts for them, that the shared tests run over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

import vitcop
from vitcop.ops.saliency import key_norm
from vitcop.ops.segments import smallest_per_segment

IMAGE_TOKEN, PAD_TOKEN, NUM_LAYERS, TOKENS_PER_IMAGE = 63, 0, 8, 36

# Large enough that attention is far from uniform, so that a token too many or too few shows in the logits.
SPREAD = 0.2


def llava(attention: str = "sdpa", **text: object) -> PreTrainedModel:
    """LLaVA with a 6 x 6 grid and grouped-query attention."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=84,
            patch_size=14,
            initializer_range=SPREAD,
        ),
        text_config=LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
            initializer_range=SPREAD,
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=PAD_TOKEN,
            **text,
        ),
        image_token_id=IMAGE_TOKEN,
        vision_feature_layer=-2,
        attn_implementation=attention,
    )
    return LlavaForConditionalGeneration(config).eval()


MODELS = {"llava": llava}
"""One builder per model family; a new family adds its own here."""


@dataclass(frozen=True)
class Prompt:
    """Text of a few random tokens around each of some images."""

    images: int
    seed: int

    def tokens(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed)
        tokens = [1]
        for _ in range(self.images):
            tokens += self._text(generator) + [IMAGE_TOKEN] * TOKENS_PER_IMAGE
        return tokens + self._text(generator)

    def pixels(self) -> Tensor:
        generator = torch.Generator().manual_seed(1000 + self.seed)
        return torch.randn(self.images, 3, 84, 84, generator=generator)

    def _text(self, generator: torch.Generator) -> list[int]:
        count = int(torch.randint(2, 6, (), generator=generator))
        return torch.randint(2, 60, (count,), generator=generator).tolist()


ONE_IMAGE = Prompt(images=1, seed=1)
RAGGED = (Prompt(images=2, seed=2), Prompt(images=0, seed=3), ONE_IMAGE)


def batch(prompts: Sequence[Prompt], padding: str = "left") -> dict[str, Tensor]:
    """Model inputs for a batch; no mask where no row is padded."""
    rows = [prompt.tokens() for prompt in prompts]
    width = max(map(len, rows))
    pads = [[PAD_TOKEN] * (width - len(row)) for row in rows]
    ones = [[1] * len(row) for row in rows]
    if padding == "left":
        rows, ones = (
            [pad + row for pad, row in zip(pads, rows, strict=True)],
            [[0] * len(pad) + one for pad, one in zip(pads, ones, strict=True)],
        )
    else:
        rows, ones = (
            [row + pad for pad, row in zip(pads, rows, strict=True)],
            [one + [0] * len(pad) for pad, one in zip(pads, ones, strict=True)],
        )
    inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(ones)}
    if not any(pads):
        del inputs["attention_mask"]
    pixels = torch.cat([prompt.pixels() for prompt in prompts])
    return inputs | ({"pixel_values": pixels} if len(pixels) else {})


@dataclass(frozen=True)
class ThreeStages(vitcop.Pruner):
    """Drops at the entrance and in two layers and merges nothing, by saliency and by key norm."""

    positions: str = "keep"

    def budgets(self, num_tokens: int, num_layers: int) -> dict[int, int]:
        return {0: num_tokens * 2 // 3, 2: num_tokens // 3, 5: num_tokens // 8}

    def select(self, tokens: vitcop.VisualTokens, budget: tuple[int, ...]) -> vitcop.Selection:
        score = -tokens.saliency if tokens.layer == 0 else key_norm(tokens.keys)
        return vitcop.Selection(smallest_per_segment(score, tokens.lengths, budget))


KEEP_ONLY = {
    "three_stages": ThreeStages(),
    "three_stages_compact": ThreeStages("compact"),
    "knorm": vitcop.KNorm(retention=0.4),
    "random": vitcop.Random(retention=0.3),
}
METHODS = KEEP_ONLY | {"vitcop": vitcop.ViTCoP(retention=0.3)}
