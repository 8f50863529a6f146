"""VideoLLaMA 3: patches of 4 x 4 pixels, each a token in pictures, and merged by two in videos."""

import torch
from transformers import (
    Qwen2Config,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
    VideoLlama3VisionConfig,
)

from .base import DECODER, ENCODER, IMAGE, VIDEO, TinyFamily, of_kind

PATCH, MERGE = 4, {"image": 1, "video": 2}


def patches(frames, merge):
    """(frames, 3, height, width) -> one row per patch, those of a token one after another, as the processor does it."""
    count, _, height, width = frames.shape
    side = merge * PATCH
    frames = frames.reshape(count, 3, height // side, merge, PATCH, width // side, merge, PATCH)
    return frames.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(count * (height // PATCH) * (width // PATCH), -1)


class VideoLlama3(TinyFamily):
    name = "video_llama_3"
    kinds = ("image", "video")
    sizes = 2
    image_sizes = ((12, 20), (20, 16))

    def build(self, attention):
        config = VideoLlama3Config(
            vision_config=VideoLlama3VisionConfig(**ENCODER, patch_size=PATCH),
            text_config=Qwen2Config(**DECODER),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        )
        return VideoLlama3ForConditionalGeneration._from_config(config, attn_implementation=attention)

    def shape(self, kind, size, alone):
        return (2, 24, 24) if kind == "video" else (1, *self.image_sizes[size])

    def tokens(self, visual):
        side = PATCH * MERGE[visual.kind]
        per_grid = visual.pixels.shape[2] // side * (visual.pixels.shape[3] // side)
        return [30, *[VIDEO] * per_grid, 31, *[VIDEO] * per_grid] if visual.kind == "video" else [IMAGE] * per_grid

    def inputs(self, rows):
        inputs = {}
        for kind, suffix in (("image", ""), ("video", "_videos")):
            frames, merge = [visual.pixels for visual in of_kind(rows, kind)], MERGE[kind]
            if not frames:
                continue
            sizes = [(len(f), f.shape[2] // PATCH, f.shape[3] // PATCH) for f in frames]
            inputs[f"pixel_values{suffix}"] = torch.cat([patches(f, merge) for f in frames])
            inputs[f"{kind}_grid_thw"] = torch.tensor(sizes)
            inputs[f"{kind}_merge_sizes"] = torch.full((len(frames),), merge)
        return inputs


VIDEO_LLAMA_3 = VideoLlama3()
