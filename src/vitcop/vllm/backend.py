"""Any other family on vLLM's Transformers backend, whose encoders are transformers' own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.models import transformers

from ..engine.arguments import bound
from ..models import Grids, Observation, Watched
from ..models.base import Call
from ..models.encoders import FUSED, KEYS, QUERIES, projections
from ..selection.tokens import SALIENCY, EncoderSignal
from .model import PrunedModel
from .mrope import MRoPE
from .processing import pruned_processing
from .watching import Seen, split_fused, watching, whole_heads

FUSED_BY_VLLM = "qkv_proj"
"""What vLLM makes of the three projections of an attention."""


@pruned_processing(
    transformers.MultiModalProcessor, transformers.MultiModalProcessingInfo, transformers.MultiModalDummyInputsBuilder
)
class Backend(PrunedModel, transformers.TransformersMultiModalForCausalLM):
    """vLLM's own, pruned."""

    def _encoded(self, call: Call) -> tuple[list[Tensor], Observation]:
        with self._observing() as parts:
            features = self._features(call)
        observation = Observation.concatenate(parts)
        if self.served.family.tiles_are_images:
            ends = [0, *accumulate(call["num_image_patches"].flatten().tolist())]
            images = tuple(Grids.join(observation.images[first:end]) for first, end in pairwise(ends))
            observation = replace(observation, images=images)
        return features, observation

    @contextmanager
    def _observing(self) -> Iterator[list[Observation]]:
        """Gives what the encoder shows in each call of the model's `get_image_features`."""
        model, parts = self.model, []
        original = model.get_image_features

        def observed(*args: Any, **kwargs: Any) -> Any:
            with watching([own for _, own, _ in self._attentions], (QUERIES, KEYS, FUSED, FUSED_BY_VLLM)) as seen:
                output = original(*args, **kwargs)
            parts.append(self._observation(bound(original, args, kwargs), seen))
            return output

        model.get_image_features = observed
        try:
            yield parts
        finally:
            del model.get_image_features

    @property
    def _attentions(self) -> list[tuple[EncoderSignal, nn.Module, Any]]:
        """What is asked for, the attention that shows it, and the same without weights."""
        family = self.served.family
        names = {module: name for name, module in family.base.named_modules()}
        found = []
        for signal in (SALIENCY, *self.served.method.encoder_signals):
            main = family.observed["image"]
            stock = main if signal.depth is None else family.encoder_attention("image", signal.depth)
            found.append((signal, self.model.get_submodule(names[stock]), stock))
        return found

    def _observation(self, call: Call, seen: dict[nn.Module, Seen]) -> Observation:
        family = self.served.family
        (_, main, stock), *others = self._attentions
        signals = {
            signal: family.shown("image", call, _watched(own, stock, seen[own], signal.received))
            for signal, own, stock in others
        }
        return replace(family.observe("image", call, _watched(main, stock, seen[main], False)), signals=signals)


@pruned_processing(
    transformers.MultiModalProcessor, transformers.MultiModalProcessingInfo, transformers.MultiModalDummyInputsBuilder
)
class BackendMRoPE(MRoPE, Backend):
    """The same where positions have several axes."""


def _watched(own: nn.Module, stock: Any, seen: Seen, received: bool) -> Watched:
    """An attention, in the terms of the same in transformers, which vLLM has not touched."""
    channels: dict[str, Any] = {name: projection.out_features for name, projection in projections(stock).items()}
    made = {name: states for name, states in seen.projected.items() if name in channels}
    if FUSED in made:
        parts = made[FUSED].chunk(3, -1)
        made[FUSED] = torch.cat([whole_heads(part, channels[FUSED] // 3) for part in parts], -1)
    elif FUSED_BY_VLLM in seen.projected:
        made[QUERIES], made[KEYS] = split_fused(seen.projected[FUSED_BY_VLLM], channels[QUERIES])
    else:
        made = {name: whole_heads(states, channels[name]) for name, states in made.items()}
    shape = seen.inputs["hidden_states"].shape[:-1]
    return Watched(own, seen.inputs, {name: states.reshape(*shape, -1) for name, states in made.items()}, received)
