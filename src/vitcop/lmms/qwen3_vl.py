"""Qwen3-VL and its mixture of experts in lmms-eval."""

from __future__ import annotations

from lmms_eval.models.chat import qwen3_vl as chat
from lmms_eval.models.simple import qwen3_vl as simple

from .pruned import Pruned


class Qwen3_VL(Pruned, chat.Qwen3_VL):  # noqa: N801
    """`qwen3_vl` for tasks that give messages."""


class Qwen3_VLSimple(Pruned, simple.Qwen3_VL):  # noqa: N801
    """`qwen3_vl` for tasks that give text and pictures apart."""
