"""What must not come along with a prompt, or behind one. Each function raises, and names the way out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import Cache, PretrainedConfig

from ..errors import UnsupportedModelError
from ..models.base import Call
from .arguments import brings_images, encoder_outputs, setting
from .cache import PrunedCache, cache_in
from .placement import Placeholders

DRAFTING = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
"""Arguments of `generate` that have it draft its answer."""


def check_cache(cache: Any) -> None:
    """Raise if what was given as a cache is none of transformers' own."""
    if cache is not None and not isinstance(cache, Cache):
        raise UnsupportedModelError(f"A {type(cache).__name__} cannot be pruned; use the default DynamicCache.")


def check_batch(tokens: Any, axes: int) -> None:
    """Raise unless what a model is to read is a batch.

    Args:
        tokens: its ids, or their embeddings.
        axes: that a batch of these has.
    """
    if not isinstance(tokens, Tensor) or tokens.ndim != axes:
        given = f"shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else f"a {type(tokens).__name__}"
        raise UnsupportedModelError(
            "input_ids must be a tensor (prompts, tokens), and inputs_embeds one (prompts, tokens, hidden), to "
            f"be pruned; got {given}. Have the processor make them, with return_tensors='pt'."
        )


def check_no_images(call: Call) -> None:
    """Raise if images or videos come along with a forward that is not a prompt's first."""
    if brings_images(call):
        raise UnsupportedModelError(
            "Images or videos arrive at a cache that is not empty, but only a prompt's first forward can be "
            "pruned: put them all into the first turn, or start again with a new cache."
        )


def check_no_drafts(call: Call, defaults: Any) -> None:
    """Raise if a `generate` with these arguments would draft its answer behind what a pruned cache holds.

    Args:
        defaults: the model's own generation config.
    """
    cache = cache_in(call)
    if not isinstance(cache, PrunedCache) or cache.request is None or not cache.get_seq_length():
        return
    if any(setting(name, call, defaults) for name in DRAFTING):
        raise UnsupportedModelError(
            "Assisted decoding cannot go on with the KV cache of an earlier turn or of a prefix: transformers would "
            "have the whole conversation read once more behind it, dense too. Leave out the assistant or prompt "
            "lookup, or ask whole prompts, without the cache."
        )


def check_no_chunks(call: Call, defaults: Any) -> None:
    """Raise if a `generate` with these arguments would read a prompt with images piece by piece.

    Args:
        defaults: as of `check_no_drafts`.
    """
    if brings_images(call) and setting("prefill_chunk_size", call, defaults):
        raise UnsupportedModelError(
            "A prompt with images is pruned as a whole, and cannot be read in chunks: leave out prefill_chunk_size."
        )


def check_kinds(blocks: Mapping[str, Int[Tensor, "..."]], prompts: Tensor) -> None:
    """Raise unless what a prompt says of its tokens, of which blocks are made, it says of each.

    Args:
        blocks: as of `ModelFamily.attention_blocks`.
        prompts: ids (batch, seq) or embeddings (batch, seq, hidden).
    """
    expected = tuple(prompts.shape[:2])
    for shape in {tuple(block.shape) for block in blocks.values()} - {expected}:
        raise UnsupportedModelError(
            f"token_type_ids, or mm_token_type_ids, must be of shape {expected} as the prompt, since they say which "
            f"tokens see each other both ways; got {shape}. Give text that is put behind a prompt kinds as well."
        )


def check_drafted(blocks: Mapping[str, Int[Tensor, "batch seq"]], placeholders: Placeholders) -> None:
    """Raise if a draft of the answer that came along with the prompts is in a block with tokens of these.

    Args:
        blocks: as of `ModelFamily.attention_blocks`.
    """
    if placeholders.drafted and any((block[:, placeholders.undrafted :] >= 0).any() for block in blocks.values()):
        raise UnsupportedModelError(
            "Assisted decoding has transformers take the first draft for a part of the prompt, all of which then sees "
            "it, so that the answer would be another one, dense too: leave out the assistant or prompt lookup."
        )


