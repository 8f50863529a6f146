"""DeFT: a reserve of salient tokens until the text has chosen, halfway through the decoder."""

from __future__ import annotations

from dataclasses import dataclass

from ..ops.segments import smallest_per_segment
from ..selection.pruner import Description, Pruner, attention_of_text
from ..selection.schedule import solve
from ..selection.stage_shape import StageShape
from ..selection.tokens import Selection, VisualTokens

RESERVE = 0.2
"""Share of the tokens to be dropped that are left until the middle of the decoder."""
FEWEST = 0.1
"""Share of the tokens that the paper leaves at its heaviest pruning."""


@dataclass(frozen=True)
class DeFT(Pruner):
    """Keeps what is salient and a reserve at the entrance, and halfway through the decoder what the text looks at.

    Based on "When Text Matters: Design Principles for Visual Token Pruning in Vision-Language Models" (arXiv
    2609.34861, 2026).

    1. Entering the decoder, of N tokens the K + ceil(0.2 (N - K)) most salient in the vision encoder stay, where K
       shall be left in the end.
    2. Before the middle layer, the K stay to which the text attends most in the layer just before: mean over heads and
       over all text behind the image. How salient they are no longer counts.

    The paper drops 70, 80 and 90 % of the tokens in the end, of Qwen3-VL and LLaVA-OneVision-1.5; the presets are what
    that means on LLaVA-1.5-7B. The heaviest of these averages 0.19, and the reserve alone 0.1. So below 0.19, K and the
    reserve shrink together: 1/9 has a reserve of 0.11, where the paper tried 0.1 to 0.3.

    This is from the paper; of the authors' code, counts, layer and positions have been compared, which are kept by
    default. Differences: tiles and frames share the budget of the entrance by their sizes, and the reserve shrinks.

    Cost: the saliency, and softmax rows of all text behind the image, in one layer.

    Attributes:
        retention: share of the visual tokens alive, averaged over the decoder layers.
    """

    described = Description(
        venue="arXiv",
        year=2026,
        arxiv="2609.34861",
        where="entrance, middle layer",
        signal="saliency; attention of text",
        rows="rows of text",
    )
    presets = {"paper": {173: {0: 254, 16: 173}, 115: {0: 208, 16: 115}, 58: {0: 162, 16: 58}}}

    retention: float = 1 / 9

    def budgets(self, num_tokens: int, num_layers: int, first_layer: int = 1) -> dict[int, int]:
        layers = [0, max(first_layer, num_layers // 2)]
        heaviest = FEWEST + RESERVE * (1 - FEWEST), FEWEST
        return solve(self.name, self.retention, num_tokens, num_layers, layers, [heaviest])

    def select(self, tokens: VisualTokens, budget: tuple[int, ...]) -> Selection:
        if tokens.stage == 0:
            return Selection(tokens.smallest_of_grids(-tokens.saliency, tokens.quotas(budget)).sort().values)
        return Selection(smallest_per_segment(-attention_of_text(tokens, DeFT), tokens.lengths, budget))

    def selection_flops(self, stage: StageShape) -> int:
        return stage.saliency if stage.stage == 0 else stage.row(stage.text)
