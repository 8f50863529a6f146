"""Prints docs/methods.md, whose table and presets come from the registry of methods."""

from __future__ import annotations

from vitcop.cli.methods import HEADER, preset_lines, row_of
from vitcop.methods import METHODS
from vitcop.selection.pruner import Pruner

_TEXT = """\
# Methods

Made from the methods in `src/vitcop/methods` by `make docs`; a test checks that it is up to date. `vitcop methods`
prints the table, and `vitcop methods NAME` one method with its settings.

{table}

* **prunes at**: the entrance is before the first decoder layer.
* **flash-safe**: no method asks for attention maps, so that each can run under FlashAttention (`Census` if it does not
  calibrate, as under flex attention), which needs a GPU and is [not measured](limits.md#models). Where one looks at
  attention in the decoder, single softmax rows are worked out from the layer's own projections.
* **by**: saliency is the attention of [CLS] in the vision encoder, or, where there is none, the attention received
  ([models.md](models.md)). How well key norms and the last token's row foretell attention has been
  [measured](results/key_norm.md), layer by layer, on a language model.

`retention` means the same for all: the share of the visual tokens alive, averaged over the decoder layers, within one
token. `tokens` in its place is how many of a picture or video are alive at most, on the same average, so that more may
enter; what has no more is left alone. A picture so small that one token in each stage is more than that keeps this one,
and the report says what that averages; `prune(..., small_images="refuse")` raises instead. What no size of picture lets
a method average raises
`BudgetError`, which names the least that is possible. What each method does, step by step, what differs from its
authors' code, and what it costs, is told by `vitcop methods NAME`.

`positions`, too, is a setting of all. Of the tokens that the entrance leaves, `keep` leaves each at its position in the
unpruned prompt, and `compact` numbers them and the text anew, without gaps. Where nothing is dropped at the entrance,
and in families that always keep ([models.md](models.md)), both are the same bit by bit, so that a comparison can ask
every method under the same: `vitcop run`, `compare` and `eval` take `--positions`, and the latter two also `both`,
which makes two rows where the two can differ. By default all methods keep, but for those that are compact:
{compact}.

So is `calibrate`. By `size`, a token that stands for s tokens, which were merged into it, counts s times in the
attention of all later layers. By `distance`, all that is left of an image counts more as well, up to twice, the further
away it is; that needs kept positions of one axis, by which all channels are turned in every layer, so that Qwen-VL,
GLM-V, MiniCPM-V, LFM2-VL, Gemma 4, Llama 4 and Cohere's second decoder raise. Both need sdpa or eager attention, and a
method that merges something; others raise. By default `Census` calibrates and no other does, so that for flash and flex
attention it is `Census(calibrate="none")`. A `Pipeline` has its own, whatever its stages have, and takes it also where
they merge nothing.

## Before the encoder

No method spares the vision encoder. `vitcop.skip_repeated_patches(model)` does for Qwen-VL and GLM-V, on pictures that
are flat over large parts, by itself or together with any method: a visual token whose pixels are, value for value,
those of its left neighbour, or else of the one above, is not encoded, and gets the features of the one that it repeats.
Placeholders and positions stay as they are; to drop them is left to the method. PixelPrune
([arXiv 2604.00886](https://arxiv.org/abs/2604.00886)) drops them from the prompt as well, and reports competitive
accuracy on documents and screens. Where something repeats, the features of all tokens change, as each attends to a flat
stretch once and not as often as it is large. What that does to answers has not been measured: none of our small models
has such an encoder. Of the tokens of five drawn screens of 1,920 by 1,080 pixels, 18 to 89 % repeat a neighbour, nearly
as many after JPEG, and of noise none ([NOTES](../benchmarks/NOTES.md), entry 14).

## Which positions

| what is asked | positions | what speaks for it |
| --- | --- | --- |
| boxes, points, where things are | keep | LLaVA on RefCOCO: 56.1 dense, \
15.3 pruned and numbered anew, 51.4 pruned with positions kept \
([GAP](https://arxiv.org/abs/2506.21873)). [Here](results/testbed.md), questions of place |
| short answers, nothing counted | compact, says one paper; keep, say our small models | \
LLaVA-1.5-7B at 64 tokens, half of them merged, mean of eight benchmarks in percent of dense: 93.5 compact, 90.1 kept \
([RESTORE](https://arxiv.org/abs/2606.01711)). \
[Here](results/ablations-test.md) ViTCoP, kept, wins |
| short answers, merged and counted | keep | the same, calibrated by size: 95.3, and by distance: 96.5. \
\
[Here](results/census.md) size may be worth two points, and distance nothing more |
| something else | what your model says | `vitcop eval --positions both`, or `vitcop plan --quality` \
([how](quality_target.md)) |

Figures of others are as their papers give them, of large models; ours are of two small ones.

## In vLLM

What [`vitcop serve`](serving.md) takes: methods that choose once, at the entrance, by what the encoder shows of a
picture. `probe` runs the first decoder layers over the picture, which only vLLM's own models can, unless the decoder
normalises its keys. `Census` has to be set not to calibrate, and all to number positions anew (`compact`) where these
have one axis. Which it is, is not declared, but found by letting each choose among made-up tokens.

A method of your own is named `file.py:Class` or `package.module:Class`, wherever one of these is; see
[how to add one](add_a_method.md).

A smaller picture is no method but an input: `vitcop compare` shows it in its last row.

## Presets

The literature counts differently from paper to paper: as "64 tokens" it calls what enters the decoder, what a layer
leaves, or an average. `Method.preset(name, tokens=64)` takes the schedule that was really run on LLaVA-1.5-7B (576
visual tokens, 32 layers), and gives the method with the retention that it averages, for any model. What
was run on other models, by shares, as `DeFT`, is shown as it would be on this one.

{presets}
"""


def page() -> str:
    """The page docs/methods.md."""
    lines = [HEADER, ("---",) * len(HEADER), *map(_linked, METHODS.values())]
    presets = [f"* `{method.__name__}`: {line}" for method in METHODS.values() for line in preset_lines(method)]
    return _TEXT.format(
        compact=", ".join(
            f"`{method.__name__}`" for method in METHODS.values() if method.default_positions == "compact"
        ),
        table="\n".join(f"| {' | '.join(line)} |" for line in lines),
        presets="\n".join(presets),
    )


def _linked(method: type[Pruner]) -> tuple[str, ...]:
    _, paper, *others = row_of(method)
    arxiv = method.described.arxiv
    return f"`{method.__name__}`", f"[{paper}](https://arxiv.org/abs/{arxiv})" if arxiv else paper, *others


if __name__ == "__main__":
    print(page(), end="")
