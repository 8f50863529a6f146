"""ViTCoP and Census with one thing changed, to see what that thing is worth, at the same average retention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ..methods.census import Census
from ..methods.fastv import FastV
from ..methods.scope import SCOPE
from ..methods.vitcop import MergeClusters, MostSignificant, Ranking, SalientClusters, ViTCoP
from ..ops.saliency import key_norm
from ..selection.pruner import Pruner, Selector, question
from ..selection.schedule import solve
from ..selection.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class WithoutStage(ViTCoP):
    """ViTCoP but for one of its stages. The others share what is kept in the proportions that they have there.

    Without stage I all tokens enter the decoder, in the clusters that stage II needs.

    Attributes:
        left_out: number of the stage, from 0.
    """

    left_out: int = 0

    @property
    def stages(self) -> tuple[Selector, ...]:
        stages = super().stages
        return stages if self.left_out == 0 else stages[: self.left_out] + stages[self.left_out + 1 :]

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        whole = super().budgets(num_tokens, num_layers, first_layer)
        layers = [layer for number, layer in enumerate(whole) if number != self.left_out]
        shares = tuple(whole[layer] / num_tokens for layer in layers)
        return {0: num_tokens} | solve(
            "ViTCoP without a stage", self.retention, num_tokens, num_layers, layers, [shares]
        )


class MergeByMean(MergeClusters):
    """Stage II whose merged tokens are means, to which no median member is added."""

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        return replace(super().select(tokens, budget), reduction="mean")


class LargestMatter(Ranking):
    """Ranks by key norm the other way round, also where keys are normalised."""

    def significance(self, tokens: VisualTokens) -> Float[Tensor, " visual"]:
        return key_norm(tokens.keys)


class MergeByLargestNorms(LargestMatter, MergeClusters):
    """Stage II that keeps the members of largest key norm, and favours clusters of large norms."""


class LargestKeyNorms(LargestMatter, MostSignificant):
    """Stage III that keeps the tokens of largest key norm."""


class ScaleFreeClusters(SalientClusters):
    """Stage I that derives its cutoff from the data, also where one is known for the encoder."""

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        return super().select(replace(tokens, key_cutoff=None), budget)


class MergedByMean(ViTCoP):
    """ViTCoP with `MergeByMean`."""

    @property
    def stages(self) -> tuple[Selector, ...]:
        clusters, _, deep = super().stages
        return clusters, MergeByMean(), deep


class LargestNorms(ViTCoP):
    """ViTCoP with `MergeByLargestNorms` and `LargestKeyNorms`."""

    @property
    def stages(self) -> tuple[Selector, ...]:
        return super().stages[0], MergeByLargestNorms(), LargestKeyNorms()


class ScaleFree(ViTCoP):
    """ViTCoP with `ScaleFreeClusters`."""

    @property
    def stages(self) -> tuple[Selector, ...]:
        own, *later = super().stages
        return ScaleFreeClusters(**vars(own)), *later


class BySaliency(ViTCoP):
    """ViTCoP as it is where keys are normalised."""

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        return super().select(replace(tokens, normalised_keys=True), budget)


class CensusBySaliency(Census):
    """Census whose representatives are the most salient tokens."""

    def representatives(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Int[Tensor, " kept"]:
        return tokens.smallest_of_grids(-tokens.saliency, tokens.quotas(budget))


class CensusAsked(Census):
    """Census that weighs tokens by the question too: by how much nearer than the others each is to some word of it."""

    def weights(self, tokens: VisualTokens) -> Float[Tensor, " visual"]:
        text = question(tokens, Census)
        shown = normalize(tokens.hidden_states.float(), dim=-1).split(tokens.lengths)
        words = normalize(text.embeddings.float(), dim=-1).split(text.lengths)
        cosines = [visual @ behind.mT for visual, behind in zip(shown, words, strict=True)]
        nearer = [(cosine - cosine.mean(0)) / cosine.std(0, correction=0).clamp(min=1e-6) for cosine in cosines]
        relevance = torch.cat([deviations.amax(1) for deviations in nearer])
        return super().weights(tokens) * (relevance.clamp(min=0) + 0.1) ** self.alpha


class CensusAsSCOPE(Census):
    """Census whose representatives are those of SCOPE, which covers all tokens alike, at the same power of saliency."""

    def representatives(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Int[Tensor, " kept"]:
        return SCOPE(alpha=self.alpha).select(tokens, budget).keep


class CensusAlone(Census):
    """Census that drops what it does not keep."""

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        return Selection(self.representatives(tokens, budget).sort().values)


class CensusThenLastQuery(Census):
    """Census that lets more tokens in, of which the last token of the prompt chooses halfway through the decoder."""

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        middle = max(first_layer, num_layers // 2)
        return solve("Census with a late stage", self.retention, num_tokens, num_layers, [0, middle], [(0.2, 0.05)])

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        return super().select(tokens, budget) if tokens.stage == 0 else FastV().select(tokens, budget)


VITCOP: dict[str, Callable[[float], Pruner]] = {
    "paper": ViTCoP,
    "without stage I": partial(WithoutStage, left_out=0),
    "without stage II": partial(WithoutStage, left_out=1),
    "without stage III": partial(WithoutStage, left_out=2),
    "clusters without space": partial(ViTCoP, radius=2.0),
    "merge by mean": MergedByMean,
    "largest norms": LargestNorms,
    "positions keep": partial(ViTCoP, positions="keep"),
    "cutoff fixed 8": partial(ViTCoP, cutoff=8.0),
    "cutoff scale-free": ScaleFree,
    "last query": partial(ViTCoP, deep_signal="last_query"),
    "question": partial(ViTCoP, shallow_signal="question", deep_signal="question"),
    "saliency": BySaliency,
}
"""Name -> the variant of ViTCoP at a retention; it raises `BudgetError` where its schedule cannot average that.

