"""What families with a vision tower of its own class have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .base import Call, ModelFamily, VisionModules
from .encoders import CLIP, Encoder, Patches, Watched, with_cls, without_cls
from .geometry import Size
from .grids import Shape

# Width, layers, and pixels of a picture and of a patch, of the encoder that ViTCoP's authors give a cutoff for.
VIT_L_336, VIT_L_336_CUTOFF = (1024, 24, 336, 14), 8.0

OTHER_FEATURES = ("another encoder", "several feature layers", "another feature strategy")
"""What is refused of a model whose config says which features its projector takes."""


class TowerFamily(ModelFamily):
    """A family that takes the features of one layer of a known encoder.

    Attributes:
        encoders: those that the family can have, by `model_type` of the vision config.
        projector: name of the projector in the base model.
        encoder: the one that this model has.
        features: settings that the encoder was observed for: others would pair features with wrong saliency.
    """

    encoders: ClassVar[dict[str, Encoder]]
    projector: ClassVar[str] = "multi_modal_projector"

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        kind = config.vision_config.model_type
        if kind not in self.encoders:
            raise UnsupportedModelError(
                f"This {config.model_type!r} model has a {kind!r} vision encoder; use one with "
                f"{' or '.join(self.encoders)}."
            )
        self.encoder = encoder = self.encoders[kind]
        names = ("vision_feature_layer", "vision_feature_select_strategy")
        self.features: dict[str, Any] = {name: getattr(config, name) for name in names if hasattr(config, name)}
        layer = self.features.get("vision_feature_layer", -1)
        if not isinstance(layer, int):
            raise UnsupportedModelError(f"vision_feature_layer={layer!r} is not one encoder layer; set a single one.")
        strategy = self.features.get("vision_feature_select_strategy", encoder.strategy)
        if strategy != encoder.strategy:
            raise UnsupportedModelError(
                f"vision_feature_select_strategy={strategy!r} makes a visual token of [CLS], which has no place in the "
                f"picture, or loses a patch; use {encoder.strategy!r} with this encoder."
            )
        super().__init__(model)
        self.observed = {modality: encoder.attention_at(self.tower(modality), layer) for modality in self.modalities}
        vision = config.vision_config
        sizes = ("hidden_size", "num_hidden_layers", "image_size", "patch_size")
        if encoder is CLIP and tuple(getattr(vision, size) for size in sizes) == VIT_L_336:
            self.key_cutoff = VIT_L_336_CUTOFF

    @property
    def side(self) -> int:
        """Rows and columns of patches that the encoder makes of a square picture."""
        vision = self.model.config.vision_config
        return vision.image_size // vision.patch_size

    @property
    def square(self) -> Shape:
        """Rows and columns of patches of such a picture."""
        return self.side, self.side

    @property
    def registers(self) -> int:
        """Tokens that the encoder has between [CLS] and the patches."""
        return getattr(self.model.config.vision_config, "num_register_tokens", 0)

    @property
    def default_size(self) -> Size:
        pixels = self.model.config.vision_config.image_size
        return Size(pixels, pixels)

    def vision(self, modality: str) -> VisionModules:
        tower = self.tower(modality)
        return VisionModules(
            tower=tower,
            layers=list(tower.get_submodule(self.encoder.layers)),
            attention=self.observed[modality],
            has_cls=self.encoder.has_cls,
            projector=[getattr(self.base, self.projector)],
        )

    def check_encoding(self, call: Call) -> None:
        for name, value in self.features.items():
            asked = call.get(name)
            if (getattr(self.model.config, name) if asked is None else asked) != value:
                raise UnsupportedModelError(f"{name} cannot change while pruned; set it in the config before.")

    def tower(self, modality: str) -> Any:
        return self.base.get_encoder(modality)

    def encoder_attention(self, modality: str, depth: float) -> nn.Module:
        tower = self.tower(modality)
        return self.encoder.attention_at(tower, max(1, round(depth * self.encoder.depth(tower))))

    def patches(self, watched: Watched, pictures: int) -> Patches:
        """The patches of all pictures that the encoder got, which are of equal size, one picture after another.

        Args:
            watched: the attention of one of its layers.
            pictures: how many it should have got; tiles and frames are pictures to it.
        """
        if self.encoder.has_cls:
            return with_cls(watched, pictures, self.registers)
        return without_cls(watched, pictures)

    @staticmethod
    def pixels(modality: str, call: Call) -> Tensor:
        """What the encoder gets in a call."""
        # Not all releases of transformers since 5.17 have the same name for the argument.
        own = call.get(f"pixel_values_{modality}s")
        return call["pixel_values"] if own is None else own

    def videos(self, call: Call) -> tuple[int, int]:
        """Videos that the encoder gets in a call, and frames of each."""
        videos, frames = self.pixels("video", call).shape[:2]
        return videos, frames


def joined_within(tokens: int, starts: Sequence[tuple[int, int]], lengths: Sequence[int]) -> list[bool]:
    """Whether each tile is of the picture before it, where those of one picture have so few tokens between them.

    Args:
        tokens: most that stand between two tiles of one picture.
        starts, lengths: as of `ModelFamily.joined`.
    """
    ends = [(row, column + length) for (row, column), length in zip(starts, lengths, strict=True)]
    before = zip(starts[1:], ends, strict=False)
    return [False, *(row == of_row and 0 <= column - end <= tokens for (row, column), (of_row, end) in before)]
