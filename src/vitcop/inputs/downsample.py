"""Fewer pixels in: the rival of every method, which needs nothing but a smaller picture."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from PIL import Image

from ..errors import BudgetError, check_retention

# Image processors take a side of 1 or 3 pixels for the channels.
SHORTEST_SIDE = 4


def downsample(picture: Image.Image, processor: Any, retention: float) -> tuple[Image.Image, float]:
    """Shrink a picture until its processor makes at most `retention` times as many placeholders of it.

    That helps with processors of native resolution (Qwen-VL, Pixtral), and with those that then take fewer tiles.
    Placeholders are counted in what the processor writes, separators included where they are placeholders.

    Args:
        picture: what goes into the processor.
        processor: of a transformers model.
        retention: share of the placeholders, above 0 and at most 1.

    Returns:
        The largest such picture with the same aspect, and the share of the placeholders that it really has. Where
        a tiling processor may make more of a smaller picture, it is one that fits, but perhaps not the largest.

    Raises:
        BudgetError: of the smallest picture the processor makes still too many, or as many as of any other.
    """
    check_retention(retention)
    if retention == 1:  # also where a processor makes as many tokens of something smaller
        return picture, 1.0
    longest, shortest = max(picture.size), min(picture.size)

    def shrunk(side: int) -> Image.Image:
        if side == longest:
            return picture
        width, height = (round(length * side / longest) for length in picture.size)
        return picture.resize((width, height), Image.Resampling.LANCZOS)

    def placeholders(side: int) -> int:
        inputs = processor(text=processor.image_token, images=shrunk(side), return_tensors="pt")
        # Gemma 3 writes this one once, and the same number of others, for every picture.
        written = inputs["input_ids"] == processor.image_token_id
        if not written.any():  # Molmo 2 writes others in its place, and says of each token what it is
            written = inputs["mm_token_type_ids"] == 1
        return int(written.sum())

    sides = range(min(longest, -(-SHORTEST_SIDE * longest // shortest)), longest + 1)
    total, least = placeholders(longest), placeholders(sides[0])
    allowed = retention * total + 1e-9
    if least > allowed:
        if least >= total:
            raise BudgetError("Down-sampling saves nothing: the processor makes no fewer tokens of smaller pictures.")
        raise BudgetError(
            f"Down-sampling cannot reach retention={retention:.4g}: of the smallest picture the processor makes "
            f"{least / total:.4g} of the tokens that it makes of this one."
        )
    side = sides[bisect_right(sides, allowed, key=placeholders) - 1]
    return shrunk(side), placeholders(side) / total
