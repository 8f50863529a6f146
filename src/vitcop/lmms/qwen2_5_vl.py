"""Qwen2.5-VL in lmms-eval."""

from __future__ import annotations

from lmms_eval.models.chat import qwen2_5_vl as chat
from lmms_eval.models.simple import qwen2_5_vl as simple

from .pruned import Pruned


class Qwen2_5_VL(Pruned, chat.Qwen2_5_VL):  # noqa: N801
    """`qwen2_5_vl` for tasks that give messages."""


class Qwen2_5_VLSimple(Pruned, simple.Qwen2_5_VL):  # noqa: N801
    """`qwen2_5_vl` for tasks that give text and pictures apart."""
