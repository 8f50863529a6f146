"""Things on photographs, with questions: what the testbed was trained on and is measured on."""

from __future__ import annotations

import numpy as np

from ..scenes.compose import Scene
from .compose import SIZE, compose
from .questions import TYPES
from .shelf import shipped

__all__ = ["SIZE", "TYPES", "scene"]

_TEST = 1  # training's seeds begin with 0


def scene(seed: int, size: int = SIZE) -> Scene:
    """The test scene of this seed, ``size`` pixels on a side, of what the package ships."""
    return compose(np.random.default_rng((_TEST, seed)), shipped(), size)
