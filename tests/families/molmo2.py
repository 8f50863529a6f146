"""Molmo 2: crops of 5 x 5 patches that overlap by three, pooled 2 x 2 to a token, or frames of 6 x 6, pooled 3 x 3.

A token may be of several crops, or, at the edge, of less than four patches. The model of pictures has the decoder that
is Qwen3's and that of videos OLMo's, which normalises behind attention, and heads over one another, and of whose layers
some alone have their positions scaled.
"""

import torch
import transformers
from torch.nn.functional import pad

from .base import BREAK, DECODER, ENCODER, IMAGE, NUM_LAYERS, SPREAD, TinyFamily, of_kind

PATCH, MARGINS = 4, (1, 2)
LOW, START, END, FRAME, FRAME_END = 57, 59, 58, 56, 55


def patches(pictures):
    """(pictures, 3, height, width) -> (pictures, patches, values), channels last, as the processor does it."""
    count, _, height, width = pictures.shape
    pictures = pictures.reshape(count, 3, height // PATCH, PATCH, width // PATCH, PATCH)
    return pictures.permute(0, 2, 4, 3, 5, 1).flatten(1, 2).flatten(2)


def pooled(numbers, side):
    """Numbers of patches, row by row, -> those of each token, padded by -1 in the right and lowest ones."""
    rows, columns = (-(-length // side) for length in numbers.shape)
    numbers = pad(numbers, (0, columns * side - numbers.shape[1], 0, rows * side - numbers.shape[0]), value=-1)
    return numbers.view(rows, side, columns, side).transpose(1, 2).reshape(rows * columns, -1), (rows, columns)


class Molmo2(TinyFamily):
    """A picture is a thumbnail and one crop, or 2 x 2."""

    name = "molmo2"
    sizes = 2
    side, pooling = 5, 2
    image_sizes = ((20, 20), (28, 28))
    crops = (1, 2)
    tiles = (2, 5)
    shrunk_sizes = (1,)
    text = {"qk_norm_type": "qwen3"}

    def build(self, attention):
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        pixels = [self.side * PATCH] * 2
        config = transformers.Molmo2Config(
            vision_config=transformers.Molmo2VisionConfig(**ENCODER | heads, image_size=pixels, patch_size=PATCH),
            adapter_config=transformers.Molmo2AdapterConfig(
                **heads,
                vision_feature_layer=[1, 0],
                hidden_size=32,
                intermediate_size=48,
                text_hidden_size=32,
                initializer_range=SPREAD,
            ),
            text_config=transformers.Molmo2TextConfig(**DECODER, **self.text, additional_vocab_size=0),
            image_patch_id=IMAGE,
            image_start_token_id=START,
            image_end_token_id=END,
            low_res_image_start_token_id=LOW,
            frame_start_token_id=FRAME,
            frame_end_token_id=FRAME_END,
            initializer_range=SPREAD,
        )
        return transformers.Molmo2ForConditionalGeneration._from_config(config, attn_implementation=attention)

    def shape(self, kind, size, alone):
        return self.tiles[size], self.side * PATCH, self.side * PATCH

    def grids(self, visual):
        """Of each grid the patches of its tokens, and its rows and columns."""
        across, side = self.crops[visual.size], self.side
        whole = torch.arange((1 + across**2) * side**2)
        crops = whole[side**2 :].view(across, across, side, side)
        rows = [torch.cat([crop[:, self.own(n, across)] for n, crop in enumerate(row)], 1) for row in crops]
        rows = [row[self.own(n, across)] for n, row in enumerate(rows)]
        return [pooled(whole[: side**2].view(side, side), self.pooling), pooled(torch.cat(rows), self.pooling)]

    def own(self, number, count):
        """Rows or columns of patches of one of the crops that follow each other, which show no other."""
        first, last = MARGINS
        return slice(first if number else 0, self.side - last if number < count - 1 else self.side)

    def tokens(self, visual):
        shapes = [shape for _, shape in self.grids(visual)]
        starts = [FRAME] * len(shapes) if visual.kind == "video" else [LOW, START]
        row_end, end = ([], FRAME_END) if visual.kind == "video" else ([BREAK], END)
        return [
            token
            for start, (rows, columns) in zip(starts, shapes, strict=True)
            for token in (start, *([IMAGE] * columns + row_end) * rows, end)
        ]

    def inputs(self, rows):
        (kind,) = self.kinds
        visuals, pooling, sizes, first = of_kind(rows, kind), [], [], 0
        for visual in visuals:
            grids = self.grids(visual)
            numbers = torch.cat([numbers for numbers, _ in grids])
            pooling.append(torch.where(numbers < 0, -1, numbers + first))
            sizes.append([length for _, shape in grids for length in shape])
            first += len(visual.pixels) * self.side**2
        pixels = patches(torch.cat([visual.pixels for visual in visuals]))
        return self.named(pixels, torch.cat(pooling), torch.tensor(sizes))

    def named(self, pixels, pooling, sizes):
        return {"pixel_values": pixels, "image_token_pooling": pooling, "image_grids": sizes}

    def token_kinds(self, input_ids):
        shown = torch.tensor([IMAGE, BREAK, LOW, START, END, FRAME, FRAME_END])
        return {"mm_token_type_ids": torch.isin(input_ids, shown).long()}


class Molmo2Video(Molmo2):
    name = "molmo2 with videos"
    kinds = ("video",)
    sizes, shrunk_sizes = 1, ()
    side, pooling = 6, 3
    tiles = (3,)
    text = {
        "qk_norm_type": "olmo",
        "norm_after": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        "rope_scaling_layers": list(range(1, NUM_LAYERS, 2)),
    }

    def grids(self, visual):
        frames = torch.arange(len(visual.pixels) * self.side**2).view(-1, self.side, self.side)
        return [pooled(frame, self.pooling) for frame in frames]

    def named(self, pixels, pooling, sizes):
        grids = torch.stack([torch.full((len(sizes),), sizes.shape[1] // 2), *sizes[:, :2].unbind(1)], 1)
        return {"pixel_values_videos": pixels, "video_token_pooling": pooling, "video_grids": grids}


MISSING = () if hasattr(transformers, "Molmo2Config") else (Molmo2.name,)

if not MISSING:
    MOLMO2, MOLMO2_VIDEO = Molmo2(), Molmo2Video()
