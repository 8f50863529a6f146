"""Plug-in for vLLM: its own models, whose decoders get what a method of the entrance leaves of each picture.

`register` is what vLLM calls by an entry point, in each of its processes and at every start: it imports nothing heavy.
"""

from __future__ import annotations

from .architectures import CLASSES


def register() -> None:
    """Make our architectures known to vLLM, by where their classes stand; to call it again changes nothing."""
    from vllm import ModelRegistry

    for architecture, place in CLASSES.items():
        ModelRegistry.register_model(architecture, place)
