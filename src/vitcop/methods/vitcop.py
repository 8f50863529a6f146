"""ViTCoP: visual and textual semantic collaborative pruning, in three stages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..cost import StageShape
from ..errors import BudgetError, VitcopError
from ..ops.cluster import density_peaks, num_centres
from ..ops.saliency import key_norm
from ..ops.segments import (
    indices_of,
    padded_lengths,
    rank_in_segment,
    segment_sum,
    share_out,
    smallest_in_segments,
    smallest_per_segment,
)
from ..pruner import LITERATURE_TOKENS, Description, Positions, Pruner, Selector, check_retention
from ..tokens import Selection, VisualTokens

DEEP_RATIO = 1 / 5


@dataclass(frozen=True)
class SalientClusters(Selector):
    """ViTCoP's stage I: keeps the most salient tokens, and clusters them (VIC) for `MergeClusters`.

    Attributes:
        centre_fraction, cutoff, radius: as in `ViTCoP`.
    """

    centre_fraction: float = 0.12
    cutoff: float | None = None
    radius: float = 0.6

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        shares = tokens.shares_of_grids(budget)
        quotas = tokens.quotas(budget)
        keep = smallest_in_segments(-tokens.saliency, tokens.segments, quotas)
        kept = tokens.take(keep, budget)
        # A picture's tiles may lie across each other: cluster segment after segment, and put the labels back.
        order = kept.segments.argsort(stable=True)
        centres = [[num_centres(self.centre_fraction, quota) if quota else 0 for quota in share] for share in shares]
        cluster = density_peaks(
            kept.keys.flatten(1)[order],
            kept.grid[order],
            [quota for quota in quotas if quota],
            [count for share in centres for count in share if count],
            cutoff=self.cutoff or tokens.key_cutoff,
            radius=self.radius,
        )
        # Clusters are counted anew in each segment, but told apart by image.
        before = [first for share in centres for first in [0, *accumulate(share)][:-1]]
        cluster = cluster + torch.tensor(before, device=cluster.device)[kept.segments[order]]
        unclustered = torch.full_like(tokens.index, -1)
        return Selection(keep, labels={"cluster": unclustered.scatter(0, keep[order], cluster)})

    def selection_flops(self, stage: StageShape) -> int:
        """Saliency, and `2 n^2 w` for the distances between the n keys of width w that are kept of each grid."""
        shares = padded_lengths(share_out(stage.after, stage.grids))
        return stage.saliency + sum(2 * share**2 * stage.key_width for share in shares)


@dataclass(frozen=True)
class MergeClusters(Selector):
    """ViTCoP's stage II: every cluster keeps its quota of members and leaves the rest as one merged token.

    Small key norms matter; where the decoder normalises keys, large saliency does in their place.

    With K clusters among n tokens and a budget B: if K <= B, cluster c keeps
    `round((size_c - 1) / (n - K) * (B - K))` members of smallest key norm, repaired to B - K in all by
    favouring the clusters with the smallest sum of norms; otherwise the B - 1 clusters with the smallest
    sums become one token each, and all the others one more. A merged token stands at its group's median
    member, and is that member's hidden state plus the mean of the group.

    Raises:
        VitcopError: no stage before it, such as `SalientClusters`, has clustered the tokens.
    """

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        if "cluster" not in tokens.labels:
            raise VitcopError("MergeClusters needs clusters; put SalientClusters before it.")
        return _merge_clusters(tokens, budget)


@dataclass(frozen=True)
class SmallestKeyNorms(Selector):
    """ViTCoP's stage III: keeps the tokens of smallest key norm, or, where keys are normalised, largest saliency."""

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        return Selection(smallest_per_segment(_insignificance(tokens), tokens.lengths, budget))


