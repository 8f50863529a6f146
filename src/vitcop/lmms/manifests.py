"""What lmms-eval is told of this plug-in. It reads this at every start, so that nothing heavy is imported here."""

from __future__ import annotations

from typing import Any

MANIFESTS: tuple[dict[str, Any], ...] = (
    {
        "model_id": "vitcop_llava_hf",
        "simple_class_path": "vitcop.lmms.llava_hf.LlavaHfSimple",
        "chat_class_path": "vitcop.lmms.llava_hf.LlavaHf",
        # lmms-eval's own wrapper of that name wants the repository of LLaVA-NeXT; `llava_hf` loads the stock model.
        "aliases": ("vitcop_llava_onevision",),
    },
    {
        "model_id": "vitcop_qwen2_5_vl",
        "simple_class_path": "vitcop.lmms.qwen2_5_vl.Qwen2_5_VLSimple",
        "chat_class_path": "vitcop.lmms.qwen2_5_vl.Qwen2_5_VL",
    },
    {
        "model_id": "vitcop_qwen3_vl",
        "simple_class_path": "vitcop.lmms.qwen3_vl.Qwen3_VLSimple",
        "chat_class_path": "vitcop.lmms.qwen3_vl.Qwen3_VL",
    },
    # Its other wrappers of InternVL run code that comes with the checkpoint.
    {"model_id": "vitcop_internvl", "chat_class_path": "vitcop.lmms.internvl.InternVL"},
)
"""The fields of lmms-eval's `ModelManifest`, of each model."""


def manifests() -> list[Any]:
    """The entry point: lmms-eval's `ModelManifest` of each model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(**fields) for fields in MANIFESTS]
