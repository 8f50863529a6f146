"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: Qwen2.5-VL and Qwen3-VL that hear as well."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from ..errors import UnsupportedModelError
from .encoders import KEYS, QUERIES, Watched
from .geometry import Size
from .qwen2_vl import Qwen2VL
from .qwen3_vl import Qwen3VL

VIDEO_SIZE = {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}
"""Least and most pixels of a frame by default in `Qwen3OmniMoeProcessor`."""


class Qwen25Omni(Qwen2VL):
    """As Qwen2.5-VL. What stands for sound is text, also where it stands among the frames of a video."""

    model_types = ("qwen2_5_omni_thinker",)

    def __init__(self, model: PreTrainedModel) -> None:
        _check_base(model)
        super().__init__(model)

    @staticmethod
    def _queries_and_keys(watched: Watched) -> tuple[Tensor, Tensor]:
        heads = watched.module.num_heads, -1
        return watched.made_by(QUERIES).unflatten(-1, heads), watched.made_by(KEYS).unflatten(-1, heads)


class Qwen3Omni(Qwen3VL):
    """As Qwen3-VL, but for videos, whose frames stand behind one another, or among sound, without markers."""

    model_types = ("qwen3_omni_moe_thinker",)

    def __init__(self, model: PreTrainedModel) -> None:
        _check_base(model)
        super().__init__(model)

    def _resized(self, size: Size, factor: int) -> tuple[int, int]:
        limits = Qwen2VLImageProcessorPil.size if size.frames is None else VIDEO_SIZE
        return smart_resize(size.height, size.width, factor, limits["shortest_edge"], limits["longest_edge"])

    def _markers(self, modality: str, grids: int) -> int:
        return 2


def _check_base(model: PreTrainedModel) -> None:
    if model.base_model is model:
        raise UnsupportedModelError(
            f"The {model.config.model_type!r} of this transformers has no base model between its head and its "
            "encoders, where pruning begins: install transformers 5.24 or newer."
        )
