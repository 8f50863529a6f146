"""Images that are read once and asked about many times."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import GenerationConfig

from ..errors import UnsupportedModelError, VitcopError
from ..models import ModelFamily, family_of
from ..models.base import Call
from .arguments import setting
from .cache import PrunedCache, cache_in, cache_name
from .hooks import pruning_of, reading_prefix
from .stock import stock_model

_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""What a processor makes of each token of a prompt; all else that it makes is of the images."""

_OTHER_WAYS = ("inputs_embeds", "position_ids", "past_key_values", "cache")
"""What tells a model of tokens, or where they stand, in another way than a processor does."""


class ImagePrefix:
    """What a prompt begins with, up to the end of its last image, read once by a pruned model.

    What a method keeps of an image does not depend on the question, as long as it looks at images alone. So the KV
    cache is kept, and each question goes on with a `copy.deepcopy` of it, as transformers reuses any prefix; the images
    are neither encoded nor read again. Answers are those to whole prompts, but for rounding.

    Attributes:
        model: that has read it.
        pruning: that was on it, and has to be when questions are asked.
        input_ids: of the prefix, (1, tokens).
        cache: of it. It is never used itself, but as a `copy.deepcopy`.
        report: what was kept of the images.
    """

    def __init__(self, model: nn.Module, **inputs: Any) -> None:
        """Read the prefix.

        Args:
            model: that is pruned.
            inputs: what the processor makes of one prompt with images. What stands behind the last one is not read.

        Raises:
            VitcopError: the model is not pruned, there is not one prompt with an image, or an argument is one of
                `generate`.
            UnsupportedModelError: the method looks at text or at its attention, the model lets images see what stands
                behind them, or what `vitcop.prune` cannot prune.
        """
        pruning = pruning_of(model)
        if pruning is None:
            raise VitcopError(
                "Images are cached by a pruned model, and this one is not: call vitcop.prune(model, ...) before, and "
                "keep it on while questions are asked."
            )
        inputs = {name: value for name, value in inputs.items() if value is not None}
        settings = GenerationConfig()
        if misplaced := sorted(name for name in inputs if hasattr(settings, name)):
            raise VitcopError(
                f"A prefix is read, and nothing is generated: give {', '.join(misplaced)} to prefix.generate(...)."
            )
        self.model, self.pruning = model, pruning
        self._family = family_of(stock_model(model))
        self._family.check_prefix()
        real = _real_tokens(inputs)
        if len(real) != 1:
            raise VitcopError(f"A prefix is of one prompt; got {len(real)}. Ask about each by a prefix of its own.")
        # Qwen-Omni takes images for text where there is no mask.
        known = {name: inputs.pop(name, None) for name in _PER_TOKEN} | {"attention_mask": real.long()}
        whole = {name: values[real][None] for name, values in known.items() if values is not None}
        end = self._end(whole)
        tokens = {name: values[:, :end] for name, values in whole.items()}
        self.input_ids: Int[Tensor, "1 tokens"] = tokens["input_ids"]
        self._images = inputs
        _check_blocks(self._family, tokens)
        with torch.no_grad(), reading_prefix(pruning):
            output = model(**tokens, **self._images, use_cache=True, logits_to_keep=1)
        self.cache: PrunedCache = cache_in(output)
        self.report = pruning.report

    def generate(self, **inputs: Any) -> Any:
        """What the model's own `generate` gives for whole prompts, all of which begin with this prefix.

        Padding, if there is any, is moved behind the images, which leaves prompts as wide as they were.

        Args:
            inputs: what the processor makes of one or several whole prompts, and arguments of `generate`. What it makes
                of the images is compared with what was cached, and may be left out: `input_ids` of `prefix.input_ids`
                with the ids of a question behind them will do.

        Raises:
            VitcopError: a prompt begins with something else, has other images, or nothing behind them; the model is not
                pruned as it was; or another cache is asked for.
            UnsupportedModelError: an image stands in the question; questions of unequal length are asked at once, where
                the decoder has layers with states or sliding windows; or the answer is to be drafted.
        """
        if pruning_of(self.model) is not self.pruning:
            raise VitcopError(
                "The pruning under which these images were cached is no longer on the model: keep it on, or cache them "
                "anew by vitcop.ImagePrefix(model, ...)."
            )
        real = _real_tokens(inputs)
        ids = inputs["input_ids"]
        begun = self._begun(ids, real)
        # Padding goes between images and questions, for which all cached images are at the same columns.
        order = torch.where(begun, 0, torch.where(real, 2, 1)).argsort(dim=1, stable=True)
        if not real.all() and (self._family.has_states or self._family.has_windows):
            raise UnsupportedModelError(
                "Padding behind a prefix would go into the states of this decoder, or take up its sliding windows: ask "
                "questions of unequal length one by one, without padding."
            )
        for name in self._images.keys() & inputs.keys():
            given = inputs.pop(name)
            if given is not None and not _same(name, given, self._images[name], len(ids)):
                raise VitcopError(f"These images are not those that were cached: {name} differs; cache them as well.")
        options = {name: value for name, value in inputs.items() if name not in (*_PER_TOKEN, *_OTHER_WAYS)}
        cache = copy.deepcopy(self.cache)
        cache.reorder_cache(torch.zeros(len(ids) * self._copies(options), dtype=torch.long, device=ids.device))
        tokens = {"input_ids": ids.gather(1, order), "attention_mask": real.gather(1, order).long()}
        return self.model.generate(**tokens, **options, **{cache_name(self._family.model): cache})  # type: ignore[operator]

    def _copies(self, options: Call) -> int:
        """How many of each question `generate` makes, for beams or several answers; of a cache it makes none.

        Raises:
            VitcopError: it is to use another cache, or none.
        """
        names = "cache_implementation", "use_cache", "num_beams", "num_return_sequences"
        kind, used, *counts = (setting(name, options, self._family.model.generation_config) for name in names)
        if kind not in (None, "hybrid") or used is False:  # `generate` takes "hybrid" for None
            raise VitcopError(
                "Questions go on with copies of the cache of the prefix: leave cache_implementation out and use_cache "
                "on, in model.generation_config as well."
            )
        return max(count or 1 for count in counts)

    def _end(self, tokens: Call) -> int:
        """How many of a prompt's tokens are up to the end of its last image; raise if there is none."""
        config, ids = self._family.model.config, tokens["input_ids"][0]
        visual = _placeholders(self._family, ids)
        if not visual.any():
            raise VitcopError("There is no image in this prompt that could be cached; ask it as it is.")
        end = int(visual.nonzero()[-1]) + 1
        self._check_question(ids[end:])
        # Qwen-Omni counts positions by it.
        marked = ids[end : end + 1].tolist() == [getattr(config, "vision_end_token_id", None)]
        closed = end + max(int(marked), self._family.closing_tokens)
        for block in (blocks[0] for blocks in self._family.attention_blocks(tokens).values()):
            # What an image sees both ways behind itself, as Molmo 2's see their markers, is a part of it.
            mates = (block >= 0) & (block == block[end - 1])
            closed = max(closed, *(mates.nonzero()[:, 0] + 1).tolist())
        return closed

    def _check_question(self, ids: Int[Tensor, " tokens"]) -> None:
        """Raise unless these, behind the images, are text."""
        sound = getattr(self._family.model.config, "audio_token_id", None)
        if _placeholders(self._family, ids).any() or sound in ids.tolist():
            raise UnsupportedModelError(
                "Behind the images that are cached there is another image, or sound: cache all images of a prompt "
                "together, put sound in front of them, or ask whole prompts."
            )

    def _begun(self, ids: Int[Tensor, "rows seq"], real: Bool[Tensor, "rows seq"]) -> Bool[Tensor, "rows seq"]:
        """Where whole prompts have the prefix; raise unless each goes on behind it, by text."""
        length = self.input_ids.shape[1]
        begun = real & (real.cumsum(1) <= length)
        if not (begun.sum(1) == length).all() or not (ids[begun].view(-1, length) == self.input_ids).all():
            raise VitcopError(
                "A prompt does not begin with the prefix that was cached, up to the end of its last image: put all "
                "that differs behind the images, or cache each by itself."
            )
        asked = real & ~begun
        if not asked.any(1).all():
            raise VitcopError("A prompt has nothing behind its images; ask something.")
        self._check_question(ids[asked])
        return begun


