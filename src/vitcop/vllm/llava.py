"""LLaVA-1.5 and its relatives, with CLIP or SigLIP."""

from __future__ import annotations

from vllm.model_executor.models import llava

from .native import SquareTower
from .processing import pruned_processing


@pruned_processing(llava.LlavaMultiModalProcessor, llava.LlavaProcessingInfo, llava.LlavaDummyInputsBuilder)
class Llava(SquareTower, llava.LlavaForConditionalGeneration):
    """vLLM's own, pruned."""
