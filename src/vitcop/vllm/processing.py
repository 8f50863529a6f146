"""What vLLM's front end is told of pictures: how many placeholders are left of each, before any is encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem
from vllm.multimodal.processing import PromptUpdateDetails
from vllm.multimodal.utils import group_and_batch_mm_items

from ..errors import UnsupportedModelError, VitcopError
from ..models import Grids
from .served import Served, configured

TOLD = "vitcop"
"""Argument of a picture, beside its pixels: how many placeholders its prompt holds, and the fingerprint of what left
them, so that the model can tell whether it would."""


class PrunedProcessor:
    """Mixed into a multi-modal processor of vLLM, before its own class: prompts hold what the method leaves."""

    info: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._served  # noqa: B018 - refused here, and not at the first picture

    @property
    def _served(self) -> Served:
        return self.info.served

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> list[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]
        images = []
        for item in out_mm_kwargs.get("image", []):
            ((_, call),) = group_and_batch_mm_items([item])
            image = self._served.image(call)
            left = self._served.placeholders_left(image)
            told = torch.tensor([left, self._served.fingerprint])
            item[TOLD] = MultiModalFieldElem(told, MultiModalBatchedField(keep_on_cpu=True))
            images.append((image, left))
        return [
            replace(update, replacement=partial(self._shortened, update.content, images))
            if update.modality == "image"
            else update
            for update in updates
        ]

    def _shortened(self, content: Any, images: list[tuple[Grids, int]], number: int) -> Any:
        """What stands in the prompt for a picture, without the last of its placeholders."""
        image, left = images[number]
        written = content(number) if callable(content) else content
        detailed = isinstance(written, PromptUpdateDetails)
        tokens = written.full if detailed else written
        placeholder = self._served.family.model.config.image_token_id
        places = [place for place, token in enumerate(tokens) if token == placeholder]
        if len(places) != image.placeholders:
            raise VitcopError(
                f"vLLM writes {len(places)} placeholders for a picture of which vitcop counts {image.placeholders}, so "
                "that it cannot be pruned; please report this, with the model and the size of the picture."
            )
        if places[-1] - places[0] >= len(places):
            raise UnsupportedModelError(
                "The processor of this model writes text among the tokens of a picture, and where that stands in a "
                "pruned prompt is not known before the picture is encoded: prune it in transformers."
            )
        short = tokens[: places[0] + left] + tokens[places[-1] + 1 :]
        return replace(written, full=short) if detailed else short

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        prompt = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        if self._served.family.keeps_positions:
            _check_apart(prompt["mm_placeholders"], len(prompt["prompt_token_ids"]))
        return prompt


class PrunedInfo:
    """Mixed into a processing info of vLLM, before its own class."""

    ctx: Any

    @property
    def served(self) -> Served:
        """The method, and the family without weights."""
        return configured(self.ctx.model_config.hf_config, self.ctx.model_config.hf_overrides)

    @property
    def model_id(self) -> str:
        """Goes into the hashes of pictures, so that shared caches tell methods, retentions and versions apart."""
        return f"{super().model_id}#{self.served.identity}"  # type: ignore[misc]

    def get_supported_mm_limits(self) -> dict[str, int | None]:
        """Of pictures alone: videos are refused."""
        limits = super().get_supported_mm_limits()  # type: ignore[misc]
        return {"image": limits["image"]}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> dict[str, int]:
        """Of pruned pictures, so that memory is profiled for as many of them as will be encoded together."""
        dense = super().get_mm_max_tokens_per_item(seq_len, {"image": 1})  # type: ignore[misc]
        return {"image": self.served.most_placeholders(dense and dense["image"])}


def pruned_processing(processor: type, info: type, dummy_inputs: type) -> Any:
    """Decorates a model class with a processor and an info of vLLM that know of pruning."""
    return MULTIMODAL_REGISTRY.register_processor(
        _mixed(PrunedProcessor, processor), info=_mixed(PrunedInfo, info), dummy_inputs=dummy_inputs
    )


@cache
def _mixed(mixin: type, own: type) -> type:
    return type(f"Vitcop{own.__name__}", (mixin, own), {})


def _check_apart(placeholders: Mapping[str, Any], length: int) -> None:
    """Raise where two pictures touch, or one ends the prompt: whose rows and columns are which, and where an answer
    goes on, is told by the text between and behind them.

    Args:
        length: of the prompt.
    """
    ranges = sorted((place.offset, place.length) for places in placeholders.values() for place in places)
    for (offset, count), (following, _) in pairwise([*ranges, (length, 0)]):
        if offset + count == following:
            raise VitcopError(
                "A picture stands in the prompt without anything between it and the next one, or the end: write the "
                "markers that this model has around a picture, as its chat template does."
            )
