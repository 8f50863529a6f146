"""ViTCoP: visual and textual semantic collaborative pruning, in three stages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import BudgetError, VitcopError, check_tokens
from ..ops.cluster import density_peaks, num_centres
from ..ops.saliency import key_norm
from ..ops.segments import (
    indices_of,
    is_real,
    pad_segments,
    padded_lengths,
    per_segment,
    segment_ids,
    share_out,
    smallest_per_segment,
    unpad_segments,
    upload,
)
from ..selection.pruner import LITERATURE_TOKENS, Description, Pruner, Selector, attention_of_text
from ..selection.stage_shape import StageShape
from ..selection.tokens import Selection, VisualTokens

DEEP_RATIO = 1 / 5

LanguageSignal = Literal["key_norm", "last_query", "question"]
"""What stages II and III rank by: see `ViTCoP.deep_signal`."""


@dataclass(frozen=True)
class SalientClusters(Selector):
    """ViTCoP's stage I: keeps the most salient tokens, and clusters them (VIC) for `MergeClusters`.

    Attributes:
        centre_fraction, cutoff, radius: as in `ViTCoP`.
        tokens: of an image, on average over the decoder layers; if given, the share that these are of it gives its
            `centre_fraction`, as in `ViTCoP`.
    """

    centre_fraction: float = 0.12
    cutoff: float | None = None
    radius: float = 0.6
    tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("centre_fraction", self.centre_fraction)
        check_reach(self.cutoff, self.radius)
        if self.tokens is not None:
            check_tokens(self.tokens)

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        shares = tokens.shares_of_grids(budget)
        quotas = [quota for share in shares for quota in share]
        rows = tokens.smallest_of_grids(-tokens.saliency, quotas)
        centres = [
            [num_centres(fraction, quota) if quota else 0 for quota in share]
            for fraction, share in zip(map(self._fraction, tokens.lengths), shares, strict=True)
        ]
        cluster = density_peaks(
            tokens.keys[rows].flatten(1),
            tokens.grid[rows],
            [quota for quota in quotas if quota],
            [count for share in centres for count in share if count],
            cutoff=self.cutoff or tokens.key_cutoff,
            radius=self.radius,
        )
        # Clusters are counted anew in each grid, but told apart by image.
        before = [first for share in centres for first in [0, *accumulate(share)][:-1]]
        if any(before):
            cluster = cluster + upload(before, cluster.device)[segment_ids(quotas, cluster.device)]
        labels = torch.full_like(tokens.rows, -1).scatter(0, rows, cluster)
        keep = rows if tokens.entrance.by_grid is None else rows.sort().values
        return Selection(keep, labels={"cluster": labels})

    def selection_flops(self, stage: StageShape) -> int:
        """Saliency, and `2 n^2 w` for the distances between the n keys of width w that are kept of each grid."""
        shares = padded_lengths(share_out(stage.after, stage.grids))
        return stage.saliency + sum(2 * share**2 * stage.key_width for share in shares)

    def _fraction(self, num_tokens: int) -> float:
        """Clusters per token that is kept of an image."""
        if self.tokens is None:
            return self.centre_fraction
        return centre_fraction_at(min(1.0, self.tokens / num_tokens))


@dataclass(frozen=True)
class Ranking(Selector):
    """A stage that ranks tokens by how little they matter, which the key norms of layer 0 tell the wrong way round.

    Attributes:
        signal: as `ViTCoP.deep_signal`.
    """

    earliest = 2

    signal: LanguageSignal = "key_norm"

    def significance(self, tokens: VisualTokens) -> Float[Tensor, " visual"] | None:
        """How much each token matters: its attention, or its saliency, where keys are normalised; None where small key
        norms do.
        """
        if self.signal == "last_query":
            return tokens.attention()
        if self.signal == "question":
            return attention_of_text(tokens, ViTCoP)
        return tokens.saliency if tokens.normalised_keys else None

    def selection_flops(self, stage: StageShape) -> int:
        """Rows of attention, if it looks at these."""
        return {"key_norm": 0, "last_query": stage.row(), "question": stage.row(stage.text)}[self.signal]


@dataclass(frozen=True)
class MergeClusters(Ranking):
    """ViTCoP's stage II: every cluster keeps its quota of members and leaves the rest as one merged token.

    Small key norms matter; where the decoder normalises keys, large saliency does in their place. By other signals,
    large attention does.

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
        significance = self.significance(tokens)
        if significance is None:
            return merge_clusters(tokens, key_norm(tokens.keys), budget)
        return merge_clusters(tokens, lack_of_largest(significance, tokens.lengths), budget)


