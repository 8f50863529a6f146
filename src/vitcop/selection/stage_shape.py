"""What a method is told of a stage to say what its selection costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .tokens import EncoderSignal


@dataclass(frozen=True)
class StageShape:
    """Sizes at one stage of one image or video, from which a method tells what its selection costs.

    Attributes:
        layer: the decoder layer about to run; 0 is the entrance of the language model.
        stage: number of this stage in the schedule, from 0.
        before, after: visual tokens that come to the stage, and that stay.
        grids: visual tokens of each grid before pruning.
        prompt: all tokens of the prompt that come to the stage, visual and text.
        shown: all tokens of the prompt in the layer before, whose keys and attention the stage sees.
        text: text tokens behind the image.
        hidden: width of hidden states.
        query_width: heads times head size of the queries of the layer that `shown` speaks of.
        query_channels: what their projection makes of a token: twice as much where it makes gates as well.
        key_width, head_dim: heads times head size of `VisualTokens.keys`, and the head size: the vision encoder's at
            layer 0, those of the layer that `shown` speaks of later.
        ahead_query_width, ahead_query_channels, ahead_key_width: the same of the layer about to run, whose queries and
            keys `VisualTokens.queries_ahead` and `keys_ahead` are.
        saliency: floating point operations of the saliency and the keys that the entrance shows.
        encoder_signal: the same, of what one encoder layer shows, from the `EncoderSignal`.
        decoder_layer: the same, of a decoder layer, from its number and the tokens that enter it.
        normalised_keys: as in `VisualTokens`.
    """

    layer: int
    stage: int
    before: int
    after: int
    grids: tuple[int, ...]
    prompt: int
    shown: int
    text: int
    hidden: int
    query_width: int
    query_channels: int
    key_width: int
    head_dim: int
    ahead_query_width: int
    ahead_query_channels: int
    ahead_key_width: int
    saliency: int
    encoder_signal: Callable[[EncoderSignal], int]
    decoder_layer: Callable[[int, int], int]
    normalised_keys: bool

    def row(self, queries: int = 1) -> int:
        """Floating point operations of softmax rows in the layer before, whose keys are in the cache.

        With q queries, n tokens in that layer, hidden width h and query width w: `2 q h w + 2 q n w`, and `check`.
        Where gates are projected along, the first is twice that.
        """
        return 2 * queries * (self.hidden * self.query_channels + self.shown * self.query_width) + self.check

    def ahead(self, queries: int, keys: int) -> int:
        """Floating point operations of `queries_ahead` of q tokens and `keys_ahead` of n: `2 h (q w + n k)`.

        With hidden width h and widths w of queries and k of keys.
        """
        return 2 * self.hidden * (queries * self.ahead_query_channels + keys * self.ahead_key_width)

    def probe(self, layer: int, tokens: int) -> int:
        """Floating point operations of `probed_keys(layer)` of n tokens: what the layers before `layer - 1` take for
        n + 1, and `2 n h k`, with hidden width h and width k of keys.
        """
        run = sum(self.decoder_layer(number, tokens + 1) for number in range(layer - 1))
        return run + 2 * tokens * self.hidden * self.ahead_key_width

    @property
    def check(self) -> int:
        """Floating point operations of the key of one token, made again to see that the layer makes it as we do."""
        return 2 * self.hidden * self.key_width

    def row_ahead(self, queries: int = 1) -> int:
        """As `row`, in the decoder layer about to run, whose keys have to be made: `2 n h k` more, k their width."""
        made = 2 * self.prompt * self.hidden * self.ahead_key_width
        queried = queries * (self.hidden * self.ahead_query_channels + self.prompt * self.ahead_query_width)
        return 2 * queried + self.check + made
