"""The families that cut pictures into tiles and unpad them: LLaVA-NeXT, LLaVA-NeXT-Video, LLaVA-OneVision."""

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from .base import DECODER, ENCODER, IMAGE, VIDEO, TinyFamily, of_kind, padded

FRAMES = 3


class LlavaNext(TinyFamily):
    """Tiles of 4 x 4 patches. Cutting padding away leaves 2 rows of 1 x 2 tiles, and 6 columns of 2 x 2."""

    name = "llava_next"
    has_cls = True
    sizes = 2
    image_sizes = ((40, 112), (112, 80))
    tiles = (3, 5)
    placeholders = (16 + 2 * (8 + 1), 16 + 8 * (6 + 1))
    settings = {"image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]], "image_token_id": IMAGE}

    def build(self, attention):
        vision = CLIPVisionConfig(**ENCODER, image_size=56, patch_size=14)
        config = LlavaNextConfig(vision_config=vision, text_config=LlamaConfig(**DECODER), **self.settings)
        return LlavaNextForConditionalGeneration._from_config(config, attn_implementation=attention)

    def shape(self, kind, size, alone):
        return FRAMES if kind == "video" else self.tiles[size], 56, 56

    def tokens(self, visual):
        return [IMAGE] * self.placeholders[visual.size]

    def inputs(self, rows):
        images, videos = of_kind(rows, "image"), of_kind(rows, "video")
        inputs = {}
        if images:
            inputs["pixel_values"] = padded([visual.pixels for visual in images])
            inputs["image_sizes"] = torch.tensor([self.image_sizes[visual.size] for visual in images])
        if videos:
            inputs["pixel_values_videos"] = torch.stack([visual.pixels for visual in videos])
        return inputs


class LlavaNextVideo(LlavaNext):
    """Frames of 4 x 4 patches, pooled to 2 x 2."""

    name = "llava_next_video"
    kinds = ("image", "video")

    def build(self, attention):
        vision = CLIPVisionConfig(**ENCODER, image_size=56, patch_size=14)
        config = LlavaNextVideoConfig(
            vision_config=vision,
            text_config=LlamaConfig(**DECODER),
            video_token_id=VIDEO,
            spatial_pool_mode="average",
            spatial_pool_stride=2,
            **self.settings,
        )
        return LlavaNextVideoForConditionalGeneration._from_config(config, attn_implementation=attention)

    def tokens(self, visual):
        return [VIDEO] * FRAMES * 4 if visual.kind == "video" else super().tokens(visual)


class LlavaOnevision(LlavaNext):
    """As above, but 8 x 6 tokens are shrunk to 6 x 4, and several pictures in a prompt are thumbnails only."""

    name = "llava_onevision"
    has_cls = False
    shrunk_sizes = (1,)
    kinds = ("image", "video")
    placeholders = (16 + 2 * (8 + 1), 16 + 6 * (4 + 1))

    def build(self, attention):
        vision = SiglipVisionConfig(**ENCODER, image_size=56, patch_size=14, vision_use_head=False)
        config = LlavaOnevisionConfig(
            vision_config=vision,
            text_config=Qwen2Config(**DECODER),
            video_token_id=VIDEO,
            vision_aspect_ratio="anyres_max_2",
            vision_feature_layer=-1,
            **self.settings,
        )
        return LlavaOnevisionForConditionalGeneration._from_config(config, attn_implementation=attention)

    def shape(self, kind, size, alone):
        return super().shape(kind, size, alone) if alone or kind == "video" else (1, 56, 56)

    def tokens(self, visual):
        if visual.kind == "video":
            return [VIDEO] * (FRAMES * 4 + 1)
        return super().tokens(visual) if visual.alone else [IMAGE] * 17

    def inputs(self, rows):
        counts = [len(of_kind([row], "image")) for row in rows]
        return super().inputs(rows) | ({"batch_num_images": torch.tensor(counts)} if any(counts) else {})


NEXT, NEXT_VIDEO, ONEVISION = LlavaNext(), LlavaNextVideo(), LlavaOnevision()
