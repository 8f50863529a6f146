"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision in lmms-eval."""

from __future__ import annotations

from typing import Any

from lmms_eval.models.chat import llava_hf as chat
from lmms_eval.models.simple import llava_hf as simple

from .pruned import Pruned, escaping_errors


class LlavaHf(Pruned, chat.LlavaHf):
    """`llava_hf` for tasks that give messages."""


class LlavaHfSimple(Pruned, simple.LlavaHf):
    """`llava_hf` for tasks that give text and pictures apart."""

    def load_video(self, *args: Any) -> Any:
        """The frames. Errors are raised; lmms-eval would go on with an answer too many."""
        with escaping_errors():
            return super().load_video(*args)
