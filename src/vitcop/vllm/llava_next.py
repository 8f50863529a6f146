"""LLaVA-NeXT."""

from __future__ import annotations

from vllm.model_executor.models import llava, llava_next

from .native import TiledTower
from .processing import pruned_processing


@pruned_processing(
    llava_next.LlavaNextMultiModalProcessor, llava_next.LlavaNextProcessingInfo, llava.LlavaDummyInputsBuilder
)
class LlavaNext(TiledTower, llava_next.LlavaNextForConditionalGeneration):
    """vLLM's own, pruned."""
