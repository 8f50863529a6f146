"""The vision encoders, and what one attention layer of each shows of its patches.

Queries and keys are those that the layer itself has made, so that adapters and quantised layers count, and that
nothing is projected twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..ops.saliency import attention_received, cls_attention
from ..ops.segments import upload
from .grids import Shape, patch_numbers
from .repeats import Repeats


@dataclass(frozen=True)
class Encoder:
    """Where an encoder has its attention.

    Attributes:
        layers: path of its layers from the encoder.
        attention: name of the attention in a layer.
        has_cls: whether its first token is [CLS].
        interpolates: whether it takes pictures of any size by itself, its positions interpolated to it.
    """

    layers: str
    attention: str
    has_cls: bool
    interpolates: bool = False

    @property
    def strategy(self) -> str:
        """The `vision_feature_select_strategy` that makes visual tokens of all patches and nothing else."""
        return "default" if self.has_cls else "full"

    def depth(self, encoder: nn.Module) -> int:
        """Number of its layers."""
        layers: Any = encoder.get_submodule(self.layers)
        return len(layers)

    def attention_at(self, encoder: nn.Module, layer: int) -> nn.Module:
        """The attention whose layer gives `hidden_states[layer]`.

        Raises:
            UnsupportedModelError: there is no such layer.
        """
        layers: Any = encoder.get_submodule(self.layers)
        if layer == 0 or not -len(layers) <= layer <= len(layers):
            raise UnsupportedModelError(
                f"vision_feature_layer={layer} is not one of the {len(layers)} encoder layers: set 1 to "
                f"{len(layers)}, or -1 for the last one."
            )
        # hidden_states[0] is the embedding, so hidden_states[k] leaves layer k - 1, and [-1] the last one.
        attention = layers[layer if layer < 0 else layer - 1].get_submodule(self.attention)
        return getattr(attention, "attention", attention)  # DINOv2's was within another before transformers 5.18


CLIP = Encoder("encoder.layers", "self_attn", has_cls=True)
SIGLIP = Encoder("encoder.layers", "self_attn", has_cls=False)
DINOV2 = Encoder("encoder.layer", "attention", has_cls=True, interpolates=True)

QUERIES, KEYS, FUSED = "q_proj", "k_proj", "qkv"
"""Names of projections in the attention of an encoder."""

# The last four are Qwen2.5-Omni's, and DINOv2's before transformers 5.18.
_NAMES = {QUERIES: QUERIES, KEYS: KEYS, FUSED: FUSED, "q": QUERIES, "k": KEYS, "query": QUERIES, "key": KEYS}


def projections(attention: Any) -> dict[str, nn.Module]:
    """Those of an attention that make queries and keys, by the names above."""
    return {name: getattr(attention, own) for own, name in _NAMES.items() if hasattr(attention, own)}


def num_heads(attention: Any) -> int:
    """Heads of an attention of an encoder."""
    if hasattr(attention, "num_heads"):
        heads: int = attention.num_heads
        return heads
    settings = attention if hasattr(attention, "num_attention_heads") else attention.config
    heads = settings.num_attention_heads
    return heads


class Patches:
    """What an attention layer shows of each patch, grid after grid, or of each visual token: worked out when read.

    A method that looks at text alone, or at nothing, so pays nothing for it.
    """

    def __init__(self, show: Callable[[], tuple[Tensor, Tensor]]) -> None:
        self._show: Callable[[], tuple[Tensor, Tensor]] | None = show

    def __getstate__(self) -> dict[str, Any]:
        # Encoder outputs are saved, and sent to other processes: what is not worked out yet refers to modules.
        return {"_shown": self._shown, "_show": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Patches:
        return self  # nothing changes it, and `generate` copies what it hands on to an assistant

    @cached_property
    def _shown(self) -> tuple[Tensor, Tensor]:
        assert self._show is not None
        with torch.no_grad():
            shown = self._show()
        self._show = None  # and with it the activations of the encoder
        return shown

    @property
    def keys(self) -> Float[Tensor, "patches heads head_dim"]:
        """As the key projection gives them, without norm and rotary embedding."""
        return self._shown[0]

    @property
    def saliency(self) -> Float[Tensor, " patches"]:
        """Attention that each patch got."""
        return self._shown[1]

    def mixed(self, index: Int[Tensor, "tokens some"], weights: Float[Tensor, "tokens some"]) -> Patches:
        """Visual tokens that are each a weighted sum of some patches.

        Args:
            index: numbers of the patches, on the CPU.
            weights: of them, on the CPU.
        """
        if (weights[:, 0] == 1).all():
            return self._gathered(lambda values: values[upload(index[:, 0], values.device)])

        # A patch of each token at a time: all at once would take several times as much memory.
        def mix(values: Tensor) -> Tensor:
            total = torch.zeros((), device=values.device)
            for number, weight in zip(index.unbind(1), weights.unbind(1), strict=True):
                total = total + values[upload(number, values.device)] * upload(weight, values.device)[:, None]
            return total

        return self._gathered(mix)

    def mean(self, index: Int[Tensor, "tokens patches_per_token"]) -> Patches:
        """Mean over the patches of each visual token.

        Args:
            index: numbers of the patches, on the CPU.
        """
        return self._gathered(lambda values: values[upload(index, values.device)].mean(1))

    def merged(self, images: Sequence[Sequence[Shape]], side: int) -> Patches:
        """Mean over the patches of each visual token of `merged_grids`; the patches stand row by row, grid after grid.

        Args:
            images, side: as of `merged_grids`.
        """
        return self if side == 1 else self.mean(patch_numbers([shape for image in images for shape in image], side))

    def _gathered(self, gather: Callable[[Tensor], Tensor]) -> Patches:
        def show() -> tuple[Tensor, Tensor]:
            keys = gather(self.keys.flatten(1)).unflatten(1, self.keys.shape[1:])
            return keys.to(self.keys.dtype), gather(self.saliency[:, None])[:, 0].to(self.saliency.dtype)

        return Patches(show)

    def through(self, change: Callable[[Tensor], Tensor]) -> Patches:
        """Keys and saliency after what the model does to features: (patches, channels) -> (tokens, channels)."""

        def show() -> tuple[Tensor, Tensor]:
            channels = change(torch.cat([self.saliency[:, None], self.keys.flatten(1)], 1))
            keys = channels[:, 1:].unflatten(1, self.keys.shape[1:]).to(self.keys.dtype)
            return keys, channels[:, 0].to(self.saliency.dtype)

        return Patches(show)

    def take(self, spans: Sequence[tuple[int, int]]) -> Patches:
        """The rows of all `spans` (first, end), in order; spans may repeat."""
        return Patches.concatenate([Patches(partial(self._rows, first, end)) for first, end in spans])

    @staticmethod
    def concatenate(parts: Sequence[Patches]) -> Patches:
        """The rows of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return Patches(lambda: (torch.cat([p.keys for p in parts]), torch.cat([p.saliency for p in parts])))

    def _rows(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        return self.keys[first:end], self.saliency[first:end]


@dataclass(frozen=True, eq=False)
class Watched:
    """An attention layer of the vision encoder at work.

    Attributes:
        module: the attention.
        inputs: its arguments.
        projected: what its projections of queries and keys were seen to make, by their names.
        received: ask for the attention that each patch receives from all, even where there is a [CLS].
        repeats: which tokens it ran on, if it did not on all.
    """

    module: Any
    inputs: dict[str, Any]
    projected: dict[str, Tensor]
    received: bool = False
    repeats: Repeats | None = None

    @property
    def hidden_states(self) -> Tensor:
        return self.inputs["hidden_states"]

    def made_by(self, name: str) -> Tensor:
        """What a projection has made; again, if nobody saw it run, as where it is compiled or fused."""
        if name in self.projected:
            return self.projected[name]
        made: Tensor = projections(self.module)[name](self.hidden_states)
        return made

    @property
    def scale(self) -> float:
        """What the layer multiplies its logits with."""
        scale: float = self.module.scale if hasattr(self.module, "scale") else self.module.scaling
        return scale


def with_cls(
    watched: Watched,
    pictures: int,
    registers: int = 0,
    *,
    behind: bool = False,
    turn: Callable[[Tensor], Tensor] | None = None,
) -> Patches:
    """Patches of an encoder with [CLS], by the attention of [CLS]: CLIP, DINOv2, InternVL's ViT, Llama 4's.

    Args:
        watched: the attention.
        pictures: pictures, tiles or frames of which the features are.
        registers: tokens between [CLS] and the patches, which attend and are attended to like patches.
        behind: whether [CLS] comes last, and not first.
        turn: the rotary embedding of queries or keys of all tokens, (pictures, tokens, heads, head_dim), which leaves
            [CLS] as it is.

    Raises:
        UnsupportedModelError: the encoder ran on another number of them.
    """
    attention, received, scale, first = watched.module, watched.received, watched.scale, 1 + registers
    heads = num_heads(attention), -1
    queries, keys = watched.made_by(QUERIES), watched.made_by(KEYS)
    _check_count("pictures, tiles or frames", len(keys), pictures)
    if not received:
        queries = queries[:, -1 if behind else 0].clone()  # all of them would stay in memory

    def prepared(name: str, states: Tensor) -> Tensor:
        states = _normalise(attention, name, states).unflatten(-1, heads)
        return states if turn is None else turn(states)

    def cls_first(states: Tensor) -> Tensor:
        return states.roll(1, 1) if behind else states

    def show() -> tuple[Tensor, Tensor]:
        attended = cls_first(prepared("k_norm", keys))
        if not received:
            asking = _normalise(attention, "q_norm", queries).unflatten(-1, heads)
            saliency = cls_attention(asking, attended, scale, registers)
        else:
            grids, length = keys.shape[:2]
            both = cls_first(prepared("q_norm", queries)).flatten(0, 1), attended.flatten(0, 1)
            saliency = attention_received(*both, scale, [length] * grids).view(grids, length)[:, first:]
        return cls_first(keys)[:, first:].flatten(0, 1).unflatten(-1, heads), saliency.flatten()

    return Patches(show)


def without_cls(watched: Watched, pictures: int) -> Patches:
    """Patches of an encoder without [CLS], by the attention they receive: SigLIP, Idefics3, Molmo 2.

    Args:
        watched, pictures: as of `with_cls`.

    Raises:
        UnsupportedModelError: the encoder ran on another number of pictures.
    """
    attention, mask = watched.module, watched.inputs.get("attention_mask")
    grids, length = watched.made_by(KEYS).shape[:2]
    _check_count("pictures, tiles or frames", grids, pictures)
    heads = -1, attention.head_dim
    queries, keys = (watched.made_by(name).flatten(0, 1).unflatten(-1, heads) for name in (QUERIES, KEYS))

    def show() -> tuple[Tensor, Tensor]:
        real = None if mask is None else _real_patches(mask, grids, length)
        return keys, attention_received(queries, _each_head(keys, queries), watched.scale, [length] * grids, real)

    return Patches(show)


def with_rotary(watched: Watched, queries: Tensor, keys: Tensor, lengths: Sequence[int]) -> Patches:
    """Patches of an encoder with rotary positions, by the attention they receive: Pixtral, Qwen's, GLM's.

    Args:
        queries, keys: as they were projected, (patches, heads, head_dim).
        lengths: patches of each grid; the grids stand one after another.

    Raises:
        UnsupportedModelError: the encoder ran on another number of patches.
    """
    rotary = watched.inputs["position_embeddings"]
    return in_one_row(watched, queries, keys, lengths, lambda states: _rotate(states, *rotary))


def in_one_row(
    watched: Watched,
    queries: Tensor,
    keys: Tensor,
    lengths: Sequence[int],
    turn: Callable[[Tensor], Tensor] = lambda states: states,
) -> Patches:
    """Patches of an encoder that has those of all grids in one row, by the attention they receive: MiniCPM-V's.

    Args:
        queries, keys, lengths: as of `with_rotary`.
        turn: what the layer makes of queries and keys before it multiplies them.

    Raises:
        UnsupportedModelError: the encoder ran on another number of patches.
    """
    _check_count("patches", len(keys), sum(lengths))
    scale = watched.module.scaling
    return Patches(lambda: (keys, attention_received(turn(queries), turn(keys), scale, lengths)))


def with_axes(
    watched: Watched, real: Bool[Tensor, "pictures patches"], turn: Callable[[str, Tensor], Tensor]
) -> Patches:
    """Patches of padded pictures in an encoder with rotary positions on two axes, by what they receive: Gemma 4's.

    Args:
        real: where there is a patch and no padding, on the CPU.
        turn: what the layer makes of queries or keys, by the name of their projection, before it multiplies them.

    Raises:
        UnsupportedModelError: the encoder ran on another number of pictures.
    """
    pictures, length = real.shape
    queries, keys = (watched.made_by(name).unflatten(-1, (-1, watched.module.head_dim)) for name in (QUERIES, KEYS))
    _check_count("pictures, tiles or frames", len(keys), pictures)

    def show() -> tuple[Tensor, Tensor]:
        turned = [turn(name, states).flatten(0, 1) for name, states in ((QUERIES, queries), (KEYS, keys))]
        there = upload(real.flatten(), keys.device)
        each = _each_head(turned[1], turned[0])
        saliency = attention_received(turned[0], each, watched.module.scaling, [length] * pictures, there)
        return keys.flatten(0, 1), saliency

    return Patches(show)


def _each_head(
    keys: Float[Tensor, "patches kv_heads head_dim"], queries: Float[Tensor, "patches heads head_dim"]
) -> Float[Tensor, "patches heads head_dim"]:
    """The keys that each head of queries is multiplied with; a head of keys may serve several."""
    return keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)


