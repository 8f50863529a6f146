"""Under which names vLLM serves models with their pictures pruned. Imports nothing."""

from __future__ import annotations

NATIVE = {
    "llava": "VitcopLlavaForConditionalGeneration",
    "llava_next": "VitcopLlavaNextForConditionalGeneration",
    "llava_onevision": "VitcopLlavaOnevisionForConditionalGeneration",
    "qwen2_5_vl": "VitcopQwen2_5_VLForConditionalGeneration",
}
"""Model type -> architecture on vLLM's own modules."""

BACKEND = "VitcopTransformersForConditionalGeneration"
"""Any other family, on vLLM's Transformers backend."""

BACKEND_MROPE = "VitcopTransformersMRoPEForConditionalGeneration"
"""The same where positions have several axes."""

CLASSES = {
    "VitcopLlavaForConditionalGeneration": "vitcop.vllm.llava:Llava",
    "VitcopLlavaNextForConditionalGeneration": "vitcop.vllm.llava_next:LlavaNext",
    "VitcopLlavaOnevisionForConditionalGeneration": "vitcop.vllm.llava_onevision:LlavaOnevision",
    "VitcopQwen2_5_VLForConditionalGeneration": "vitcop.vllm.qwen2_5_vl:Qwen25VL",
    BACKEND: "vitcop.vllm.backend:Backend",
    BACKEND_MROPE: "vitcop.vllm.backend:BackendMRoPE",
}
"""Architecture -> its class, as vLLM's registry takes it."""