@dataclass(frozen=True)
class MostSignificant(Ranking):
    """ViTCoP's stage III: keeps the tokens of smallest key norm, or, where keys are normalised, largest saliency.

    By other signals, it keeps those of largest attention.
    """

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        significance = self.significance(tokens)
        insignificance = key_norm(tokens.keys) if significance is None else -significance
        return Selection(smallest_per_segment(insignificance, tokens.lengths, budget))


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
    There, stages 2 and 3 take the saliency of stage 1 in the place of key norms, unless `shallow_signal` and
    `deep_signal` say what else.

    What is kept of a picture that stands before the question is the same for every question, unless one of these
    signals is another than "key_norm".

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
        shallow_signal: what stage 2 ranks by, as `deep_signal`.
        deep_signal: what stage 3 ranks by. "key_norm" is the paper's; "last_query" is the attention of the last token
            of the prompt in the layer before, one softmax row, as in `FastV`; "question" that of all text behind the
            image, mean over its tokens, as in `DeFT`. What is kept then depends on the question.
        cutoff: density cutoff of the clustering, in units of the vision encoder's keys; None takes the
            one known for the encoder, and otherwise derives it from the data.
        radius: how far apart, as a share of the picture's side, a token and the one it follows may be.
        positions: "compact" numbers the tokens that enter the language model consecutively, as the
            paper does; "keep" leaves each at its place in the unpruned prompt, which the small model in the box
            answers better (docs/results/ablations-test.md).
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
    default_positions = "compact"

    retention: float = 1 / 9
    vision_retention: float | None = None
    centre_fraction: float | None = None
    shallow_layer: int | None = None
    deep_layer: int | None = None
    deep_ratio: float | None = None
    shallow_signal: LanguageSignal = "key_norm"
    deep_signal: LanguageSignal = "key_norm"
    cutoff: float | None = None
    radius: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vision_retention", "centre_fraction", "deep_ratio"):
            check_share(name, getattr(self, name))
        check_reach(self.cutoff, self.radius)
        shallow = 2 if self.shallow_layer is None else self.shallow_layer
        if shallow < 2 or (self.deep_layer is not None and self.deep_layer <= shallow):
            raise BudgetError(
                f"ViTCoP needs 2 <= shallow_layer < deep_layer; got {self.shallow_layer} and {self.deep_layer}."
            )

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
        return self.stages[stage.stage].selection_flops(stage)

    @property
    def stages(self) -> tuple[Selector, ...]:
        """The three stages, each of which can be a stage of a `Pipeline` as well."""
        fraction, tokens = self.centre_fraction, self.tokens if self.centre_fraction is None else None
        clusters = SalientClusters(fraction or centre_fraction_at(self.retention), self.cutoff, self.radius, tokens)
        return clusters, MergeClusters(self.shallow_signal), MostSignificant(self.deep_signal)

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
            if r * num_tokens < 1 - 1e-9:
                return 1, 1, 1
            vision = _vision_retention(r, L, s, d, ratio)
        entering = max(1, math.floor(vision * num_tokens + 1e-9))
        if self.deep_ratio is None:
            # Above what stage 2 can spend with B = A, the deep layers have to keep more than 1/5 of it.
            ratio = min(1.0, max(ratio, (L * r * num_tokens / entering - d) / (L - d)))

        def deep_count(shallow: int) -> int:
            return min(shallow, max(1, round(ratio * shallow)))

        def excess(shallow: int) -> float:
            spent = s * entering + (d - s) * shallow + (L - d) * deep_count(shallow)
            return spent / L - r * num_tokens

        if self.vision_retention is None and excess(entering) < -1 and entering < num_tokens:
            entering += 1  # rounded down, it left too little even if nothing is dropped before the deep layers
        shallow = round((L * r / vision - s) / ((d - s) + (L - d) * ratio) * entering)
        shallow = min(entering, max(1, shallow))
        # Rounding three counts can add up to more than one token: step back towards the average.
        while excess(shallow) > 1 and shallow > 1:
            shallow -= 1
        while excess(shallow) < -1 and shallow < entering:
            shallow += 1
        if abs(excess(shallow)) > 1:
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