def _check_count(what: str, seen: int, expected: int) -> None:
    """Raise where it would not be known what belongs to which picture, as where tiles of padding are encoded, too."""
    if seen != expected:
        raise UnsupportedModelError(
            f"The vision encoder ran on {seen} {what} where the sizes that came along say {expected}: give it what the "
            "processor makes of these pictures, and nothing that only pads them."
        )


def _normalise(attention: Any, name: str, states: Tensor) -> Tensor:
    return getattr(attention, name)(states) if hasattr(attention, name) else states


def _rotate(
    states: Shaped[Tensor, "patches heads head_dim"], cos: Tensor, sin: Tensor
) -> Float[Tensor, "patches heads head_dim"]:
    first, second = states.float().chunk(2, dim=-1)
    return states.float() * cos[:, None].float() + torch.cat([-second, first], -1) * sin[:, None].float()


def _real_patches(mask: Tensor, grids: int, length: int) -> Bool[Tensor, " patches"]:
    """Which patches a mask lets others attend to."""
    if not isinstance(mask, Tensor):
        raise UnsupportedModelError(
            f"The padding of pictures cannot be read from a {type(mask).__name__}; use attn_implementation='sdpa'."
        )
    if mask.ndim == 4:
        mask = mask.expand(grids, -1, -1, -1)[:, 0].any(1) if mask.dtype == torch.bool else (mask == 0)[:, 0].any(1)
    return mask.bool().expand(grids, length).flatten()
