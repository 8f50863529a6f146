"""What stands around a model where a hook sees too little: methods of its modules, wrapped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn


class Wrapper:
    """A method of one object wrapped by another, until it is removed.

    Where a forward hook sees too little: `image_sizes` and the like, which say how features are packed into tokens,
    end at `get_image_features`, which `generate` calls before the first forward.
    """

    def __init__(self, owner: nn.Module, name: str, wrapper: Callable[..., Any]) -> None:
        self.owner: nn.Module | None = owner
        self.name = name
        self.before = vars(owner).get(name)
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, args, kwargs) if self.owner is not None else original(*args, **kwargs)

        self.wrapped = wrapped
        setattr(owner, name, wrapped)

    def remove(self) -> None:
        owner, self.owner = self.owner, None
        if owner is None:
            return
        # Where somebody has wrapped it again, it stays, and does nothing.
        if vars(owner).get(self.name) is self.wrapped:
            delattr(owner, self.name)
            if self.before is not None:
                setattr(owner, self.name, self.before)
        # It refers to us, and to its owner: in a circle, a model would wait for the collector.
        del self.wrapped