def check_share(name: str, value: float | None) -> None:
    """Raise for a share of tokens that is none."""
    if value is not None and not 0 < value <= 1:
        raise BudgetError(f"{name} is a share, above 0 and at most 1; got {value}.")


def check_reach(cutoff: float | None, radius: float) -> None:
    """Raise for distances of the clustering that are none."""
    if cutoff is not None and not cutoff > 0:
        raise BudgetError(f"cutoff is a distance and must be above 0; got {cutoff}.")
    if radius < 0:
        raise BudgetError(f"radius is a distance and cannot be negative; got {radius}.")


def lack_of_largest(values: Float[Tensor, " rows"], lengths: tuple[int, ...]) -> Float[Tensor, " rows"]:
    """What each value, none of which is negative, lacks of its segment's largest: never negative, so that sums over
    clusters favour small ones.
    """
    padded = pad_segments(values.double(), lengths)  # of large ones, small differences would be lost
    return unpad_segments(padded.amax(1, keepdim=True) - padded, lengths)


def merge_clusters(
    tokens: VisualTokens, insignificance: Float[Tensor, " visual"], budget: tuple[int, ...]
) -> Selection:
    """`MergeClusters` on one padded row per image. The last bin of each row takes what belongs to no cluster.

    Counts are kept in float64, in which they are exact, so that nothing is converted on the way.
    """
    lengths, device = tokens.lengths, tokens.rows.device
    # As many clusters as tokens came to the decoder: some may have lost all their members since.
    bins = max(tokens.entered_lengths)
    real = is_real(lengths, device)
    padding = ~real
    length, allowed = per_segment(lengths, device), per_segment(budget, device)
    # Finite even of a picture that is not, since an infinite weight says that a cluster is empty.
    insignificance = pad_segments(insignificance.nan_to_num().double(), lengths)
    cluster = pad_segments(tokens.labels["cluster"], lengths).masked_fill(padding, bins)

    size = _histogram(cluster, bins + 1)
    empty = size == 0
    weight = torch.zeros_like(size).scatter_add(1, cluster, insignificance).masked_fill(empty, math.inf)
    lightest = weight[:, :-1].argsort(dim=1, stable=True)
    clusters = bins - empty[:, :-1].sum(1, keepdim=True)

    quota = _quotas(size[:, :-1], lightest, length - clusters, allowed - clusters)
    stays = _most_significant(cluster, insignificance, size, quota) | (real & (length == allowed))
    group = _groups(cluster, lightest, clusters, allowed).masked_fill(stays | padding, bins)
    return _merge_groups(group, stays, bins, lengths, sum(budget))


def _most_significant(
    cluster: Int[Tensor, "images tokens"],
    insignificance: Float[Tensor, "images tokens"],
    size: Float[Tensor, "images bins"],
    quota: Float[Tensor, "images clusters"],
) -> Bool[Tensor, "images tokens"]:
    """Which tokens are among the `quota` least insignificant of their cluster."""
    by_insignificance = insignificance.argsort(dim=1, stable=True)
    of_cluster, order = cluster.gather(1, by_insignificance).sort(dim=1, stable=True)
    first_to_go = size.cumsum(1) - size
    first_to_go[:, :-1].add_(quota)
    stays = torch.arange(cluster.shape[1], device=cluster.device) < first_to_go.gather(1, of_cluster)
    return torch.empty_like(stays).scatter(1, by_insignificance.gather(1, order), stays)


