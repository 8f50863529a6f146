"""Processors of transformers that write for the tiny models."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from families import FAMILIES, MISSING
from families.base import BREAK, IMAGE, PAD, VIDEO
from families.molmo2 import MARGINS
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

START, END = 59, 58
WORDS = ("look", "at", "and", "what")
SIZES = {"wide": (112, 40), "tall": (80, 112), "clip": (64, 48), "film": (64, 48)}
VIDEOS, FRAMES = ("clip", "film"), 4
RETENTION = 0.3
Paint = tuple[int, int, int]
"""Frame, and which half of its rows and of its columns."""


@dataclass(frozen=True)
class Written:
    """A processor that writes for the tiny model of a family, with the token ids of that model.

    Attributes:
        processor: its class, and its settings.
        images, videos, sounds: class and settings of the processors inside it.
        wide, tall: visual tokens of the two pictures.
        tokens: special tokens, and their ids.
        names: what it calls those that it asks its tokenizer for.
        asked: what its call is told besides, where it overrules the settings of those inside it.
        image, video: what stands in a prompt for one.
        together: visual tokens of a picture that is not alone in its prompt, if it is then another number.
        frames: visual tokens of each image that a video becomes.
        mixes: whether a prompt may hold pictures and videos.
        films: most videos of a prompt.
        thumbnail: number of the grid that shows a whole picture.
        cut: grids that a frame becomes, of which the first shows all of it.
        needs: what transformers does not build it without.
        family: the tiny one, if it has another name.
    """

    processor: tuple[str, dict[str, Any]]
    images: tuple[str, dict[str, Any]]
    wide: int
    tall: int
    videos: tuple[str, dict[str, Any]] | None = None
    sounds: tuple[str, dict[str, Any]] | None = None
    tokens: dict[str, int] = field(default_factory=lambda: {"<image>": IMAGE})
    names: dict[str, str] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    image: str = "<image>"
    video: str = "<video>"
    together: int | None = None
    frames: tuple[int, ...] = ()
    mixes: bool = True
    films: int = 2
    thumbnail: int = 0
    cut: int = 1
    needs: tuple[str, ...] = ("torchvision",)
    family: str | None = None

    def skip_without_its_needs(self) -> None:
        for package in self.needs:
            self._skip_without(package)
        parts = [self.processor, self.images, *([self.videos] if self.videos else [])]
        # Of a class that this release has not without a package, transformers shows a dummy that names it.
        named = [package for name, _ in parts for package in getattr(getattr(transformers, name), "_backends", ())]
        for package in dict.fromkeys(named):
            self._skip_without(package)

    def _skip_without(self, package: str) -> None:
        if not getattr(transformers.utils, f"is_{package}_available")():
            pytest.skip(f"needs {package}: transformers has no {self.processor[0]} without it")

    def build(self) -> transformers.ProcessorMixin:
        parts = {"image_processor": self.images, "video_processor": self.videos, "feature_extractor": self.sounds}
        given = {part: of for part, of in parts.items() if of is not None}
        built = {part: getattr(transformers, name)(**settings) for part, (name, settings) in given.items()}
        name, settings = self.processor
        return getattr(transformers, name)(**built, tokenizer=self.tokenizer(), **settings)

    def tokenizer(self) -> transformers.PreTrainedTokenizerFast:
        special = {"<pad>": PAD, "<s>": 1, "<unk>": 2} | self.tokens
        vocabulary = special | {word: 3 + number for number, word in enumerate(WORDS)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.add_special_tokens(list(special))
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            padding_side="left",
            model_input_names=["input_ids", "attention_mask"],
            extra_special_tokens=self.names,
            pad_token="<pad>",
            unk_token="<unk>",
        )

    def inputs(self, rows: list[tuple[str, ...]], paint: Paint | None = None) -> dict[str, torch.Tensor]:
        """What the processor makes of prompts with these pictures and videos."""
        pictures = [[Image.fromarray(pixels(n, paint)[0]) for n in row if n not in VIDEOS] for row in rows]
        videos = [pixels(name, paint) for row in rows for name in row if name in VIDEOS]
        text = [f"look at {' and '.join(self.video if n in VIDEOS else self.image for n in row)} what" for row in rows]
        visuals = ({"images": pictures} if any(pictures) else {}) | ({"videos": videos} if videos else {})
        made = dict(self.build()(text=text, **visuals, **self.asked, padding=True, return_tensors="pt"))
        made.pop("labels", None)  # which PaliGemma's makes of no answer as well
        # Llama 4's makes pixels of bfloat16, which its model takes if it is of that.
        return {name: part.float() if part.is_floating_point() else part for name, part in made.items()}

    def expected(self, rows: list[tuple[str, ...]]) -> list[tuple[str, int, int]]:
        """Modality, row and visual tokens of each image in the report."""
        images = []
        for number, row in enumerate(rows):
            alone = sum(name not in VIDEOS for name in row) == 1
            for name in row:
                if name in VIDEOS:
                    modality = "video" if len(self.frames) == 1 else "image"
                    images += [(modality, number, tokens) for tokens in self.frames]
                else:
                    tokens = getattr(self, name)
                    images.append(("image", number, tokens if alone else self.together or tokens))
        return sorted(images, key=lambda image: image[0])


def pixels(name: str, paint: Paint | None) -> np.ndarray:
    """The frames of a video, or the one of a picture, with a part of one of them painted over: (frames, y, x, 3)."""
    width, height = SIZES[name]
    generator = np.random.default_rng(list(SIZES).index(name))
    frames = generator.integers(0, 256, (FRAMES if name in VIDEOS else 1, height, width, 3), dtype=np.uint8)
    if paint is not None:
        frame, *part = paint
        rows, columns = (
            slice(which * size // 2, (which + 1) * size // 2) for which, size in zip(part, (height, width), strict=True)
        )
        frames[frame, rows, columns] //= 4
    return frames


def square(side: int, *, crop: bool = False) -> dict[str, Any]:
    """Settings for pictures that are resized to a square, or cut to one."""
    size = {"height": side, "width": side}
    return {"size": {"shortest_edge": side}, "crop_size": size} if crop else {"size": size}


CLIP = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
NEXT = {"image_grid_pinpoints": FAMILIES["llava_next"].settings["image_grid_pinpoints"]}
BOTH = {"<image>": IMAGE, "<video>": VIDEO}
PIXTRAL = {
    "images": ("PixtralImageProcessor", {"size": {"longest_edge": 32}}),
    "tokens": {"[IMG]": IMAGE, "[IMG_BREAK]": BREAK, "[IMG_END]": 60},
    "image": "[IMG]",
}
GRID = list(product(range(1, 5), range(1, 5)))
TILES = {f"<row_{row}_col_{column}>": 50 + 2 * row + column for row in (1, 2) for column in (1, 2)}
IDEFICS = {"<fake_token_around_image>": START, "<global-img>": 57, "<end_of_utterance>": 60} | TILES | BOTH
QWEN = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "size": {"shortest_edge": 64, "longest_edge": 1280}}
QWEN2 = {
    "images": ("Qwen2VLImageProcessor", QWEN),
    "videos": ("Qwen2VLVideoProcessor", QWEN),
    "tokens": {"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO, "<|vision_start|>": START, "<|vision_end|>": END},
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
    "wide": 2 * 7,
    "tall": 5 * 3,
    "frames": (FRAMES // 2 * 3 * 5,),
}
# It counts the pixels of all frames.
QWEN3 = QWEN2 | {"videos": ("Qwen3VLVideoProcessor", QWEN | {"size": {"shortest_edge": 64, "longest_edge": 5120}})}
EARS = {"feature_extractor": transformers.WhisperFeatureExtractor()}
OMNI = QWEN2 | {
    "tokens": {
        "<|IMAGE|>": IMAGE,
        "<|VIDEO|>": VIDEO,
        "<|AUDIO|>": 60,
        "<|vision_bos|>": START,
        "<|vision_eos|>": END,
        "<|audio_bos|>": 57,
        "<|audio_eos|>": 56,
    },
    "names": {
        "image_token": "<|IMAGE|>",
        "video_token": "<|VIDEO|>",
        "audio_token": "<|AUDIO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    },
    "image": "<|vision_bos|><|IMAGE|><|vision_eos|>",
    "video": "<|vision_bos|><|VIDEO|><|vision_eos|>",
    "asked": {"videos_kwargs": {"size": QWEN["size"]}},
}
# So do both of GLM's, which take a picture for two frames.
GLM = {
    "tokens": {
        "<|image|>": IMAGE,
        "<|video|>": VIDEO,
        "<|begin_of_image|>": START,
        "<|end_of_image|>": END,
        "<|begin_of_video|>": 57,
        "<|end_of_video|>": 56,
    },
    "image": "<|begin_of_image|><|image|><|end_of_image|>",
    "video": "<|begin_of_video|><|video|><|end_of_video|>",
    "wide": 2 * 7,
    "tall": 5 * 3,
    "frames": (FRAMES // 2 * 3 * 5,),
    "mixes": False,
}
GLM_IMAGES = QWEN | {"size": {"shortest_edge": 64, "longest_edge": 2560}}
GLM_VIDEOS = QWEN | {"size": {"shortest_edge": 64, "longest_edge": 5120}, "do_sample_frames": False}
LFM2_VL = {"tile_size": 32, "min_tiles": 2, "max_tiles": 4, "min_image_tokens": 4, "max_image_tokens": 16}
GEMMA4 = {"patch_size": 4, "pooling_kernel_size": 3, "max_soft_tokens": 70}
MINICPMV = {"patch_size": 4, "scale_resolution": 52}
PROCESSORS = {
    "llava": Written(
        ("LlavaProcessor", {"patch_size": 14} | CLIP),
        ("CLIPImageProcessor", square(84, crop=True)),
        wide=36,
        tall=36,
        needs=(),
    ),
    "llava with registers": Written(
        ("LlavaProcessor", {"patch_size": 14} | CLIP | {"num_additional_image_tokens": 1 + 4}),
        ("BitImageProcessor", square(112, crop=True)),
        wide=64,
        tall=64,
        needs=(),
    ),
    "llava with pixtral": Written(("PixtralProcessor", {"patch_size": 4}), **PIXTRAL, wide=24, tall=48),
    "mistral3": Written(("PixtralProcessor", {"patch_size": 4, "spatial_merge_size": 2}), **PIXTRAL, wide=8, tall=12),
    "gemma3": Written(
        ("Gemma3Processor", {"image_seq_length": 16}),
        ("Gemma3ImageProcessor", square(56)),
        tokens={"<image_soft_token>": IMAGE, "<start_of_image>": START, "<end_of_image>": END},
        names={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        image="<start_of_image>",
        wide=16,
        tall=16,
        needs=(),
    ),
    "paligemma": Written(
        ("PaliGemmaProcessor", {}),
        ("SiglipImageProcessor", square(24) | {"image_seq_length": 16}),
        names={"image_token": "<image>", "bos_token": "<s>"},
        wide=16,
        tall=16,
        needs=(),
    ),
    # It makes all pictures as large as 70 tokens allow, and writes the time in front of each frame.
    "gemma4": Written(
        ("Gemma4Processor", {}),
        ("Gemma4ImageProcessor", GEMMA4),
        videos=("Gemma4VideoProcessor", GEMMA4 | {"do_sample_frames": False}),
        sounds=("Gemma4AudioFeatureExtractor", {}),
        tokens={
            "<|image|>": IMAGE,
            "<|video|>": VIDEO,
            "<|audio|>": 60,
            "<boi>": START,
            "<eoi>": END,
            "<boa>": 57,
            "<eoa>": 56,
        },
        names={
            "image_token": "<|image|>",
            "boi_token": "<boi>",
            "eoi_token": "<eoi>",
            "audio_token": "<|audio|>",
            "boa_token": "<boa>",
            "eoa_token": "<eoa>",
        },
        image="<|image|>",
        video="<|video|>",
        wide=14 * 5,
        tall=9 * 7,
        frames=(FRAMES * 9 * 7,),
    ),
    "llava_next": Written(
        ("LlavaNextProcessor", {"patch_size": 14} | CLIP),
        ("LlavaNextImageProcessor", NEXT | square(56, crop=True)),
        wide=16 + 2 * 8,
        tall=16 + 8 * 6,
        needs=(),
    ),
    "llava_next_video": Written(
        ("LlavaNextVideoProcessor", {"patch_size": 14} | CLIP),
        ("LlavaNextImageProcessor", NEXT | square(56, crop=True)),
        videos=("LlavaNextVideoVideoProcessor", square(56, crop=True)),
        tokens=BOTH,
        wide=16 + 2 * 8,
        tall=16 + 8 * 6,
        frames=(FRAMES * 4,),
    ),
    "llava_onevision": Written(
        (
            "LlavaOnevisionProcessor",
            {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_2"},
        ),
        ("LlavaOnevisionImageProcessor", NEXT | square(56)),
        videos=("LlavaOnevisionVideoProcessor", square(56)),
        tokens=BOTH,
        wide=16 + 2 * 8,
        tall=16 + 6 * 4,
        together=16,
        frames=(FRAMES * 4,),
    ),
    "idefics3": Written(
        ("Idefics3Processor", {"image_seq_len": 9}),
        ("Idefics3ImageProcessor", {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 48}}),
        tokens=IDEFICS,
        wide=(2 + 1) * 9,
        tall=(4 + 1) * 9,
        thumbnail=-1,
        needs=(),
    ),
    "smolvlm": Written(
        ("SmolVLMProcessor", {"image_seq_len": 4}),
        ("SmolVLMImageProcessor", {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 48}}),
        videos=("SmolVLMVideoProcessor", {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 48}}),
        tokens=IDEFICS,
        wide=(2 + 1) * 4,
        tall=(4 + 1) * 4,
        frames=(4,) * FRAMES,
        mixes=False,
        thumbnail=-1,
        needs=("torchvision", "num2words"),
    ),
    "internvl": Written(
        ("InternVLProcessor", {"image_seq_length": 9}),
        ("GotOcr2ImageProcessor", {"max_patches": 4} | square(84)),
        videos=("InternVLVideoProcessor", square(84)),
        tokens={"<IMG_CONTEXT>": IMAGE, "<video>": VIDEO, "<img>": START, "</img>": END},
        names={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        image="<IMG_CONTEXT>",
        wide=(3 + 1) * 9,
        tall=(2 + 1) * 9,
        thumbnail=-1,
        frames=(9,) * FRAMES,
    ),
    "aya_vision": Written(
        ("AyaVisionProcessor", {"patch_size": 8, "img_size": 48, "downsample_factor": 2}),
        ("GotOcr2ImageProcessor", {"max_patches": 4} | square(48)),
        tokens={
            "<|IMG_PATCH|>": IMAGE,
            "<|START_OF_IMG|>": START,
            "<|END_OF_IMG|>": END,
            "TILE_GLOBAL": 57,
            **{f"TILE_{number}": 40 + number for number in range(1, 13)},
        },
        wide=(3 + 1) * 9,
        tall=(2 + 1) * 9,
        thumbnail=-1,
    ),
    "cohere2_vision": Written(
        ("Cohere2VisionProcessor", {}),
        ("Cohere2VisionImageProcessor", {"max_patches": 4, "patch_size": 3} | square(48)),
        tokens={"<|IMG_PATCH|>": IMAGE, "<|START_OF_IMG|>": START, "<|END_OF_IMG|>": END, "<|IMG_LINE_BREAK|>": 54},
        names={
            "image_token": "<|IMG_PATCH|>",
            "boi_token": "<|START_OF_IMG|>",
            "eoi_token": "<|END_OF_IMG|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
        },
        image="<|IMG_PATCH|>",
        wide=(3 + 1) * 9,
        tall=(4 + 1) * 9,
        thumbnail=-1,
    ),
    "llama4": Written(
        ("Llama4Processor", {}),
        ("Llama4ImageProcessor", {"max_patches": 4} | square(84)),
        tokens={
            "<|patch|>": IMAGE,
            "<|image_start|>": START,
            "<|image_end|>": END,
            "<|tile_x_separator|>": 57,
            "<|tile_y_separator|>": 56,
            "<|image|>": 55,
        },
        image="<|image|>",
        wide=(2 + 1) * 9,
        tall=(2 + 1) * 9,
        thumbnail=-1,
    ),
    "video_llava": Written(
        ("VideoLlavaProcessor", {"patch_size": 14} | CLIP),
        ("VideoLlavaImageProcessor", square(56, crop=True)),
        videos=("VideoLlavaVideoProcessor", square(56, crop=True)),
        tokens=BOTH,
        wide=16,
        tall=16,
        frames=(FRAMES * 16,),
    ),
    "qwen2_vl": Written(("Qwen2VLProcessor", {}), **QWEN2),
    "qwen2_5_vl": Written(("Qwen2_5_VLProcessor", {}), **QWEN2),
    "qwen3_vl": Written(("Qwen3VLProcessor", {}), **QWEN3),
    "qwen3_5": Written(("Qwen3VLProcessor", {}), **QWEN3),
    "qwen2_5_omni_thinker": Written(("Qwen2_5OmniProcessor", EARS), **OMNI),
    "qwen3_omni_moe_thinker": Written(("Qwen3OmniMoeProcessor", EARS), **OMNI),
    # It makes all pictures large enough to cut, and pads what comes of them.
    "lfm2_vl": Written(
        ("Lfm2VlProcessor", {}),
        ("Lfm2VlImageProcessor", LFM2_VL | {"encoder_patch_size": 4}),
        tokens={
            "<image>": IMAGE,
            "<|image_start|>": START,
            "<|image_end|>": END,
            "<|img_thumbnail|>": 57,
            **{f"<|img_row_{row}_col_{column}|>": 40 + 4 * row + column for row, column in GRID[:12]},
        },
        wide=3 * 16 + 2 * 6,
        tall=2 * 16 + 4 * 3,
        thumbnail=-1,
    ),
    "video_llama_3": Written(
        ("VideoLlama3Processor", {}),
        ("VideoLlama3ImageProcessor", {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 1280}}),
        videos=(
            "VideoLlama3VideoProcessor",
            {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 5120}, "use_token_compression": False},
        ),
        tokens={"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO},
        image="<|image_pad|>",
        video="<|video_pad|>",
        wide=5 * 14,
        tall=10 * 7,
        frames=(FRAMES * 3 * 5,),
    ),
    "minicpmv4_6": Written(
        ("MiniCPMV4_6Processor", {}),
        ("MiniCPMV4_6ImageProcessor", MINICPMV),
        videos=("MiniCPMV4_6VideoProcessor", MINICPMV | {"do_sample_frames": False}),
        tokens={
            "<|image_pad|>": IMAGE,
            "<|video_pad|>": VIDEO,
            "<image>": START,
            "</image>": END,
            "<slice>": 57,
            "</slice>": 56,
            "<image_id>": 55,
            "</image_id>": 54,
        },
        names={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "image_start_token": "<image>",
            "image_end_token": "</image>",
            "slice_start_token": "<slice>",
            "slice_end_token": "</slice>",
            "image_id_start_token": "<image_id>",
            "image_id_end_token": "</image_id>",
        },
        image="<|image_pad|>",
        video="<|video_pad|>",
        wide=2 * 5 + 3 * 9,
        tall=5 * 12,
        frames=(FRAMES * 3 * 12,),
        cut=3,
    ),
    "molmo2": Written(
        ("Molmo2Processor", {}),
        ("Molmo2ImageProcessor", square(20) | {"patch_size": 4, "overlap_margins": list(MARGINS)}),
        videos=(
            "Molmo2VideoProcessor",
            square(20) | {"patch_size": 4, "do_sample_frames": False, "do_rescale": True, "do_normalize": True},
        ),
        tokens={
            "<im_patch>": IMAGE,
            "<im_col>": BREAK,
            "<low_res_im_start>": 57,
            "<im_start>": START,
            "<im_end>": END,
            "<frame_start>": 56,
            "<frame_end>": 55,
            "<im_low>": 54,
            "<|image|>": 53,
            "<|video|>": 52,
        },
        names={"image_token": "<|image|>", "video_token": "<|video|>", "bos_token": "<s>"},
        image="<|image|>",
        video="<|video|>",
        wide=3 * 3 + 4 * 6,
        tall=3 * 3 + 5 * 4,
        frames=(FRAMES * 2 * 2,),
        mixes=False,
        films=1,
    ),
    "glm4v": Written(
        ("Glm4vProcessor", {}), ("Glm4vImageProcessor", GLM_IMAGES), videos=("Glm4vVideoProcessor", GLM_VIDEOS), **GLM
    ),
    "glm46v": Written(
        ("Glm46VProcessor", {}),
        ("Glm46VImageProcessor", GLM_IMAGES),
        videos=("Glm46VVideoProcessor", GLM_VIDEOS),
        **GLM,
    ),
}
PROCESSORS["minicpmv4_7"] = replace(PROCESSORS["minicpmv4_6"], processor=("MiniCPMV4_7Processor", {}))
PROCESSORS = {name: written for name, written in PROCESSORS.items() if name not in MISSING}
