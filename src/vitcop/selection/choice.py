"""What a method chooses at one stage: of what form it is can be seen at once, whether it is valid when one may wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import VitcopError
from .pruner import Pruner
from .tokens import Selection, VisualTokens


def choose(method: Pruner, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
    """What `method` selects, if it is of the right form; whether it keeps its promises, `Selection.allows` says.

    Raises:
        VitcopError: it is no selection, or its tensors are of other shapes or types.
    """
    with torch.no_grad():
        selection = method.select(tokens, budget)
    if not isinstance(selection, Selection) or selection.reduction not in ("mean", "add_mean"):
        raise VitcopError("select must return a Selection, whose reduction is 'mean' or 'add_mean'.")
    selection.check_shapes(sum(tokens.lengths), sum(budget))
    return selection


def refuse_choice(method: Pruner, features: Float[Tensor, "entered hidden"], lengths: Sequence[int]) -> NoReturn:
    """Raise for a selection that does not keep its promises.

    Args:
        features: of all visual tokens that came to the decoder: what is behind it, besides the method, if they are not
            finite.
        lengths: of each image.
    """
    broken = [str(image) for image, values in enumerate(features.split(tuple(lengths))) if not values.isfinite().all()]
    hint = f" The features of image {', '.join(broken)} of the batch are not finite." if broken else ""
    raise VitcopError(
        f"{method.name} made a selection that is not valid: keep must be ascending rows, as many of each image as its "
        f"budget says, and merge must name slots of the same image, or be -1.{hint}"
    )
