"""What a pruned model must answer: as a dense one whose attention mask hides what was dropped, layer by layer.

Where a layer folds tokens into a state, no mask hides them: there, each layer is called with what is left.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import vitcop
from vitcop.engine.positions import count_positions
from vitcop.models import FAMILIES as KNOWN

STEPS = 3


def pruned_logits(
    model: PreTrainedModel, inputs: dict[str, Tensor], method: vitcop.Pruner
) -> tuple[vitcop.Report, list[Tensor]]:
    """What was kept, and logits of the survivors of the prompts, row after row, and of `STEPS` decoded tokens."""
    ids = inputs["input_ids"]
    mask = _mask(inputs)
    with torch.no_grad(), vitcop.prune(model, method) as pruning:
        output = model(**inputs)
        assert pruning.report is not None
        report = pruning.report
        logits = [output.logits[report.positions >= 0]]
        for step in range(1, STEPS + 1):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            given = {"attention_mask": mask} if "attention_mask" in inputs else {}
            output = model(input_ids=_token(ids, step), past_key_values=output.past_key_values, **given)
            logits.append(output.logits)
    return report, logits


def masked_dense_logits(
    model: PreTrainedModel, inputs: dict[str, Tensor], method: vitcop.Pruner, report: vitcop.Report
) -> list[Tensor]:
    """The same logits of a dense model that hides what `method` dropped."""
    ids = inputs["input_ids"]
    alive = alive_columns(report, ids.shape).to(ids.device)
    sharing = len(model.get_decoder().layers) - len(alive)  # layers that use the keys and values of others
    alive = torch.cat([alive, alive[-1:].expand(sharing, -1, -1)])
    entered = alive[0] if method.positions == "compact" else _mask(inputs).bool()
    kept_by_family = KNOWN[model.config.model_type].keeps_positions
    positions = None if kept_by_family else count_positions(entered)
    if KNOWN[model.config.model_type].has_states:
        with torch.no_grad():
            return _layer_by_layer(model, inputs, alive, positions)
    far = Far(model, ids, report) if method.calibrate == "distance" else None
    with torch.no_grad():
        prompts, *decoded = _masked_dense(model, inputs, alive, positions, far)
    kept = [row[columns[columns >= 0]] for row, columns in zip(prompts, report.positions, strict=True)]
    return [torch.cat(kept), *decoded]


def alive_columns(report: vitcop.Report, shape: tuple[int, int]) -> Tensor:
    """(layers, batch, seq) bool: which prompt columns each decoder layer holds, padding left out."""
    alive = torch.zeros(report.num_layers, *shape, dtype=torch.bool)
    for layer in range(report.num_layers):
        for row, columns in enumerate(report.positions_at(layer).cpu()):
            alive[layer, row, columns[columns >= 0]] = True
    return alive


def _layer_by_layer(
    model: PreTrainedModel, inputs: dict[str, Tensor], alive: Tensor, positions: Tensor | None
) -> list[Tensor]:
    """Logits of the prompts and of the decoded tokens, by the layers of the dense model, of one row after another.

    Each layer gets the tokens that are alive in it and no others, without padding.

    Args:
        positions: of the prompt; None takes those of the model, which have several axes.
    """
    decoder: Any = model.get_decoder()
    entering: dict[str, Tensor] = {}
    hook = decoder.register_forward_pre_hook(lambda module, args, kwargs: entering.update(kwargs), with_kwargs=True)
    model(**inputs)
    hook.remove()
    if positions is None:
        positions = entering["position_ids"]
        last = _mask(inputs).sum(1) - 1 + model.model.rope_deltas[:, 0]
    else:
        last = positions.amax(-1)
    rows = []
    for row, own in enumerate(alive.unbind(1)):
        cache = DynamicCache(config=decoder.config)
        embeddings, places = entering["inputs_embeds"][row, None], positions[..., row, :].unsqueeze(-2)
        logits = [_through_layers(model, embeddings, places, own, cache)]
        for step in range(1, STEPS + 1):
            new = model.get_input_embeddings()(_token(inputs["input_ids"], step)[:1])
            place = (last[row] + step).expand(*places.shape[:-1], 1)
            logits.append(_through_layers(model, new, place, own.new_ones(len(own), 1), cache))
        rows.append(logits)
    prompts, *decoded = zip(*rows, strict=True)
    return [torch.cat(prompts), *(torch.stack(step) for step in decoded)]


def _through_layers(
    model: PreTrainedModel, states: Tensor, positions: Tensor, alive: Tensor, cache: DynamicCache
) -> Tensor:
    """Logits (left, vocabulary) of the tokens that the last layer holds.

    Args:
        states: embeddings (1, seq, hidden).
        positions: (1, seq), or (3, 1, seq).
        alive: (layers, seq).
        cache: of what came before.
    """
    decoder: Any = model.get_decoder()
    for index, layer in enumerate(decoder.layers):
        here = alive[index]
        states, positions, alive = states[:, here], positions[..., here], alive[:, here]
        mask, kwargs = None, {"position_embeddings": decoder.rotary_emb(states, positions)}
        if hasattr(layer, "self_attn"):
            new = states.shape[1]
            seen = cache.get_seq_length(layer.self_attn.layer_idx) + new
            hidden = torch.ones(new, seen, dtype=torch.bool).triu(seen - new + 1)
            mask = torch.zeros(1, 1, new, seen).masked_fill(hidden, torch.finfo(states.dtype).min)
        name = "cache" if "cache" in inspect.signature(layer.forward).parameters else "past_key_values"
        states = layer(states, attention_mask=mask, **kwargs, **{name: cache})
    norm = decoder.norm if hasattr(decoder, "norm") else decoder.embedding_norm
    return model.lm_head(norm(states))[0]


def _mask(inputs: dict[str, Tensor]) -> Tensor:
    return inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))


def _token(ids: Tensor, step: int) -> Tensor:
    """What is decoded in a step."""
    return ids.new_full((len(ids), 1), 10 + step)


class Far:
    """What is added to the logits of visual tokens by their distance, and not to those of text and separators."""

    def __init__(self, model: PreTrainedModel, ids: Tensor, report: vitcop.Report) -> None:
        self.visual = torch.zeros_like(ids, dtype=torch.bool)
        kinds = list(zip(report.images, report.modalities, strict=True))
        for modality in set(report.modalities):
            shown = [image.visual for image, own in kinds if own == modality]
            self.visual[ids == getattr(model.config, f"{modality}_token_id")] = torch.cat(shown)
        rotary: Any = model.get_decoder().rotary_emb
        layers = getattr(model.get_decoder().config, "layer_types", None) or [None] * report.num_layers
        by_kind = hasattr(rotary, f"{layers[0]}_inv_freq")
        distances = torch.arange(ids.shape[1] + STEPS)[None]
        # The stock embedding turns two channels by each angle, so that the mean over channels is that over angles.
        cosines = [rotary(torch.zeros(1), distances, *[kind] * by_kind)[0][0] for kind in layers]
        self.added = torch.stack([(2 - cosine.mean(-1)).log() for cosine in cosines])

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(layers, batch, queries, keys), by positions."""
        return self.added[:, (queries[..., None] - keys[:, None]).abs()] * self.visual[:, None]


