"""A method and a model as they are served: read off the model's config, and refused at the start if they do not fit.

Nothing here imports vLLM, so that `vitcop serve` can say so before it does.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PretrainedConfig

from .. import __version__
from ..engine.probe import check_probe
from ..entrance import check_entrance, placeholders_left
from ..errors import UnsupportedModelError, VitcopError, unknown_name
from ..models import Grids, ModelFamily, family_of, known_family
from ..models.base import Call
from ..models.encoders import CLIP, SIGLIP
from ..models.geometry import Size
from ..models.pixtral import PIXTRAL
from ..selection.pruner import Pruner
from .architectures import BACKEND, BACKEND_MROPE, NATIVE

SETTING = "vitcop"
"""Attribute of a config that holds the method, as `Pruner.to_dict` writes it."""

MROPE_SWITCH = {"video_pruning_rate": 0.5}
"""The argument without which vLLM takes no positions from a model. The rate is that of videos, which are refused."""

ANYRES_NINE = "anyres_max_9"

TEXT_BETWEEN = frozenset({"mistral3", "idefics3", "smolvlm", "minicpmv4_6", "minicpmv4_7", "molmo2"})
"""Model types whose processors write text among the tokens of a picture."""

NOT_TESTED = frozenset(
    {
        "llava_next_video",
        "video_llava",
        "glm4v",
        "glm4v_moe",
        "glm46v",
        "aya_vision",
        "paligemma",
        "qwen2_5_omni_thinker",
        "qwen3_5",
        "qwen3_5_moe",
        "lfm2_vl",
        "video_llama_3",
    }
)
"""Model types of which nobody has seen that vLLM answers as transformers does."""


@dataclass(frozen=True, eq=False)
class Served:
    """A method on a family of models.

    Attributes:
        method: what prunes.
        family: of the model, without weights.
        settings: that say the method, as all processes have got them; each writes a method of one's own in its own way.
    """

    method: Pruner
    family: ModelFamily
    settings: Mapping[str, Any]

    @cached_property
    def identity(self) -> str:
        """Version of vitcop and settings, by which parts of a server know whether they prune alike."""
        return f"vitcop {__version__} {json.dumps(self.settings, sort_keys=True)}"

    @cached_property
    def fingerprint(self) -> int:
        """The identity in 63 bits."""
        return int.from_bytes(hashlib.sha256(self.identity.encode()).digest()[:8], "big") >> 1

    def image(self, call: Call) -> Grids:
        """The grids of a picture, from a call of the encoder for it alone."""
        return Grids.join(self.family.grids("image", call))

    def placeholders_left(self, image: Grids) -> int:
        """Placeholders that the prompt holds of a picture."""
        (left,) = placeholders_left(self.method, self.family, [image])
        return left

    def most_placeholders(self, dense: int | None) -> int:
        """As many as the prompt may hold of any picture, or a few more.

        Args:
            dense: the most that it would hold of one unpruned; None takes the family's largest size.
        """
        images = [self.family.geometry(size).image for size in self._largest]
        tokens = max(image.num_tokens for image in images) if dense is None else dense
        # A picture that has fewer tokens can have more separators: of one that is tall, as many as there are rows.
        separators = max(map(self._most_separators, self._largest, images))
        return self.placeholders_left(Grids.full((1, tokens))) + separators

    @property
    def _largest(self) -> list[Size]:
        pinpoints = getattr(self.family.model.config, "image_grid_pinpoints", None)
        return [Size(*size) for size in pinpoints] if pinpoints else [self.family.default_size]

    def _most_separators(self, size: Size, image: Grids) -> int:
        if image.placeholders == image.num_tokens or len(image.shapes) == 1:
            return image.placeholders - image.num_tokens
        vision = self.family.model.config.vision_config
        return size.height // vision.patch_size


_known: dict[int, tuple[PretrainedConfig, Served]] = {}  # configs are kept, so that their numbers stay theirs


def configured(config: PretrainedConfig, overrides: object = None) -> Served:
    """What a config with the attribute "vitcop" says is served; worked out once for each config.

    Args:
        overrides: vLLM's `hf_overrides`, which who starts it has written. To read a method of one's own is to run its
            code, so that none is read that the files of the model name.

    Raises:
        VitcopError: it names no method, or one of one's own that nobody has asked for.
        UnsupportedModelError: the method, the model, or the one on the other cannot be served.
    """
    if id(config) not in _known:
        settings = getattr(config, SETTING, None)
        if not isinstance(settings, dict):
            raise VitcopError(
                f"The config says no method by {SETTING!r}; start vLLM by `vitcop serve`, or with --hf-overrides "
                '\'{"architectures": [...], "vitcop": {"method": "visionzip", "retention": 0.111}}\'.'
            )
        asked_for = isinstance(overrides, dict) and overrides.get(SETTING) == settings
        if _names_code(settings) and not asked_for:
            raise VitcopError(
                "The files of the model name a method whose code would be run, and the command that started vLLM does "
                "not: start it by `vitcop serve MODEL --method ...`, if you trust that code."
            )
        served = Served(Pruner.from_dict(settings), _family_without_weights(config), settings)
        architecture = _checked_architecture(served.family, config.architectures or [])
        check_method(served.method, served.family, native=architecture in NATIVE.values())
        _known[id(config)] = config, served
    return _known[id(config)][1]


def engine_arguments(config: PretrainedConfig, method: Pruner) -> dict[str, Any]:
    """Arguments of vLLM's engine, or flags of its server, that have it serve a model under a method.

    Args:
        config: of the stock checkpoint.

    Raises:
        UnsupportedModelError: that cannot be served.
    """
    family = _family_without_weights(config)
    architecture = architecture_of(family)
    check_method(method, family, native=architecture in NATIVE.values())
    overrides = {"architectures": [architecture], SETTING: method.to_dict()}
    return {"hf_overrides": overrides} | (MROPE_SWITCH if family.keeps_positions else {})


def architecture_of(family: ModelFamily) -> str:
    """The name under which a model is served.

    Raises:
        UnsupportedModelError: vLLM cannot serve it pruned.
    """
    model_type, encoder = family.model.config.model_type, getattr(family, "encoder", None)
    if model_type in TEXT_BETWEEN or encoder is PIXTRAL:
        raise UnsupportedModelError(
            f"The processor of this {model_type!r} model writes text among the tokens of a picture, and where that "
            "stands in a pruned prompt is not known before the picture is encoded: prune it in transformers."
        )
    if family.has_windows:
        raise UnsupportedModelError(
            f"This {model_type!r} decoder has sliding windows, which are counted in the tokens of the unpruned prompt, "
            "and vLLM counts what is there: prune it in transformers."
        )
    if model_type in NOT_TESTED:
        raise UnsupportedModelError(
            f"Pruned models of type {model_type!r} have not been tested in vLLM: prune it in transformers."
        )
    if family.first_stage_layer > 1:
        raise UnsupportedModelError(
            f"This {model_type!r} decoder takes features of pictures in later layers as well (DeepStack), which are "
            "not served pruned: prune it in transformers, or serve Qwen2.5-VL."
        )
    # vLLM's own LLaVA has no DINOv2, and its OneVision shrinks all pictures to nine tiles.
    aspect = getattr(family.model.config, "vision_aspect_ratio", ANYRES_NINE)
    if model_type in NATIVE and encoder in (CLIP, SIGLIP, None) and aspect == ANYRES_NINE:
        return NATIVE[model_type]
    return BACKEND_MROPE if family.keeps_positions else BACKEND


def check_method(method: Pruner, family: ModelFamily, *, native: bool = True) -> None:
    """Raise unless a method can be served on a family.

    Args:
        native: whether on vLLM's own modules, which alone can be run over a picture by itself.

    Raises:
        UnsupportedModelError: it cannot.
    """
    decoder: dict[str, Any] = {"num_layers": family.num_layers, "normalised_keys": family.normalises_keys}
    check_entrance(method, **decoder, probe=True)
    if method.positions == "keep" and not family.keeps_positions:
        raise UnsupportedModelError(
            f"positions='keep' leaves gaps between positions, and vLLM counts without: set positions='compact' for "
            f"{method.name}."
        )
    try:
        check_entrance(method, **decoder)
    except UnsupportedModelError as error:
        if not native:
            raise UnsupportedModelError(
                f"{method.name} runs the first decoder layers over a picture by itself, which cannot be done on vLLM's "
                "Transformers backend: use a method that looks at the encoder alone, such as VisionZip."
            ) from error
        check_probe(family, 1)


def _names_code(settings: object) -> bool:
    """Whether settings of a method, or of one of its stages, name a class in a file or a module."""
    if isinstance(settings, dict):
        return ":" in str(settings.get("method", "")) or any(map(_names_code, settings.values()))
    return isinstance(settings, list | tuple) and any(map(_names_code, settings))


def _family_without_weights(config: PretrainedConfig) -> ModelFamily:
    known_family(config.model_type)
    own = copy.deepcopy(config)  # of which transformers makes its own, with settings that are no business of vLLM's
    with torch.device("meta"):
        return family_of(
            AutoModelForImageTextToText.from_config(own, attn_implementation="eager", trust_remote_code=False)
        )


def _checked_architecture(family: ModelFamily, architectures: list[str]) -> str:
    """The one that a config names, if the family is served as that."""
    model_type, expected = family.model.config.model_type, architecture_of(family)
    backend = BACKEND_MROPE if family.keeps_positions else BACKEND
    if architectures[:1] not in ([expected], [backend]):
        raise VitcopError(
            f"{unknown_name('architecture', next(iter(architectures), None), [expected, backend])} Models of type "
            f"{model_type!r} are served as {expected}."
        )
    vision = family.model.config.vision_config
    if architectures[0] == backend and vision.model_type == "siglip_vision_model" and vision.vision_use_head:
        raise UnsupportedModelError(
            "vLLM's Transformers backend cannot run a SigLIP encoder with its pooling head, which makes no feature: "
            'set "vision_use_head": false in its vision_config.'
        )
    return architectures[0]