@dataclass(frozen=True)
class ViTCoP(Pruner):
    """Prunes at the vision encoder, in a shallow and in a deep decoder layer, without attention maps.

    Based on "ViTCoP: Accelerating Large Vision-Language Models via Visual and Textual Semantic
    Collaborative Pruning" (arXiv 2601.17818, AAAI 2026).

    1. Entering the language model, the most salient tokens stay, and are clustered: the patches to which
       [CLS] attends most, or, in encoders without it, those that receive most attention. Tiles and frames
       share the budget of their image or video by their sizes, and are ranked and clustered each by itself.
    2. Before `shallow_layer`, small key norms say which members of a cluster stay; the rest of each
       cluster is merged into one token.
    3. Before `deep_layer`, the tokens of smallest key norm stay.

    Decoders that normalise their keys (QK-norm: Qwen3, Gemma 3) give all keys of a head much the same norm.
    There, stages 2 and 3 take the saliency of stage 1 in its place.

    Differences from the authors' code: the schedule follows the model's own number of layers; density
    ties and tokens without a denser neighbour get a cluster by rule, not by accident; stage 3 keeps the
    positions of its tokens, which the authors renumber by mistake; quotas are rounded exactly.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        vision_retention: share that stage 1 keeps; None solves it from `retention`.
        centre_fraction: clusters per token that stage 1 keeps; None solves it from `retention`.
        shallow_layer: decoder layer before which stage 2 runs, at least 2, since the key norms of layer 0
            rank tokens the wrong way round; None is 2 of 32 layers, in proportion, or the earliest possible
            one after that.
        deep_layer: decoder layer before which stage 3 runs; None is 22 of 32 layers, in proportion.
        deep_ratio: tokens that stage 3 leaves, as a share of those that stage 2 left; None is 1/5, and
            grows where a high retention needs it.
        cutoff: density cutoff of the clustering, in units of the vision encoder's keys; None takes the
            one known for the encoder, and otherwise derives it from the data.
        radius: how far apart, as a share of the picture's side, a token and the one it follows may be.
        positions: "compact" numbers the tokens that enter the language model consecutively, as the
            paper does; "keep" leaves each at its place in the unpruned prompt.
    """

    described = Description(
        venue="AAAI",
        year=2026,
        arxiv="2601.17818",
        where="entrance, shallow, deep layer",
        signal="saliency, clusters, key norms",
        merges=True,
    )
    presets = {
        "paper": {
            192: {0: 288, 2: 253, 22: 51},
            128: {0: 230, 2: 165, 22: 33},
            64: {0: 172, 2: 77, 22: 15},
        }
    }

    retention: float = 1 / 9
    vision_retention: float | None = None
    centre_fraction: float | None = None
    shallow_layer: int | None = None
    deep_layer: int | None = None
    deep_ratio: float | None = None
    cutoff: float | None = None
    radius: float = 0.6
    positions: Positions = "compact"

    def __post_init__(self) -> None:
        check_retention(self.retention)
        for name in ("vision_retention", "centre_fraction", "deep_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise BudgetError(f"{name} is a share, above 0 and at most 1; got {value}.")
        if self.cutoff is not None and not self.cutoff > 0:
            raise BudgetError(f"cutoff is a distance and must be above 0; got {self.cutoff}.")
        if not self.radius >= 0:
            raise BudgetError(f"radius is a distance and cannot be negative; got {self.radius}.")
        if self.positions not in ("compact", "keep"):
            raise BudgetError(f"positions is 'compact' or 'keep'; got {self.positions!r}.")

    @classmethod
    def preset(cls, name: str, *, tokens: int, **settings: Any) -> ViTCoP:
        """The method by the average that the paper aims at, from which its own formula gives the schedule."""
        super().preset(name, tokens=tokens)
        return cls(**settings | {"retention": tokens / LITERATURE_TOKENS})

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        shallow_layer, deep_layer = self._stage_layers(num_layers, first_layer)
        entering, shallow, deep = self._token_counts(num_tokens, num_layers, shallow_layer, deep_layer)
        return {0: entering, shallow_layer: shallow, deep_layer: deep}

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        return self.stages[tokens.stage].select(tokens, budget)

    def selection_flops(self, stage: StageShape) -> int:
        return self.stages[0].selection_flops(stage) if stage.layer == 0 else 0

    @property
    def stages(self) -> tuple[Selector, Selector, Selector]:
        """The three stages, each of which can be a stage of a `Pipeline` as well."""
        centre_fraction = self.centre_fraction or _centre_fraction(self.retention)
        clusters = SalientClusters(centre_fraction, self.cutoff, self.radius)
        return clusters, MergeClusters(), SmallestKeyNorms()

    def _stage_layers(self, num_layers: int, first_layer: int) -> tuple[int, int]:
        shallow = self.shallow_layer if self.shallow_layer is not None else max(2, 2 * num_layers // 32, first_layer)
        deep = self.deep_layer if self.deep_layer is not None else max(shallow + 1, 22 * num_layers // 32)
        if not 2 <= shallow < deep < num_layers:
            raise BudgetError(
                f"ViTCoP needs 2 <= shallow_layer < deep_layer < {num_layers}, the number of decoder layers; "
                f"got {shallow} and {deep}."
            )
        return shallow, deep

    def _token_counts(self, num_tokens: int, num_layers: int, s: int, d: int) -> tuple[int, int, int]:
        """Tokens alive in layers 0..s-1, s..d-1 and d..L-1 for an image of `num_tokens`."""
        L, r = num_layers, self.retention
        ratio = DEEP_RATIO if self.deep_ratio is None else self.deep_ratio
        vision = self.vision_retention
        if vision is None:
            vision = _vision_retention(r, L, s, d, ratio)
        entering = max(1, math.floor(vision * num_tokens + 1e-9))
        if self.deep_ratio is None:
            # Above what stage 2 can spend with B = A, the deep layers have to keep more than 1/5 of it.
            ratio = min(1.0, max(ratio, (L * r / vision - d) / (L - d)))

        def deep_count(shallow: int) -> int:
            return min(shallow, max(1, round(ratio * shallow)))

        def excess(shallow: int) -> float:
            spent = s * entering + (d - s) * shallow + (L - d) * deep_count(shallow)
            return spent / L - r * num_tokens

        shallow = round((L * r / vision - s) / ((d - s) + (L - d) * ratio) * entering)
        shallow = min(entering, max(1, shallow))
        # Rounding three counts can add up to more than one token: step back towards the average.
        while excess(shallow) > 1 and shallow > 1:
            shallow -= 1
        while excess(shallow) < -1 and shallow < entering:
            shallow += 1
        if abs(excess(shallow)) > 1 or r * num_tokens < 1 - 1e-9:
            if self.vision_retention is None:
                low, high = 1 / num_tokens, 1.0 if self.deep_ratio is None else (d + (L - d) * ratio) / L
            else:
                most_deep = entering if self.deep_ratio is None else deep_count(entering)
                low = (s * entering + (d - s) + (L - d)) / (L * num_tokens)
                high = (d * entering + (L - d) * most_deep) / (L * num_tokens)
            raise BudgetError(
                f"ViTCoP cannot average retention={r:.4g} over {L} layers with {num_tokens} visual tokens and stages "
                f"before layers {s} and {d}; with these settings {low:.4g} to {high:.4g} is possible."
            )
        return entering, shallow, deep_count(shallow)


def _insignificance(tokens: VisualTokens) -> Float[Tensor, " visual"]:
    """How little each token matters, never negative: its key norm, or, where keys are normalised, what its saliency
    lacks of its image's largest. Sums over clusters then favour small ones, by either signal.
    """
    if not tokens.normalised_keys:
        return key_norm(tokens.keys)
    largest = tokens.saliency.new_zeros(len(tokens.lengths)).scatter_reduce(0, tokens.images, tokens.saliency, "amax")
    return largest[tokens.images] - tokens.saliency


def _merge_clusters(tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
    device = tokens.index.device
    images, longest = tokens.images, max(tokens.lengths)
    num_clusters = len(tokens.lengths) * longest  # a generous numbering, so that nothing is counted on the host
    cluster = images * longest + tokens.labels["cluster"]
    image_of = torch.arange(len(tokens.lengths), device=device).repeat_interleave(longest)

    insignificance = _insignificance(tokens).double()
    size = segment_sum(torch.ones_like(cluster), cluster, num_clusters)
    weight = segment_sum(insignificance, cluster, num_clusters).masked_fill(size == 0, math.inf)
    clusters = segment_sum((size > 0).long(), image_of, len(tokens.lengths))
    length = torch.tensor(tokens.lengths, device=device)
    allowed = torch.tensor(budget, device=device)

    quota = _quotas(size, weight, image_of, spare=length - clusters, share=allowed - clusters)
    few_clusters = (clusters <= allowed)[images]
    stays = few_clusters & (rank_in_segment(insignificance, cluster, num_clusters) < quota[cluster])

    order = rank_in_segment(weight, image_of, len(tokens.lengths))
    rank = torch.minimum(order[cluster], allowed[images] - 1)
    group = torch.where(few_clusters, cluster, images * longest + rank)
    group = group.masked_fill(stays, num_clusters)

    row = torch.arange(len(cluster), device=device)
    group_size = segment_sum(torch.ones_like(group), group, num_clusters + 1)
    median = ~stays & (rank_in_segment(row, group, num_clusters + 1) == group_size[group] // 2)

    untouched = (length == allowed)[images]
    kept = stays | median | untouched
    slot = kept.cumsum(0) - 1
    slot_of_group = torch.full((num_clusters + 1,), -1, device=device)
    slot_of_group = slot_of_group.scatter(0, group.masked_fill(~median, num_clusters), slot)
    merge = slot_of_group[group].masked_fill(stays | untouched, -1)
    return Selection(indices_of(kept, sum(budget)), merge, reduction="add_mean")


def _quotas(
    size: Int[Tensor, " clusters"],
    weight: Float[Tensor, " clusters"],
    image_of: Int[Tensor, " clusters"],
    *,
    spare: Int[Tensor, " images"],
    share: Int[Tensor, " images"],
) -> Int[Tensor, " clusters"]:
    """Members that each cluster keeps unmerged: `share` of an image's `spare` tokens, in proportion.

    Rounds half to even in integers. Fewer than half of the clusters are rounded up or down too many, and
    at least as many clusters have room for the correction as need it, so that one pass makes it exact.
    """
    room = (size - 1).clamp(min=0)
    total, wanted = spare.clamp(min=1)[image_of], share.clamp(min=0)[image_of]
    quota, rest = room * wanted // total, room * wanted % total
    quota = quota + ((2 * rest > total) | ((2 * rest == total) & (quota % 2 == 1)))

    missing = (share.clamp(min=0) - segment_sum(quota, image_of, len(share)))[image_of]
    can_give = weight.masked_fill(quota >= room, math.inf)
    can_take = (-weight).masked_fill(quota == 0, math.inf)
    lightest = rank_in_segment(can_give, image_of, len(share))
    heaviest = rank_in_segment(can_take, image_of, len(share))
    return quota + (lightest < missing).long() - (heaviest < -missing).long()


def _vision_retention(retention: float, L: int, s: int, d: int, ratio: float) -> float:
    """The share that stage 1 keeps: linear through the paper's settings, bent where no schedule would fit."""
    wanted = min(0.5, 0.3 + 0.9 * max(0.0, retention - 1 / 9))  # 0.3, 0.4 and 0.5 at 1/9, 2/9 and 1/3
    wanted = min(wanted, L * retention / (s + ((d - s) + (L - d) * ratio) / 9))  # keeps B above A/9
    return min(1.0, max(wanted, L * retention / (d + (L - d) * ratio)))  # keeps B at most A


def _centre_fraction(retention: float) -> float:
    """Clusters per token: linear through the paper's 0.12, 0.15 and 0.18 at 1/9, 2/9 and 1/3."""
    return min(0.18, max(0.12, 0.12 + 0.27 * (retention - 1 / 9)))
