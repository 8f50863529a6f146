"""Video-LLaVA: 4 x 4 patches, and a [CLS] token before those of each frame."""

import inspect

import torch
from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

from .base import DECODER, ENCODER, IMAGE, VIDEO, TinyFamily, of_kind

FRAMES = 2


class VideoLlava(TinyFamily):
    name = "video_llava"
    has_cls = True
    kinds = ("image", "video")

    def build(self, attention):
        config = VideoLlavaConfig(
            vision_config=CLIPVisionConfig(**ENCODER, image_size=56, patch_size=14),
            text_config=LlamaConfig(**DECODER),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        )
        return VideoLlavaForConditionalGeneration._from_config(config, attn_implementation=attention)

    def shape(self, kind, size, alone):
        return FRAMES if kind == "video" else 1, 56, 56

    def tokens(self, visual):
        return [VIDEO] * 17 * FRAMES if visual.kind == "video" else [IMAGE] * 16

    def inputs(self, rows):
        images, videos = of_kind(rows, "image"), of_kind(rows, "video")
        inputs = {}
        if images:
            # By its old name, before transformers 5.21.
            parameters = inspect.signature(VideoLlavaForConditionalGeneration.forward).parameters
            name = "pixel_values" if "pixel_values" in parameters else "pixel_values_images"
            inputs[name] = torch.cat([visual.pixels for visual in images])
        if videos:
            inputs["pixel_values_videos"] = torch.stack([visual.pixels for visual in videos])
        return inputs


VIDEO_LLAVA = VideoLlava()
