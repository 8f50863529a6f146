"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision in lmms-eval."""

from __future__ import annotations

from lmms_eval.models.chat import llava_hf as chat
from lmms_eval.models.simple import llava_hf as simple

from .pruned import Pruned


class LlavaHf(Pruned, chat.LlavaHf):
    """`llava_hf` for tasks that give messages."""


class LlavaHfSimple(Pruned, simple.LlavaHf):
    """`llava_hf` for tasks that give text and pictures apart."""
