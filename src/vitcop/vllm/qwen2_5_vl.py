"""Qwen2.5-VL."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.models import qwen2_5_vl

from ..models import Watched
from ..models.base import Call
from ..models.encoders import FUSED
from .mrope import MRoPE
from .native import NativeModel
from .processing import pruned_processing
from .watching import Seen, whole_heads


@pruned_processing(
    qwen2_5_vl.Qwen2_5_VLMultiModalProcessor,
    qwen2_5_vl.Qwen2_5_VLProcessingInfo,
    qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder,
)
class Qwen25VL(MRoPE, NativeModel, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    """vLLM's own, pruned."""

    tower = "visual.blocks"
    attention = "attn"
    fused = "qkv"

    def _watched(self, call: Call, stock: Any, seen: Seen, received: bool) -> Watched:
        channels = stock.qkv.out_features // 3
        parts = seen.projected[self.fused].flatten(0, 1).chunk(3, -1)
        # vLLM has the angles of half the channels of a head, transformers of all.
        names = ("rotary_pos_emb_cos", "rotary_pos_emb_sin")
        rotary = tuple(torch.cat([seen.inputs[name]] * 2, -1) for name in names)
        fused = torch.cat([whole_heads(part, channels) for part in parts], -1)
        return Watched(stock, {"position_embeddings": rotary}, {FUSED: fused}, received)
