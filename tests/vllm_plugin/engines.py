"""Engines of vLLM in this process, and what they answer."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from setting import NEW_TOKENS, Question, checkpoint
from transformers import AutoConfig
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.model_executor.models.transformers.base import Base
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

import vitcop
from vitcop.vllm import engine as checks
from vitcop.vllm.served import engine_arguments

GREEDY = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True, allowed_token_ids=list(range(62)))
GREEDY.detokenize = False
SMALL = {
    "enforce_eager": True,
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 8,
    "block_size": 32,
    "limit_mm_per_prompt": {"image": 2},
}


def _load_model(self: Any, *args: Any, original: Any = CPUModelRunner.load_model, **kwargs: Any) -> None:
    """The runner of CPUs never asks for positions anew, which that of GPUs does by this attribute."""
    original(self, *args, **kwargs)
    self.is_multimodal_pruning_enabled = self.model_config.multimodal_config.is_multimodal_pruning_enabled()


CPUModelRunner.load_model = _load_model
# Set right above.
ASKS_FOR_POSITIONS, checks.asks_for_positions = checks.asks_for_positions, lambda config: True
# Marks classes of transformers as to be compiled, of which there are models in this process that are not vLLM's.
Base._decorate_cls_for_torch_compile = lambda *args, **kwargs: None


@contextmanager
def engine(name: str, method: vitcop.Pruner | None, **settings: Any) -> Iterator[LLM]:
    """Of a tiny model under a method, dense without one."""
    folder, pruned = checkpoint(name), {}
    if method is not None:
        pruned = engine_arguments(AutoConfig.from_pretrained(folder), method)
    llm = LLM(model=folder, **SMALL | pruned | settings)
    try:
        yield llm
    finally:
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def prune_by(llm: LLM, method: vitcop.Pruner) -> None:
    """From now on by another method, which leaves as many tokens."""
    llm.apply_model(partial(_change, method))
    forget(llm)


def _change(method: vitcop.Pruner, model: Any) -> None:
    model.served = replace(model.served, method=method)


def forget(llm: LLM) -> None:
    """Empty all caches."""
    llm.reset_prefix_cache()
    llm.reset_mm_cache()
    llm.llm_engine.reset_encoder_cache()


def ask(llm: LLM, asked: list[Question]) -> list[Any]:
    """vLLM's outputs for questions that come at once."""
    prompts: list[Any] = []
    for question in asked:
        pictures = {"multi_modal_data": {"image": [*question.pictures]}} if question.pictures else {}
        prompts.append({"prompt": question.text} | pictures)
    return llm.generate(prompts, GREEDY, use_tqdm=False)


def tokens(outputs: list[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]