def _groups(
    cluster: Int[Tensor, "images tokens"],
    lightest: Int[Tensor, "images clusters"],
    clusters: Int[Tensor, "images 1"],
    allowed: int | Int[Tensor, "images 1"],
) -> Int[Tensor, "images tokens"]:
    """The group that each token is merged in, if it does not stay: its cluster, or, where there are more clusters than
    `allowed` tokens, each of the lightest by itself and all the others together. Without meaning for padding.
    """
    number = torch.arange(lightest.shape[1], device=lightest.device)
    rank = torch.empty_like(lightest).scatter(1, lightest, number.expand_as(lightest))
    group = torch.where(clusters <= allowed, number, rank.clamp(max=allowed - 1))
    return group.gather(1, cluster.clamp(max=len(number) - 1))


def _merge_groups(
    group: Int[Tensor, "images tokens"],
    stays: Bool[Tensor, "images tokens"],
    groups: int,
    lengths: tuple[int, ...],
    count: int,
) -> Selection:
    """Keeps what stays, and the median member of each group with the group merged into it.

    Args:
        group: number of each token's group, `groups` for none.
        count: tokens kept in all.
    """
    size = _histogram(group, groups + 1)
    middle = (size.cumsum(1) - size + size // 2)[:, :-1].long().clamp(max=group.shape[1] - 1)
    median = group.argsort(dim=1, stable=True).gather(1, middle)
    kept = stays | (size.new_zeros(group.shape).scatter_add(1, median, size[:, :-1]) > 0)

    slot = kept.flatten().cumsum(0).view_as(kept) - 1
    slot_of_group = torch.nn.functional.pad(slot.gather(1, median), (0, 1), value=-1)
    merge = slot_of_group.gather(1, group)
    return Selection(
        indices_of(unpad_segments(kept, lengths), count), unpad_segments(merge, lengths), reduction="add_mean"
    )


def _histogram(bins: Int[Tensor, "images tokens"], count: int) -> Float[Tensor, "images bins"]:
    """Tokens in each of `count` bins."""
    counts = torch.zeros(len(bins), count, dtype=torch.float64, device=bins.device)
    return counts.scatter(1, bins, 1, reduce="add")


def _quotas(
    size: Float[Tensor, "images clusters"],
    lightest: Int[Tensor, "images clusters"],
    spare: Int[Tensor, "images 1"],
    share: Int[Tensor, "images 1"],
) -> Float[Tensor, "images clusters"]:
    """Members that each cluster keeps unmerged: `share` of an image's `spare` tokens, in proportion; none of a negative
    share.

    Rounds half to even: in float64 a quotient of such integers is exact enough to tell halves from all others. Fewer
    than half of the clusters are rounded up or down too many, and at least as many clusters have room for the
    correction as need it, so that one pass makes it exact.

    Args:
        size: members of each cluster, 0 for none.
        lightest: clusters by ascending sum of their members' insignificance: the first are given to, and the last
            are taken from.
    """
    share, room = share.clamp(min=0), (size - 1).clamp(min=0)
    quota = (room * share / spare.clamp(min=1)).round()
    missing = share - quota.sum(1, keepdim=True)
    gives = missing > 0
    can_change = torch.where(gives, quota < room, quota > 0).gather(1, lightest)
    number = can_change.cumsum(1)
    number = torch.where(gives, number, number[:, -1:] + 1 - number)
    change = (can_change & (number <= missing.abs())) * missing.sign()
    return quota.scatter_add(1, lightest, change)


def _vision_retention(retention: float, L: int, s: int, d: int, ratio: float) -> float:
    """The share that stage 1 keeps: linear through the paper's settings, bent where no schedule would fit."""
    wanted = min(0.5, 0.3 + 0.9 * max(0.0, retention - 1 / 9))  # 0.3, 0.4 and 0.5 at 1/9, 2/9 and 1/3
    wanted = min(wanted, L * retention / (s + ((d - s) + (L - d) * ratio) / 9))  # keeps B above A/9
    return min(1.0, max(wanted, L * retention / (d + (L - d) * ratio)))  # keeps B at most A


def centre_fraction_at(retention: float) -> float:
    """Clusters per token: linear through the paper's 0.12, 0.15 and 0.18 at 1/9, 2/9 and 1/3."""
    return min(0.18, max(0.12, 0.12 + 0.27 * (retention - 1 / 9)))
