"""LLaVA-OneVision."""

from __future__ import annotations

from vllm.model_executor.models import llava_onevision

from .native import TiledTower
from .processing import pruned_processing


@pruned_processing(
    llava_onevision.LlavaOnevisionMultiModalProcessor,
    llava_onevision.LlavaOnevisionProcessingInfo,
    llava_onevision.LlavaOnevisionDummyInputsBuilder,
)
class LlavaOnevision(TiledTower, llava_onevision.LlavaOnevisionForConditionalGeneration):
    """vLLM's own, pruned."""
