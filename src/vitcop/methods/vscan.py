"""VScan: global and local scans of the encoder, and a cut in the middle of the decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.matching import most_similar
from ..ops.segments import indices_of, rank_in_segment, segment_sum, upload
from ..selection.pruner import Description, Pruner, Selector, check_layer
from ..selection.schedule import solve
from ..selection.stage_shape import StageShape
from ..selection.tokens import EncoderSignal, Selection, VisualTokens
from .fastv import FastV

WINDOW = 6
"""Rows and columns of tokens in a window of the local scan."""

SHALLOW = EncoderSignal(depth=6 / 24)


@dataclass(frozen=True)
class TwoScans(Selector):
    """VScan's first stage: half of the tokens by windows, half globally, and the others merged into them."""

    encoder_signals = (SHALLOW,)

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        quotas, count = tokens.quotas(budget), len(tokens.shapes)
        locally = upload([quota // 2 for quota in quotas], tokens.index.device)
        window, windows = _windows(tokens)
        shares = _share_among_windows(locally, window, windows)
        local = rank_in_segment(-tokens.encoder_signal(SHALLOW), window, windows) < shares[window]
        # Chosen locally first, then the most salient of the others.
        rank = rank_in_segment(-tokens.saliency, tokens.segments, count) - len(local) * local.long()
        allowed = upload(quotas, rank.device)[tokens.segments]
        keep = rank_in_segment(rank, tokens.segments, count) < allowed
        match = most_similar(tokens.hidden_states, tokens.lengths, keep, budget)
        row = torch.arange(len(match), device=match.device)
        group = (keep.cumsum(0) - 1)[torch.where(keep, row, match)]
        return Selection(indices_of(keep, sum(budget)), tokens.groups(group, keep, budget))

    def selection_flops(self, stage: StageShape) -> int:
        """Saliency in two layers, and `2 n k h` for the cosines of n tokens to the k that stay."""
        shown = stage.saliency + stage.encoder_signal(SHALLOW)
        return shown + 2 * stage.before * stage.after * stage.hidden


@dataclass(frozen=True)
class VScan(Pruner):
    """Keeps what is salient in each window and in the whole, merges the rest, and cuts in the middle of the decoder.

    Based on "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models" (arXiv 2505.22654,
    2025).

    1. Entering the decoder, half of the tokens are those to which [CLS] attends most at 6/24 of the encoder's depth,
       in each window of 6 x 6 tokens by itself; the other half are the most salient of all others in the layer of
       the features. Every other token is averaged into the most similar one that stays, by the cosine of projected
       features.
    2. Before the middle layer, the tokens to which the last token of the prompt attends most stay, a third: `FastV`'s
       choice.

    In encoders without [CLS] saliency is attention received. Tiles and frames share the budget by their sizes.

    Differences from the authors' code: what the two scans both choose is made up for by the next most salient; windows
    at the borders of other grids are smaller, and share in proportion.

    Cost: saliency in two encoder layers, N x V cosines, one softmax row.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
        layer: the decoder layer before which the second stage stands, at least 1; None is the middle.
    """

    described = Description(
        venue="arXiv",
        year=2025,
        arxiv="2505.22654",
        where="entrance, middle layer",
        signal="saliency, two depths; attention of last token",
        merges=True,
        rows="1 row",
    )
    presets = {"paper": {192: {0: 288, 16: 96}, 128: {0: 192, 16: 64}, 64: {0: 96, 16: 32}}}
    default_positions = "compact"
    encoder_signals = (SHALLOW,)
    earliest = 1

    retention: float = 1 / 9
    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layer(self, self.layer)

    @property
    def stages(self) -> tuple[Selector, Selector]:
        """The two stages, each of which can be a stage of a `Pipeline` as well."""
        return TwoScans(), FastV()

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        layer = max(first_layer, num_layers // 2) if self.layer is None else self.layer
        return solve(self.name, self.retention, num_tokens, num_layers, [0, layer], [(1 / 2, 1 / 6)])

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        return self.stages[tokens.stage].select(tokens, budget)

    def selection_flops(self, stage: StageShape) -> int:
        return self.stages[stage.stage].selection_flops(stage)


def _windows(tokens: VisualTokens) -> tuple[Tensor, int]:
    """The window of each token, counted over all grids, and how many there are at most."""
    down, across = (-(-max(sizes) // WINDOW) for sizes in zip(*tokens.shapes, strict=True))
    row, column = (tokens.cells // WINDOW).unbind(1)
    return (tokens.segments * down + row) * across + column, len(tokens.shapes) * down * across


def _share_among_windows(quota: Tensor, window: Tensor, windows: int) -> Tensor:
    """Tokens that each window keeps of what its grid keeps, in proportion to its size, by the largest remainder."""
    grid_of = torch.arange(windows, device=window.device) // (windows // len(quota))
    size = segment_sum(torch.ones_like(window), window, windows)
    total = segment_sum(size, grid_of, len(quota)).clamp(min=1)
    share, rest = size * quota[grid_of] // total[grid_of], size * quota[grid_of] % total[grid_of]
    missing = quota - segment_sum(share, grid_of, len(quota))
    return share + (rank_in_segment(-rest, grid_of, len(quota)) < missing[grid_of]).long()