PALIGEMMA = ("gemma", "gemma2")
"""Its decoders. The window of the second does not cut what sees itself both ways."""


def _blocks(config: Any, layer: int, inputs: dict[str, Tensor]) -> Tensor | None:
    """(batch, seq): tokens of the same number see each other both ways in this layer; -1 for none."""
    if config.model_type in PALIGEMMA:
        return inputs["token_type_ids"].eq(0).long() - 1
    if config.model_type == "molmo2_text":  # all pictures of a prompt, and their markers
        return inputs["mm_token_type_ids"].eq(1).long() - 1
    if "token_type_ids" in inputs:  # of Gemma 3
        return _pictures(inputs["token_type_ids"] == 1)
    both_ways = getattr(config, "use_bidirectional_attention", None) == "vision"
    if not both_ways or config.layer_types[layer] != "sliding_attention":
        return None
    return _pictures(inputs["mm_token_type_ids"] > 0)


def _pictures(image: Tensor) -> Tensor:
    """(batch, seq): the number of the picture, which stand apart; -1 for none."""
    return (image & ~torch.nn.functional.pad(image, (1, 0))[:, :-1]).cumsum(1).masked_fill(~image, 0) - 1


def stock_mask(config: Any, layer: int, inputs: dict[str, Tensor], queries: int, seen: int) -> Tensor:
    """(batch, queries, seen) bool: what the dense model's layer lets each token see, padding not considered."""
    mask = _mask(inputs)
    width, device = mask.shape[1], mask.device
    end = (mask * torch.arange(1, width + 1, device=device)).amax(1, keepdim=True)
    # A window of a right-padded row is counted as if the row stood alone, which the dense model does not do.
    behind = torch.arange(seen - width, device=device)
    columns = torch.cat([torch.arange(width, device=device).expand_as(mask), end + behind], 1)
    visible = torch.ones(queries, seen, dtype=torch.bool, device=device).tril(seen - queries)[None]
    both = torch.zeros_like(visible)
    blocks = _blocks(config, layer, inputs)
    if blocks is not None:
        blocks = torch.nn.functional.pad(blocks, (0, seen - width), value=-1)
        both = (blocks[:, -queries:, None] == blocks[:, None]) & (blocks >= 0)[:, None]
    if getattr(config, "layer_types", None) and config.layer_types[layer] == "sliding_attention":
        near = columns[:, -queries:, None] - columns[:, None] < config.sliding_window
        return (visible & near) | both if config.model_type in PALIGEMMA else (visible | both) & near
    return visible | both


