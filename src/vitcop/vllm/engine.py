"""What vLLM must not be told to do with a pruned model."""

from __future__ import annotations

from typing import Any, NoReturn

from ..errors import UnsupportedModelError
from ..models import ModelFamily

ENCODED_WHOLE = frozenset({"internvl"})
"""Model types whose encoder counts on all of its heads, which vLLM's Transformers backend shares out nevertheless."""


def check_engine(config: Any, family: ModelFamily) -> None:
    """Raise unless an engine runs the vision encoder so that it can be watched at work.

    Args:
        config: vLLM's `VllmConfig`.
        family: of the model, without weights.

    Raises:
        UnsupportedModelError: it does not; the message names the flag.
    """
    multimodal, compilation = config.model_config.multimodal_config, config.compilation_config
    if compilation.cudagraph_mm_encoder:
        _refuse("CUDA graphs of the vision encoder replay it unseen", "leave out cudagraph_mm_encoder")
    if compilation.compile_mm_encoder:
        _refuse("A compiled vision encoder runs unseen", "leave out compile_mm_encoder")
    if multimodal.mm_encoder_tp_mode == "data":
        _refuse(
            "A data-parallel vision encoder shows each process a part of the pictures",
            "leave out --mm-encoder-tp-mode data, which shares out its heads",
        )
    if config.model_config.enable_prompt_embeds:
        _refuse("Prompts that come embedded hold no placeholders", "leave out --enable-prompt-embeds")
    if multimodal.enable_mm_embeds:
        _refuse("Pictures that come encoded would enter the decoder unpruned", "leave out --enable-mm-embeds")
    if config.lora_config is not None and config.lora_config.enable_tower_connector_lora:
        _refuse(
            "Adapters of the vision encoder are counted out by the tokens of the prompt, of which it makes more",
            "leave out --enable-tower-connector-lora",
        )
    model_type, ranks = family.model.config.model_type, config.parallel_config.tensor_parallel_size
    if model_type in ENCODED_WHOLE and ranks > 1:
        _refuse(
            f"vLLM's Transformers backend gives each process a part of the heads of this {model_type!r} encoder, which "
            "cannot run on a part",
            "leave out --tensor-parallel-size, or use several GPUs by --data-parallel-size",
        )
    if family.keeps_positions and not asks_for_positions(config):
        _refuse(
            "Tokens of this model stay at their rows and columns, and vLLM's runner for CPUs does not ask for these",
            "serve it on a GPU, or LLaVA here",
        )
    if family.keeps_positions and not multimodal.is_multimodal_pruning_enabled():
        _refuse(
            "Tokens of this model stay at their rows and columns, and vLLM asks for these only where it prunes videos",
            "add --video-pruning-rate 0.5, which does nothing else, since videos are refused",
        )


def asks_for_positions(config: Any) -> bool:
    """Whether the runner asks a model for positions anew, once pictures are encoded."""
    return bool(config.device_config.device_type != "cpu")


def _refuse(what: str, way_out: str) -> NoReturn:
    raise UnsupportedModelError(f"{what}, so that pictures cannot be pruned: {way_out}.")
