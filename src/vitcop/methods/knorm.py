"""Pruning by key norm alone: ViTCoP's language-side signal as a method of its own."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..errors import BudgetError
from ..ops.saliency import key_norm
from ..pruner import Description, ScorePruner, check_retention
from ..schedule import solve
from ..tokens import VisualTokens


@dataclass(frozen=True)
class KNorm(ScorePruner):
    """Keeps the tokens whose keys have the smallest L2 norm, once, before decoder layer `layer`.

    Based on "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression"
    (arXiv 2406.11430), here on the mean of the KV heads and for visual tokens only.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        layer: the decoder layer before which tokens are dropped; at least 2, since the norms of layer 0
            rank tokens the wrong way round. None is the earliest possible one.

    Where the decoder normalises its keys (QK-norm: Qwen3, Gemma 3), what is left of the norms is how far the
    heads agree; they are used all the same, since they are this method.
    """

    described = Description(venue="EMNLP", year=2024, arxiv="2406.11430", where="layer 2", signal="key norms")

    retention: float = 1 / 9
    layer: int | None = None

    def __post_init__(self) -> None:
        check_retention(self.retention)
        if self.layer is not None and self.layer < 2:
            raise BudgetError(f"KNorm needs keys of layer 1 or later, so its layer is at least 2; got {self.layer}.")

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        layer = max(2, first_layer) if self.layer is None else self.layer
        return solve(self.name, self.retention, num_tokens, num_layers, [layer])

    def score(self, tokens: VisualTokens) -> Float[Tensor, " visual"]:
        return -key_norm(tokens.keys)
