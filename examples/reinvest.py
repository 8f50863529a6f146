"""A video twice, at the same cost to the decoder: some frames and all their tokens, or twice as many and half."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import vitcop
from vitcop.inputs.chat import Chat
from vitcop.inputs.video import read_clip


def main() -> None:
    """Answer in both ways, and say what the decoder read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", type=Path)
    parser.add_argument("question")
    parser.add_argument("--frames", type=int, default=8, help="without pruning; default: 8")
    parser.add_argument("--model", required=True, help="that takes videos, such as Qwen/Qwen2.5-VL-3B-Instruct")
    given = parser.parse_args()

    device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", "float32")
    model = AutoModelForImageTextToText.from_pretrained(given.model, dtype=dtype, trust_remote_code=False).to(device)
    processor = AutoProcessor.from_pretrained(given.model, trust_remote_code=False)
    for times in (1, 2):
        clip = read_clip(given.video, times * given.frames)
        chat = Chat.about(clip, given.question, model, processor)
        # At retention 1 nothing is dropped, and the report says how many tokens there are.
        with vitcop.prune(model, vitcop.ViTCoP(retention=1 / times)) as pruning:
            answer = chat.answer()
        alive = pruning.report.all_visual_tokens
        tokens = f"{sum(alive) / len(alive):.0f} of {sum(pruning.report.image_lengths)}"
        print(f"{len(clip.frames)} frames, {tokens} visual tokens in a layer: {answer}")


if __name__ == "__main__":
    main()
