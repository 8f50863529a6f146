"""InternVL, in the checkpoints for transformers, in lmms-eval."""

from __future__ import annotations

from lmms_eval.models.chat.internvl_hf import InternVLHf

from .pruned import Pruned


class InternVL(Pruned, InternVLHf):
    """`internvl_hf`, which takes messages only."""