* paper: the method as it is by default
* without stage I: all tokens enter, in clusters; stages II and III keep less
* without stage II: clusters are neither thinned out nor merged; stages I and III keep less
* without stage III: what stage II leaves goes through to the last layer; stages I and II keep less
* clusters without space: a token may follow one at the other end of the picture
* merge by mean: a merged token is the mean of its group, without the median member besides
* largest norms: stages II and III take large key norms for important
* positions keep: tokens stay at their places in the unpruned prompt; the default numbers them anew
* cutoff fixed 8: the density cutoff of CLIP ViT-L/14-336, whatever the encoder
* cutoff scale-free: the cutoff derived from the data, whatever the encoder; the default where none is known for it
* last query: stage III by the attention of the last prompt token
* question: stages II and III by the attention of all text behind the picture
* saliency: stages II and III by the saliency of stage I, as where the decoder normalises its keys
"""

CENSUS: dict[str, Callable[[float], Pruner]] = {
    "counted": Census,
    "not counted": partial(Census, calibrate="none"),
    "by distance": partial(Census, calibrate="distance"),
    "not merged": partial(CensusAlone, calibrate="none"),
    "covered alike": CensusAsSCOPE,
    "by coverage alone": partial(Census, alpha=0.0),
    "by saliency alone": CensusBySaliency,
    "by question": CensusAsked,
    "numbered anew": partial(Census, positions="compact"),
    "then last query": CensusThenLastQuery,
}
"""The same of Census.

* counted: the method as it is by default
* not counted: a token that stands for others counts once
* by distance: what is left counts more, besides, the further away it is
* not merged: what is not kept is dropped, and nothing counts for it
* covered alike: to cover a token is worth the same, however salient it is; representatives are SCOPE's
* by coverage alone: saliency does not count at all
* by saliency alone: representatives are the most salient tokens
* by question: tokens weigh more, besides, that are nearer than others to some word of the question
* numbered anew: without gaps; the default leaves tokens at their places in the unpruned prompt
* then last query: more enter, of which a quarter goes on halfway, by the attention of the last prompt token
"""
ABLATIONS = {"vitcop": VITCOP, "census": CENSUS}
"""Method -> its variants, of which the first is the method itself."""
VARIANTS = VITCOP | CENSUS
