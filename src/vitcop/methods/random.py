"""Pruning at random: the floor that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..selection.bases import ScorePruner
from ..selection.pruner import Description, check_layer
from ..selection.schedule import solve
from ..selection.tokens import VisualTokens


@dataclass(frozen=True)
class Random(ScorePruner):
    """Keeps tokens at random, once, before decoder layer `layer`.

    Which ones follows from `seed` and the token's number in its image alone, so that a row of a batch
    keeps what it keeps alone, on every device.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        layer: the decoder layer before which tokens are dropped; 0 is the entrance of the language model.
        seed: another seed gives another choice.
    """

    described = Description(where="entrance", signal="none")

    retention: float = 1 / 9
    layer: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layer(self, self.layer)

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        return solve(self.name, self.retention, num_tokens, num_layers, [self.layer])

    def score(self, tokens: VisualTokens) -> Float[Tensor, " visual"]:
        return _hash(tokens.index + (self.seed % 2**31 << 32)).float()


def _hash(values: Int[Tensor, " visual"]) -> Int[Tensor, " visual"]:
    """Non-negative pseudo-random integers: the finaliser of SplitMix64, on wrapping 64-bit integers."""

    def shift(x: Tensor, bits: int) -> Tensor:
        return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical, where torch's own shift is arithmetic

    x = (values.to(torch.int64) + 1) * -0x61C8864680B583EB
    x = (x ^ shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ shift(x, 27)) * -0x6B2FB644ECCEEE15
    return shift(x ^ shift(x, 31), 40)  # 24 bits, which float32 holds exactly
