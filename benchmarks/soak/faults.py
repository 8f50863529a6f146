"""Failures in the middle of a prefill, in the encoder and in the decoder."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class InjectedError(RuntimeError):
    """A failure that was asked for."""


class Faults:
    """Fails some of the prefills of a model, each in a layer that is drawn."""

    def __init__(self, model: Any, share: float, seed: int = 0) -> None:
        decoder = model.get_decoder().layers
        self._layers = [model.get_encoder(modality="image").encoder.layers[0], *(decoder[n] for n in (0, 5, -1))]
        self._share = share / len(self._layers)
        self._draw, self._turn, self.count = random.Random(seed), threading.Lock(), 0

    @contextmanager
    def on(self) -> Iterator[Faults]:
        """For as long as it lasts."""
        handles = [layer.register_forward_pre_hook(self._may_fail) for layer in self._layers]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _may_fail(self, layer: Any, arguments: tuple[Any, ...]) -> None:
        decoding = arguments[0].shape[1] == 1
        with self._turn:
            if decoding or self._draw.random() >= self._share:
                return
            self.count += 1
        raise InjectedError(f"injected failure {self.count}")
