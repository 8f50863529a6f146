"""MiniCPM-V 4.6 and 4.7: patches of 4 x 4 pixels, 4 x 4 of which become a token, of pictures, frames, and slices.

The layers attend before which methods look ahead, but for the first; the others fold tokens into a state.
"""

from typing import ClassVar

import torch
import transformers
from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration, Qwen3_5TextConfig
from transformers.models.minicpmv4_6 import modeling_minicpmv4_6

from vitcop.models import Size

from .base import ENCODER, IMAGE, VIDEO, TinyFamily, of_kind
from .qwen35 import KINDS, TEXT, remembering

PATCH = 4
SLICES, SCALE = 2, 40
PARTS = ("Config", "ForConditionalGeneration")
MARKERS = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
WHOLE, SLICE, NUMBER, BREAK = (59, 58), (57, 56), (55, 3, 54), 53


def patches(picture):
    """(3, height, width) -> (3, 4, 4 x patches), patch behind patch, as the processor does it."""
    rows, columns = (pixels // PATCH for pixels in picture.shape[1:])
    return picture.reshape(3, rows, PATCH, columns, PATCH).transpose(1, 2).reshape(3, PATCH, -1)


class MiniCPMV(TinyFamily):
    """A picture of 2 x 3 tokens; and one of 4 x 2, behind which stand two slices of 2 x 2 each, as in all frames.

    Patches are merged behind the second of three layers of the encoder.
    """

    name = "minicpmv4_6"
    kinds = ("image", "video")
    sizes = 2
    kinds_of_layers = "saaaasaa"
    refuses = frozenset({"hawk"})
    mode, merged, last_unmerged = "16x", 4, 1
    config, architecture = MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration
    markers: ClassVar = {}

    def build(self, attention):
        config = self.config(
            vision_config=ENCODER | {"image_size": 4 * PATCH, "patch_size": PATCH},
            text_config=Qwen3_5TextConfig(**TEXT, layer_types=[KINDS[kind] for kind in self.kinds_of_layers]),
            insert_layer_id=self.last_unmerged,
            downsample_mode=self.mode,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            **self.markers,
        )
        return remembering(self.architecture._from_config(config, attn_implementation=attention))

    def shape(self, kind, size, alone):
        if kind == "video":
            return 2 * (1 + SLICES), 64, 32
        return (1, 32, 48) if size == 0 else (1 + SLICES, 64, 32)

    def tokens(self, visual):
        placeholder = VIDEO if visual.kind == "video" else IMAGE
        tokens, side = list(NUMBER), self.merged * PATCH
        for number, picture in enumerate(self.pictures(visual)):
            place = number % (1 + SLICES)
            tokens += [BREAK] * (place > 1)
            start, end = SLICE if place else WHOLE
            tokens += [start, *[placeholder] * (picture.shape[1] // side * (picture.shape[2] // side)), end]
        return tokens

    def inputs(self, rows):
        inputs = {}
        for kind, suffix in (("image", ""), ("video", "_videos")):
            pictures = [picture for visual in of_kind(rows, kind) for picture in self.pictures(visual)]
            if pictures:
                inputs[f"pixel_values{suffix}"] = torch.cat([patches(picture) for picture in pictures], -1)[None]
                sizes = [picture.shape[1:] for picture in pictures]
                inputs[f"target_sizes{suffix}"] = torch.tensor(sizes, dtype=torch.int32) // PATCH
        return inputs

    @staticmethod
    def given(visual):
        """A size of which a processor with this scale makes what is here."""
        video = visual.kind == "video"
        return Size(*((96, 48) if video else ((32, 48), (96, 48))[visual.size]), 2 if video else None)

    @staticmethod
    def pictures(visual):
        """What the encoder gets: slices have half as many rows as the whole."""
        wholes = range(0, len(visual.pixels), 1 + SLICES)
        return [picture if number in wholes else picture[:, ::2] for number, picture in enumerate(visual.pixels)]


class Unmerged(MiniCPMV):
    """Patches are merged by the projector alone."""

    mode, merged = "4x", 2


class MiniCPMV47(MiniCPMV):
    """Positions have three axes, videos have no number, and patches are merged behind the first layer."""

    name = "minicpmv4_7"
    last_unmerged = 0
    config, architecture = (getattr(transformers, f"MiniCPMV4_7{part}", None) for part in PARTS)
    markers: ClassVar = dict(zip(MARKERS, (*WHOLE, *SLICE, BREAK), strict=True))

    def tokens(self, visual):
        return super().tokens(visual)[len(NUMBER) if visual.kind == "video" else 0 :]

    def token_kinds(self, input_ids):
        return {"mm_token_type_ids": (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()}


OLD = hasattr(modeling_minicpmv4_6, "get_vision_merged_shape")
"""Whether the encoder of 4.6 takes all pictures for as large as the first one in this transformers, which raises."""
MISSING = ((MiniCPMV.name,) if OLD else ()) + (() if MiniCPMV47.config else (MiniCPMV47.name,))

if MiniCPMV.name not in MISSING:
    MINICPMV = MiniCPMV()
if MiniCPMV47.name not in MISSING:
    MINICPMV47 = MiniCPMV47()
