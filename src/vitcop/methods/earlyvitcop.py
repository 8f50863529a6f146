"""ViTCoP's first two stages before the decoder, the second by the key norms of a probe."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BudgetError
from ..ops.saliency import key_norm
from ..selection.bases import EntrancePruner
from ..selection.pruner import Description
from ..selection.stage_shape import StageShape
from ..selection.tokens import Selection, VisualTokens
from .vitcop import (
    SalientClusters,
    centre_fraction_at,
    check_reach,
    check_share,
    lack_of_largest,
    merge_clusters,
)


@dataclass(frozen=True)
class EarlyViTCoP(EntrancePruner):
    """Keeps the most salient tokens, and merges those of each cluster whose key norms are large in the first layers of
    the decoder, all at its entrance.

    `ViTCoP` for where all layers must hold the same tokens, as in servers, whose KV caches have one length. Based on
    the first two stages of the paper's three (arXiv 2601.17818, AAAI 2026).

    1. The most salient tokens stay, and are clustered: stage 1 of `ViTCoP`.
    2. A probe: the first decoder layers are run over the token that prompts begin with and what step 1 leaves of each
       image, by itself. By the key norms of the last of them, members of each cluster stay, and the rest of it is
       merged into one token: stage 2 of `ViTCoP`.

    Decoders that normalise their keys take the saliency of step 1 in the place of key norms, and need no probe.

    What is kept of a picture is the same for every question, and whatever stands before it.

    Differences from the paper: there is no stage 3, so that `retention` is what enters the decoder, and all its layers
    hold as much; merged are projected features, and not hidden states before the shallow layer; the keys are those of
    a prompt in which nothing but its first token stands before the image, whose tokens are numbered without gaps, or by
    their rows and columns where positions have axes. Newlines and other separators are left out of it.

    Cost: as of the first stage of `ViTCoP`, and the first decoder layers over what that leaves, once more.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        vision_retention: share that step 1 leaves, or `retention` if that is more. The paper's is 0.3 to 0.5, where it
            counts in the average; here it costs a probe, and by default is the most of these.
        centre_fraction: clusters per token that step 1 leaves; None solves it from `retention`, as in `ViTCoP`.
        shallow_layer: decoder layer up to which the probe runs, at least 2, since the key norms of layer 0 rank tokens
            the wrong way round; those of the layer before it count.
        cutoff, radius: as in `ViTCoP`.
    """

    described = Description(where="entrance", signal="saliency, clusters, key norms of a probe", merges=True)

    vision_retention: float = 0.5
    centre_fraction: float | None = None
    shallow_layer: int = 2
    cutoff: float | None = None
    radius: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("vision_retention", self.vision_retention)
        check_share("centre_fraction", self.centre_fraction)
        check_reach(self.cutoff, self.radius)
        if self.shallow_layer < 2:
            raise BudgetError(f"EarlyViTCoP needs 2 <= shallow_layer; got {self.shallow_layer}.")

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        if self.shallow_layer > num_layers:
            raise BudgetError(
                f"EarlyViTCoP needs shallow_layer <= {num_layers}, the number of decoder layers; got "
                f"{self.shallow_layer}."
            )
        return super().budgets(num_tokens, num_layers, first_layer)

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        salient = tuple(self._salient(n, kept) for n, kept in zip(tokens.lengths, budget, strict=True))
        first = self._clusters.select(tokens, salient)
        if salient == budget:
            return first
        left = replace(tokens, labels=first.labels).take(first.keep, salient)
        second = merge_clusters(left, self._insignificance(left), budget)
        assert second.merge is not None
        merge = torch.full_like(tokens.rows, -1).scatter(0, first.keep, second.merge)
        return Selection(first.keep[second.keep], merge, second.reduction, first.labels)

    def selection_flops(self, stage: StageShape) -> int:
        salient = self._salient(stage.before, stage.after)
        flops = self._clusters.selection_flops(replace(stage, after=salient))
        probed = salient > stage.after and not stage.normalised_keys
        return flops + (stage.probe(self.shallow_layer, salient) if probed else 0)

    @property
    def _clusters(self) -> SalientClusters:
        fraction, tokens = self.centre_fraction, self.tokens if self.centre_fraction is None else None
        return SalientClusters(fraction or centre_fraction_at(self.retention), self.cutoff, self.radius, tokens)

    def _salient(self, num_tokens: int, kept: int) -> int:
        """Tokens that step 1 leaves of an image of which so many are kept in the end."""
        return max(kept, math.floor(self.vision_retention * num_tokens + 1e-9))

    def _insignificance(self, tokens: VisualTokens) -> Float[Tensor, " visual"]:
        if tokens.normalised_keys:
            return lack_of_largest(tokens.saliency, tokens.lengths)
        return key_norm(tokens.probed_keys(self.shallow_layer))
