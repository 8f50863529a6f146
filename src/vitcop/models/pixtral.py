"""What Pixtral's encoder shows: pictures of any size, in LLaVA and in Mistral 3."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PretrainedConfig
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

from .base import Call
from .encoders import KEYS, QUERIES, Encoder, Patches, Watched, with_rotary
from .geometry import Geometry, Size
from .grids import Shape

PIXTRAL = Encoder("transformer.layers", "attention", has_cls=False)


def pixtral_pictures(patch_size: int, call: Call) -> list[list[Shape]]:
    """The one grid of each picture of a call of the encoder, of its own size, in patches.

    Args:
        patch_size: rows and columns of pixels in a patch.
        call: arguments of `get_image_features`.
    """
    sizes = call.get("image_sizes")
    if sizes is None:
        sizes = [call["pixel_values"].shape[-2:]] * len(call["pixel_values"])
    pixels = torch.as_tensor(sizes, device="cpu").tolist()
    return [[(height // patch_size, width // patch_size)] for height, width in pixels]


def pixtral_patches(pictures: Sequence[Sequence[Shape]], watched: Watched) -> Patches:
    """The patches of all pictures, which stand in one row.

    Args:
        pictures: as `pixtral_pictures` gives them.
        watched: the attention of a layer of the encoder.
    """
    lengths = [rows * columns for picture in pictures for rows, columns in picture]
    heads = watched.module.num_heads, watched.module.head_dim
    queries, keys = (watched.made_by(name)[0].unflatten(-1, heads) for name in (QUERIES, KEYS))
    return with_rotary(watched, queries, keys, lengths)


def pixtral_geometry(vision: PretrainedConfig, size: Size, side: int = 1) -> Geometry:
    """One picture, shrunk where it is longer than the encoder's largest; a break stands behind each row.

    Args:
        vision: the encoder's config.
        size: of the picture.
        side: rows and columns of patches that become one visual token.
    """
    picture = np.broadcast_to(np.uint8(0), (size.height, size.width, 3))
    largest, patch = vision.image_size, vision.patch_size
    height, width = get_resize_output_image_size(
        picture, (largest, largest), (side * patch, side * patch), "channels_last"
    )
    shape = height // patch, width // patch
    return Geometry.of([shape], side=side, markers=shape[0] // side)