def check_encoded(call: Call, forward: Callable[..., Any]) -> None:
    """Raise if encoder outputs came along for a forward of the base model that would go on without them."""
    if encoder_outputs(call) and "mm_encoder_outputs" not in inspect.signature(forward).parameters:
        raise UnsupportedModelError(
            "The models of this transformers take no mm_encoder_outputs, and would go on without the images: pass "
            "pixel_values, or install transformers 5.24 or newer."
        )


def check_mask(mask: Any, prompts: Tensor, placeholders: Placeholders) -> None:
    """Raise unless this mask has one value for each token of the prompts, and shows all visual tokens."""
    shape = tuple(prompts.shape[:2])
    if mask is not None and not (isinstance(mask, Tensor) and mask.shape == shape):
        given = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise UnsupportedModelError(
            f"attention_mask must be 2-D, of shape {shape} as the prompt, for this to be pruned; got {given}. Prefix "
            "tuning and the like, which put tokens of their own in front, cannot be used."
        )
    if placeholders.hidden:
        raise UnsupportedModelError("attention_mask hides visual tokens; leave them out of the prompt.")


def check_shared(call: Call) -> None:
    """Raise if keys and values were asked for that layers share, to be taken for those of the unpruned prompt.

    Args:
        call: arguments of the model.
    """
    if call.get("return_shared_kv_states"):
        raise UnsupportedModelError(
            "return_shared_kv_states gives the keys and values of what is left of a prompt, which Gemma 4's assistants "
            "take for all of it: leave it out, and the assistant, or draft by prompt_lookup_num_tokens."
        )


def check_head(call: Call, config: PretrainedConfig, placeholders: Placeholders) -> None:
    """Raise if the head was asked for what it reads off the columns of the unpruned prompt.

    Args:
        call: arguments of the whole model; empty if only its base model was called.
        config: of the decoder.
    """
    logits_to_keep = call.get("logits_to_keep")
    counts = logits_to_keep is None or (isinstance(logits_to_keep, int) and logits_to_keep >= 0)
    if call.get("labels") is not None or not counts:
        raise UnsupportedModelError(
            "labels, and logits_to_keep as anything but a number of last tokens, cannot be used while visual tokens "
            "are pruned, since logits hold the survivors only: leave them out, and pick from the logits by "
            "pruning.report.positions."
        )
    if logits_to_keep is not None and logits_to_keep > 1 and not placeholders.end_in_text(logits_to_keep - 1):
        if placeholders.drafted:
            raise UnsupportedModelError(
                "A drafted answer holds a placeholder of an image, as prompt lookup copies it where the last words "
                "also stand in front of an image; the dense model raises as well. Pass "
                "suppress_tokens=[model.config.image_token_id], or use an assistant model."
            )
        raise UnsupportedModelError(
            f"logits_to_keep={logits_to_keep} reaches into the visual tokens of a prompt, or into padding behind its "
            "text, and what is left of these stands in other columns: pad on the left, or leave it out and pick from "
            "the logits by pruning.report.positions."
        )
    router_logits = call.get("output_router_logits")
    if call and (getattr(config, "output_router_logits", False) if router_logits is None else router_logits):
        raise UnsupportedModelError(
            "Router losses need the same tokens in every layer, which the layers of a pruned prompt do not hold: leave "
            "out output_router_logits."
        )


def check_text_behind(positions: Tensor | None) -> None:
    """Refuse a prefix behind which text would stand elsewhere than behind all positions so far.

    Qwen2.5-VL counts on from the rows and columns of a video, and not from its last moment.

    Args:
        positions: of all its tokens; three axes of them, time first, behind those of text if there are four.

    Raises:
        UnsupportedModelError: a moment of a video lies beyond all rows and columns.
    """
    if positions is not None and positions.ndim == 3 and positions[-3].max() > positions[-2:].max():
        raise UnsupportedModelError(
            "A video ends at a later position than this model gives to the text behind it, so that no question could "
            "go on behind its cache as in a whole prompt: ask whole prompts, or take a shorter video."
        )
