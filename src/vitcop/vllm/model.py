"""What vLLM's models are mixed with: what the encoder makes of pictures is pruned before it leaves for the decoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.logger import init_logger

from ..entrance import Probe, PrunedFeatures, prune_features
from ..errors import VitcopError
from ..models import Observation
from ..models.base import Call
from .engine import check_engine
from .processing import TOLD
from .served import Served, configured

logger = init_logger("vllm.vitcop")


class PrunedModel:
    """Mixed into a model of vLLM, before its own class.

    Attributes:
        served: the method, and the family without weights.
    """

    served: Served
    _probe: Probe | None = None
    _told = False

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        served = configured(vllm_config.model_config.hf_config, vllm_config.model_config.hf_overrides)
        check_engine(vllm_config, served.family)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.served, self._fingerprint = served, served.fingerprint

    def embed_multimodal(self, **call: Any) -> list[Tensor]:
        """What the method leaves of each picture.

        Args:
            call: as vLLM's own class takes it, and what the front end tells (`TOLD`).

        Raises:
            VitcopError: another method left these, or they are not as many as are left.
        """
        if not call:
            return []
        told = call.pop(TOLD, None)
        if told is None:
            raise VitcopError(
                "Pictures arrive from a front end that does not prune: start all processes by `vitcop serve`, with the "
                "plug-in installed in each of their environments."
            )
        placeholders, fingerprints = told.unbind(-1)
        if any(fingerprint != self._fingerprint for fingerprint in fingerprints.tolist()):
            raise VitcopError(
                "Front end and workers prune by different methods or versions of vitcop: start all of them by the same "
                "command, in the same environment."
            )
        features, observation = self._encoded(call)
        left = prune_features(self.served.method, self.served.family, observation, features, probe=self._probe)
        counts = [len(image.features) for image in left]
        if counts != placeholders.tolist():
            raise VitcopError(
                f"{counts} tokens are left of pictures whose prompts hold {placeholders.tolist()}; please report this, "
                "with the model and the sizes of the pictures."
            )
        if not self._told:
            self._told = True
            method = self.served.method.to_json()
            logger.info(
                "vitcop: %s leaves %s of the %s placeholders of the first picture.", method, counts[0], len(features[0])
            )
        return self._placed(call, left)

    def _features(self, call: Call) -> list[Tensor]:
        """Of each picture, as vLLM's own class makes them."""
        return list(super().embed_multimodal(**call))  # type: ignore[misc]

    def _encoded(self, call: Call) -> tuple[list[Tensor], Observation]:
        """Features of each picture, and what the encoder showed of them."""
        raise NotImplementedError

    def _placed(self, call: Call, left: list[PrunedFeatures]) -> list[Tensor]:
        """What goes to the decoder."""
        return [image.features for image in left]
