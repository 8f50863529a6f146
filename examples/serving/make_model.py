"""Writes a LLaVA of random weights, of which only the speed says something: `python make_model.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

from vitcop.builtin import MODEL_PATH

VISION = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6, "num_hidden_layers": 7}
PICTURE = {"image_size": 336, "patch_size": 14}
TEXT = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_hidden_layers": 12,
}


def make(folder: Path) -> None:
    """The model in the box, made larger: 576 visual tokens, 193 million weights."""
    config = AutoConfig.from_pretrained(MODEL_PATH, trust_remote_code=False)
    config.vision_config.update(VISION | PICTURE)
    config.text_config.update(TEXT)
    config.image_seq_length = (PICTURE["image_size"] // PICTURE["patch_size"]) ** 2
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    # vLLM 0.32 looks for weights under the names that CLIP's had before transformers 5.18.
    file = folder / "model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(file).items()}
    older = {name.replace("vision_tower.", "vision_tower.vision_model."): weight for name, weight in weights.items()}
    save_file(older, file, {"format": "pt"})
    processor = AutoProcessor.from_pretrained(MODEL_PATH, trust_remote_code=False)
    processor.patch_size = PICTURE["patch_size"]
    side = PICTURE["image_size"]
    processor.image_processor.size = {"shortest_edge": side}
    processor.image_processor.crop_size = {"height": side, "width": side}
    processor.save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
