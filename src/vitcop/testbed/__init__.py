"""A LLaVA of parts that were pretrained at scale: DINOv2-small and SmolLM2-135M-Instruct out of two packages on PyPI.

Its attention, saliency and key norms were found in training and not made, which those of the model in the box were. Of
it only the projector and low-rank adapters of the decoder's attention are ours; see docs/testbed.md.
"""

from __future__ import annotations

from .adapter import ADAPTER, adapted, lora_config, save_adapter
from .architecture import config
from .model import build, save, unadapted

__all__ = ["ADAPTER", "adapted", "build", "config", "lora_config", "save", "save_adapter", "unadapted"]
