"""A family of one's own: a LLaVA that pools each 2 x 2 patches to one visual token, which vitcop does not know."""

from __future__ import annotations

import argparse
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

import vitcop
from vitcop.builtin import EXAMPLE_PICTURE, MODEL_PATH, example_question
from vitcop.inputs.chat import Chat
from vitcop.inputs.pictures import read_picture
from vitcop.models import Description, Encoder, Geometry, Grids, Patches, Size, TowerFamily, Watched, merged_grids

SIDE = 2


class PoolingProjector(LlavaMultiModalProjector):
    """LLaVA's projector, behind a pooling."""

    def forward(self, image_features: Tensor) -> Tensor:
        """Features of all patches of each picture, row by row, to those of its visual tokens."""
        side = isqrt(image_features.shape[1])
        rows = image_features.transpose(1, 2).unflatten(2, (side, side))
        return super().forward(avg_pool2d(rows, SIDE).flatten(2).transpose(1, 2))


class PoolingConfig(LlavaConfig):
    """As LLaVA's."""

    model_type = "pooling_llava"


class PoolingLlava(LlavaForConditionalGeneration):
    """Has the weights of a LLaVA as they are."""

    config_class = PoolingConfig

    def __init__(self, config: PoolingConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = PoolingProjector(config)

    @staticmethod
    def of(llava: LlavaForConditionalGeneration) -> PoolingLlava:
        """With the weights of this one."""
        settings = {name: value for name, value in llava.config.to_dict().items() if name != "model_type"}
        model = PoolingLlava(PoolingConfig(**settings)).to(llava.dtype).eval()
        model.load_state_dict(llava.state_dict())
        model.generation_config = llava.generation_config
        return model


class PoolingFamily(TowerFamily):
    """Where things are in it: all that vitcop has to be told."""

    model_types = ("pooling_llava",)
    encoders = {"clip_vision_model": Encoder("encoder.layers", "self_attn", has_cls=True)}  # noqa: RUF012
    described = Description(saliency="attention of [CLS], mean over the patches of a token")

    def grids(self, modality: str, call: dict) -> tuple[Grids, ...]:
        """Where its visual tokens stand, known before the encoder runs."""
        return merged_grids(self._pictures(call), SIDE)

    def shown(self, modality: str, call: dict, watched: Watched) -> Patches:
        """What the encoder shows of each visual token: the mean over its patches."""
        pictures = self._pictures(call)
        return self.patches(watched, len(pictures)).merged(pictures, SIDE)

    def geometry(self, size: Size) -> Geometry:
        """What `vitcop plan` has to know."""
        return Geometry.of([self.square], side=SIDE, cls=True)

    def _pictures(self, call: dict) -> list[list[tuple[int, int]]]:
        return [[self.square]] * len(call["pixel_values"])


vitcop.FAMILIES["pooling_llava"] = PoolingFamily


def main() -> None:
    """Answer, dense and pruned."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default=example_question())
    parser.add_argument("--picture", type=Path, default=EXAMPLE_PICTURE)
    parser.add_argument("--model", default=str(MODEL_PATH), help="any LLaVA with CLIP; default: the model in the box")
    given = parser.parse_args()

    device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", "float32")
    model = PoolingLlava.of(LlavaForConditionalGeneration.from_pretrained(given.model, dtype=dtype)).to(device)
    processor = AutoProcessor.from_pretrained(given.model, trust_remote_code=False)
    processor.patch_size *= SIDE  # so that it writes as many placeholders as the model makes tokens
    chat = Chat.about((read_picture(given.picture),), given.question, model, processor)
    print("dense:", chat.answer())
    with vitcop.prune(model, vitcop.ViTCoP(retention=1 / 3)) as pruning:
        print("pruned:", chat.answer())
    print(pruning.report)


if __name__ == "__main__":
    main()
