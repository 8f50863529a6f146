"""Lets a vision encoder run on those patches of a picture that repeat no neighbour's pixels, and on no others.

The encoder itself is untouched: it is given fewer rows, and the positions, ends and windows that it works out of the
sizes of its pictures where it is not given them. What it makes of a token is copied to those that repeat it, so that
features, placeholders and positions are as many as ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..errors import UnsupportedModelError, VitcopError
from ..models import family_of
from ..models.base import Call
from ..models.repeats import Repeats
from ..ops.segments import upload
from .arguments import bound
from .stock import stock_model
from .wrapper import Wrapper

logger = logging.getLogger("vitcop")

REPEATS = "_vitcop_repeats"
"""Attribute of an encoder's output that says which tokens it ran on."""

_SKIPPING = "_vitcop_skipping"
_LENGTHS = {"max_seqlen", "max_window_seqlen"}


def skip_repeated_patches(model: nn.Module) -> Skipping:
    """Encode of every picture only the patches that do not repeat a neighbour's pixels, from now on.

    Screens, slides and pages are flat over large parts. What becomes one visual token is compared as the encoder gets
    it, value for value. A token that equals its left neighbour, or else the one above it, in the same picture or frame,
    is not encoded, and gets the features of the one that it repeats. So the encoder sees a flat stretch once, at
    its first place, and what it makes of such a picture changes. A call in which nothing repeats is left as it is.

    Goes together with `vitcop.prune`, in any order: a repeated token has the key and the saliency of the one that it
    repeats. After PixelPrune (arXiv 2604.00886), which drops such patches from the prompt as well.

    Args:
        model: a stock transformers model of the Qwen-VL or GLM-V families, PEFT-wrapped or not.

    Returns:
        A handle. `remove()` it, or use it in a `with` block, to have the model as it was.

    Raises:
        UnsupportedModelError: the encoder cannot run on some patches of a picture; the model is compiled or sharded, or
            skips repeated patches already.
    """
    return Skipping(model)


class Skipping:
    """A model that skips repeated patches. Follows the protocol of PyTorch's `RemovableHandle`."""

    def __init__(self, model: nn.Module) -> None:
        stock = stock_model(model)
        family = family_of(stock)
        self._model_type = stock.config.model_type
        if not family.runs_on_some:
            raise UnsupportedModelError(
                f"The vision encoder of a {self._model_type!r} model works out positions for whole pictures only, so "
                "that no patch can be left out; use a Qwen-VL or GLM-V model, or vitcop.downsample."
            )
        tower = family.vision(family.modalities[0]).tower
        if hasattr(tower, _SKIPPING):
            raise UnsupportedModelError("This model skips repeated patches already; remove() that first.")
        self._family = family
        self._tower: nn.Module | None = tower
        # A copy of the tower would call this one's forward: whoever makes one has to ask us, and we refuse.
        setattr(tower, _SKIPPING, self)
        self._wrapper = Wrapper(tower, "forward", self._encode)

    def __repr__(self) -> str:
        return f"<vitcop.Skipping: {self._model_type}, {'on' if self._tower is not None else 'removed'}>"

    def remove(self) -> None:
        """Have the model encode all patches again. Calls that it is just running end as they began."""
        if self._tower is not None:
            self._wrapper.remove()
            delattr(self._tower, _SKIPPING)
            self._tower = None

    def __enter__(self) -> Skipping:
        if self._tower is None:
            raise VitcopError("This has been removed; call vitcop.skip_repeated_patches(...) again.")
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UnsupportedModelError(
            "A model that skips repeated patches cannot be copied or pickled; remove() the skipping first."
        )

    def _encode(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Call) -> Any:
        """In place of the forward of the vision tower."""
        call = bound(original, args, kwargs)
        pixels, sizes = call["hidden_states"], call["grid_thw"]
        side = self._family.model.config.vision_config.spatial_merge_size
        images = [(frames, rows // side, columns // side) for frames, rows, columns in sizes.tolist()]
        tokens = pixels.reshape(sum(frames * rows * columns for frames, rows, columns in images), -1)
        repeats = Repeats.of(tokens, images)
        if repeats is None:
            return original(*args, **kwargs)
        arguments = self._family.arguments_of_some(sizes, repeats)
        given = sorted(name for name in arguments.keys() | _LENGTHS if call.get(name) is not None)
        if given:
            raise UnsupportedModelError(
                f"Repeated patches cannot be skipped in a call that brings {', '.join(given)} of all patches along; "
                "leave these to the encoder."
            )
        kept = upload(repeats.kept, pixels.device)
        arguments["hidden_states"] = tokens[kept].view(-1, pixels.shape[-1])
        output = original(**call | arguments)
        self._fill_in(output, sizes, repeats)
        setattr(output, REPEATS, repeats)
        logger.debug("%d of %d visual tokens encoded, the others repeat them", len(kept), len(tokens))
        return output

    def _fill_in(self, output: Any, sizes: Tensor, repeats: Repeats) -> None:
        """Give each token that was left out what came out for the one that it repeats."""
        if not isinstance(output, ModelOutput) or output.get("attentions") is not None:
            raise UnsupportedModelError(
                "Skipped patches have no rows in attention maps of the encoder, and are not filled into a bare tuple: "
                "leave out output_attentions and return_dict=False."
            )
        place = self._family.encoder_places(sizes)
        # Features are in the order of the picture; states as the layers had them.
        states = repeats.places(place)[place.argsort()]
        for name, value in output.items():
            rows = states if name in ("last_hidden_state", "hidden_states") else repeats.source
            filled = [
                _filled(rows, part, len(repeats.kept)) for part in ([value] if isinstance(value, Tensor) else value)
            ]
            output[name] = filled[0] if isinstance(value, Tensor) else type(value)(filled)


def _filled(rows: Tensor, values: Tensor, kept: int) -> Tensor:
    """Rows of `values`, of which each token has one, or one for each of its patches."""
    return values.unflatten(0, (kept, -1))[upload(rows, values.device)].flatten(0, 1)
