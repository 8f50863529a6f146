"""Mistral 3: pictures of 6 x 8 and 8 x 6 patches, merged to 3 x 4 and 4 x 3 tokens."""

from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

from .base import BREAK, DECODER, ENCODER, IMAGE, TinyFamily, sized


class Mistral3(TinyFamily):
    name = "mistral3"
    sizes = 2

    def build(self, attention):
        config = Mistral3Config(
            vision_config=PixtralVisionConfig(**ENCODER, image_size=32, patch_size=4),
            text_config=MistralConfig(**DECODER, sliding_window=None),
            image_token_id=IMAGE,
            spatial_merge_size=2,
        )
        return Mistral3ForConditionalGeneration._from_config(config, attn_implementation=attention)

    def shape(self, kind, size, alone):
        return 1, *((24, 32), (32, 24))[size]

    def tokens(self, visual):
        rows, columns = ((3, 4), (4, 3))[visual.size]
        return ([IMAGE] * columns + [BREAK]) * rows

    def inputs(self, rows):
        return sized(rows)


MISTRAL3 = Mistral3()