def _masked_dense(
    model: PreTrainedModel, inputs: dict[str, Tensor], alive: Tensor, positions: Tensor | None, far: Far | None
) -> list[Tensor]:
    """Logits of the prompt and of the decoded tokens, by a dense model that hides what is not alive.

    Args:
        positions: of the prompt; None leaves them to the model, as its 3-D ones.
        far: what is added by distance; None for nothing.
    """
    decoder: Any = model.get_decoder()
    state: dict[str, Tensor] = {}

    def hide(index: int) -> Any:
        def hook(layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, kwargs | {"attention_mask": state["masks"][index]}

        return decoder.layers[index].register_forward_pre_hook(hook, with_kwargs=True)

    hooks = [hide(index) for index in range(len(alive))]
    try:
        return list(_forwards(model, inputs, alive, positions, far, state))
    finally:
        for hook in hooks:
            hook.remove()


def _forwards(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    alive: Tensor,
    positions: Tensor | None,
    far: Far | None,
    state: dict[str, Tensor],
) -> Iterator[Tensor]:
    """Logits forward by forward, with the masks of each in `state`."""
    ids, config, cache = inputs["input_ids"], model.get_decoder().config, DynamicCache()
    batch_size, width = ids.shape
    lowest = torch.finfo(model.dtype).min
    for step in range(STEPS + 1):
        seen = width + step
        queries = width if step == 0 else 1
        visible = torch.cat([alive, alive.new_ones(*alive.shape[:2], step)], -1)
        stock = [stock_mask(config, layer, inputs, queries, seen) for layer in range(len(alive))]
        masks = torch.stack([s.expand(batch_size, -1, -1) for s in stock]) & visible[:, :, None]
        hidden = ~masks[:, :, None]
        state["masks"] = hidden.new_zeros(hidden.shape, dtype=model.dtype).masked_fill(hidden, lowest)
        if far is not None:
            added = far.logits(positions if step == 0 else last + step, positions)
            state["masks"][..., :width] += added[:, :, None]
        if step == 0:
            output = model(**inputs, position_ids=positions, past_key_values=cache)
            if positions is None:
                last = _mask(inputs).sum(1, keepdim=True).long() - 1 + model.model.rope_deltas
            else:
                last = positions.amax(-1, keepdim=True)
        else:
            output = model(input_ids=_token(ids, step), position_ids=last + step, past_key_values=cache)
        yield output.logits
