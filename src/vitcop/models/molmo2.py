"""Molmo 2: a thumbnail and overlapping crops, patches pooled by attention, pictures that see each other both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .base import Call, Description, VisionModules
from .encoders import Encoder, Patches, Watched
from .geometry import Geometry, Size, least_enlarging
from .grids import Grids, Shape
from .tower import TowerFamily

MOST_CROPS = 8
"""Of a picture, its thumbnail left out, by default in `Molmo2ImageProcessor`, which torchvision has to be there for."""
MARGINS = (4, 4)
"""Rows or columns of patches, at the upper or left edge of a crop and at the other, of which its neighbour there makes
tokens in its place; by default in that processor.
"""
POOLED = {"image": 2, "video": 3}
"""Rows and columns of patches that become one visual token, by default in that processor and in that of videos."""


class Molmo2(TowerFamily):
    """One grid for the thumbnail and one per crop, or one per frame.

    The processor says of which patches each visual token is pooled. Where crops meet, these are of two or four crops:
    the token then counts to that of its first patch. Row ends and markers are text to us and stay, but see pictures
    both ways, as all pictures of a prompt see each other.
    """

    model_types = ("molmo2",)
    modalities = ("image", "video")
    encoders = {"molmo2_vision": Encoder("layers", "self_attn", has_cls=False)}
    described = Description(
        saliency="attention received in the deepest layer used, mean over the patches of a token",
        grids="thumbnail, crop, frame",
        refuses=("another encoder", "flash attention", "pictures and videos in one batch"),
    )
    has_blocks = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.deepest = self._deepest
        self.observed = {
            modality: self.encoder.attention_at(self.tower(modality), self.deepest + 1) for modality in self.modalities
        }

    def placeholders(self, call: Call) -> dict[str, Bool[Tensor, "batch seq"]]:
        own, (placeholder, *_) = self.sole_modality(call), super().placeholders(call).values()
        none = torch.zeros_like(placeholder)
        return {modality: placeholder if modality == own else none for modality in self.modalities}

    def check_encoding(self, call: Call) -> None:
        if self._deepest != self.deepest:
            raise UnsupportedModelError("vision_feature_layer cannot change while pruned; set it in the config before.")

    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        sizes: list[list[int]] = call[f"{modality}_grids"].tolist()
        if modality == "video":
            return tuple(Grids.full(*[(rows, columns)] * frames) for frames, rows, columns in sizes)
        index = self._patches_of_tokens(modality, call)
        first = index.masked_fill(index < 0, index.amax()).amin(1)  # patches are numbered crop by crop, row by row
        crops = (first // self._patches_of_crop).split([a * b + c * d for a, b, c, d in sizes])
        return tuple(_picture((a, b), own[a * b :].view(c, d)) for own, (a, b, c, d) in zip(crops, sizes, strict=True))

    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        index = self._patches_of_tokens(modality, call)
        real = (index >= 0).float()
        patches = self.patches(watched, int(index.amax()) // self._patches_of_crop + 1)
        # In the place of none stands one of its own, which counts for nothing.
        index = torch.where(index < 0, index.amax(1, keepdim=True), index)
        return patches.mixed(index, real / real.sum(1, keepdim=True))

    @property
    def square(self) -> Shape:
        vision = self.model.config.vision_config
        rows, columns = (pixels // vision.patch_size for pixels in vision.image_size)
        return rows, columns

    @property
    def default_size(self) -> Size:
        return Size(*self.model.config.vision_config.image_size)

    def geometry(self, size: Size) -> Geometry:
        pooled, patches = POOLED[size.modality], self.square[0]
        side = -(-patches // pooled)
        if size.frames is not None:
            # Each frame is between two markers; its time is left to the text.
            image, encoded, markers = Grids.full(*[(side, side)] * size.frames), size.frames, 2 * size.frames
        else:
            window = patches - sum(MARGINS)
            rows, columns = _cut(size, sum(MARGINS) * self._patch, window * self._patch)
            down, across = (_begin_in(crops, window, pooled) for crops in (rows, columns))
            image, encoded = Grids.join([Grids.full((side, side)), _beside(down, across)]), 1 + rows * columns
            markers = 4 + side + sum(down)  # around each of the two, and behind each row
        seen = Geometry.of([self.square] * encoded, image=image, projected=image.num_tokens, markers=markers)
        return replace(seen, pooled=image.num_tokens * pooled**2)

    def vision(self, modality: str) -> VisionModules:
        modules = super().vision(modality)
        pooling = modules.projector[0].get_submodule("image_pooling_2d")
        return replace(modules, embedding=[modules.tower.get_submodule("patch_embedding")], pooling=pooling)

    def rotary(self, layer: int) -> nn.Module | None:
        scaled = self.decoder.rope_types[layer] == "scaled"
        return self.decoder.rotary_emb if scaled else self.decoder.rotary_emb_unscaled

    def attention_blocks(self, call: Call) -> dict[str, Int[Tensor, "batch seq"]]:
        kinds = call.get("mm_token_type_ids")
        return {} if kinds is None else dict.fromkeys(self.layer_kinds, torch.where(kinds == 1, 0, -1))

    @staticmethod
    def _patches_of_tokens(modality: str, call: Call) -> Int[Tensor, "tokens patches_per_token"]:
        """Numbers of the patches that each visual token is pooled from, over all crops or frames, -1 for none, on the
        CPU.
        """
        return call[f"{modality}_token_pooling"].cpu().long()

    @property
    def _deepest(self) -> int:
        """The deepest encoder layer whose features the model uses."""
        count = self.encoder.depth(self.tower("image"))
        return max(layer % count for layer in self.model.config.adapter_config.vision_feature_layer)

    @property
    def _patch(self) -> int:
        """Rows and columns of pixels of a patch."""
        pixels: int = self.model.config.vision_config.patch_size
        return pixels

    @property
    def _patches_of_crop(self) -> int:
        rows, columns = self.square
        return rows * columns


def _picture(thumbnail: Shape, crops: Int[Tensor, "rows columns"]) -> Grids:
    """A thumbnail of this shape, and the crops in which each token of the whole picture begins."""
    counts = (numbers.unique_consecutive(return_counts=True)[1].tolist() for numbers in (crops[:, 0], crops[0]))
    return Grids.join([Grids.full(thumbnail), _beside(*counts)])


def _beside(rows: Sequence[int], columns: Sequence[int]) -> Grids:
    """Grids beside and below each other, over all of which the placeholders stand row by row.

    Args:
        rows, columns: of visual tokens, in each grid from top to bottom and from left to right.
    """
    (down, top), (across, left) = (_along(counts) for counts in (rows, columns))
    segments = (down[:, None] * len(columns) + across).flatten()
    return Grids(tuple(product(rows, columns)), segments, torch.cartesian_prod(top, left))


def _along(counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """In which of the grids that follow each other a row or column is, and where there, as a share of that grid."""
    with torch.device("cpu"):
        numbers = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        return numbers, torch.cat([torch.arange(count, dtype=torch.float32) / count for count in counts])


def _begin_in(crops: int, window: int, pooled: int) -> list[int]:
    """How many rows, or columns, of visual tokens begin in each of the crops that follow each other.

    Args:
        crops: how many these are.
        window: patches from one to the next.
        pooled: patches that become one token.
    """
    begins = range(0, crops * window + sum(MARGINS), pooled)
    owners = [min(max(0, (patch - MARGINS[0]) // window), crops - 1) for patch in begins]
    return [owners.count(crop) for crop in dict.fromkeys(owners)]


def _cut(size: Size, margins: int, window: int) -> Shape:
    """Rows and columns of crops into which the processor cuts a picture.

    Args:
        margins, window: pixels by which all crops together reach beyond as many windows, and pixels of a window.
    """
    with torch.device("cpu"):
        # In its own precision, so that ties are broken alike; a picture may be smaller than the margins.
        inner = torch.tensor([size.height - margins, size.width - margins], dtype=torch.float32)

        def scale(rows: int, columns: int) -> float:
            return (torch.tensor([rows, columns], dtype=torch.float32) * window / inner).amin().item()

        return least_enlarging(MOST_CROPS, scale)