def _real_tokens(inputs: Call) -> Bool[Tensor, "rows seq"]:
    """Where these prompts have tokens and no padding; raise if they are given in another way than a processor's."""
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None or any(inputs.get(name) is not None for name in _OTHER_WAYS):
        raise VitcopError(
            "A prefix is told from the rest of a prompt by its ids: give input_ids, (prompts, tokens), and neither "
            "inputs_embeds, position_ids nor a cache."
        )
    for name in _PER_TOKEN:
        if (values := inputs.get(name)) is not None:
            _check_tensor(name, values)
    if ids.ndim != 2:
        raise VitcopError(f"input_ids must be 2-D, (prompts, tokens); got shape {tuple(ids.shape)}.")
    if mask is not None and mask.shape != ids.shape:
        raise VitcopError(f"attention_mask must be 2-D, of shape {tuple(ids.shape)} as the prompts.")
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()


def _check_tensor(name: str, value: Any) -> None:
    """Raise if a list stands where a processor makes a tensor."""
    if not isinstance(value, Tensor):
        raise VitcopError(
            f'{name} must be a tensor, as processors make it with return_tensors="pt"; got a {type(value).__name__}.'
        )


def _placeholders(family: ModelFamily, ids: Int[Tensor, " tokens"]) -> Bool[Tensor, " tokens"]:
    return torch.cat(list(family.placeholders({"input_ids": ids[None]}).values())).any(0)


def _check_blocks(family: ModelFamily, tokens: Call) -> None:
    """Raise if what stands behind images is seen by them, as a family says of a prompt with one token of text there."""
    longer = {name: pad(values, (0, 1), value=int(name == "attention_mask")) for name, values in tokens.items()}
    for blocks in family.attention_blocks(longer).values():
        if blocks[0, -1] >= 0 and (blocks[0, :-1] == blocks[0, -1]).any():
            raise UnsupportedModelError(
                f"In {family.model.config.model_type!r} images see the text behind them, so that what they become "
                "depends on the question, and no prefix can be cached: ask whole prompts."
            )


def _same(name: str, given: Any, kept: Any, prompts: int) -> bool:
    """Whether what a processor has made of images is what was cached, once for all prompts or once for each."""
    if not isinstance(kept, Tensor):
        return bool(given == kept)
    _check_tensor(name, given)
    given = given.to(kept)
    return any(torch.equal(given, kept.repeat(n, *[1] * (kept.ndim - 1))) for n in (1, prompts))
