"""What the engine must know about a model family."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ..errors import UnsupportedModelError, VitcopError
from ..ops.segments import segment_ids, starts_of
from ..selection.pruner import Calibrate
from ..selection.tokens import SALIENCY, EncoderSignal, VisualTokens
from .decoder import STATES, WINDOWS, attending, check_rows, layer_kinds
from .encoders import Patches, Watched
from .geometry import Geometry, Size
from .grids import Grids
from .repeats import Repeats

Call = dict[str, Any]
"""The arguments of a call, all by name."""


@dataclass(frozen=True)
class Observation:
    """What the vision encoder showed of a batch of images or videos, in the order of their placeholders.

    Attributes:
        images: the grids of each image or video.
        patches: keys and saliency as in `VisualTokens`, one row per visual token, image after image.
        signals: what other layers show of the same tokens, as far as a method asks for them.
    """

    images: tuple[Grids, ...]
    patches: Patches
    signals: dict[EncoderSignal, Patches] = field(default_factory=dict)

    @property
    def keys(self) -> Float[Tensor, "visual heads head_dim"]:
        """Of the layer whose features the model uses."""
        return self._checked(self.patches).keys

    @property
    def saliency(self) -> Float[Tensor, " visual"]:
        """Of the layer whose features the model uses."""
        return self.signal(SALIENCY)

    def signal(self, signal: EncoderSignal) -> Float[Tensor, " visual"]:
        """Attention that each token got.

        Raises:
            VitcopError: the signal was not asked for when the images were encoded.
        """
        if signal == SALIENCY:
            return self._checked(self.patches).saliency
        if signal not in self.signals:
            raise VitcopError(
                f"The encoder was not watched for {signal}: a method names it in `encoder_signals`, and images are "
                "encoded while the model is pruned by that method."
            )
        return self._checked(self.signals[signal]).saliency

    def keys_of(self, rows: Int[Tensor, " some"]) -> Float[Tensor, "some heads head_dim"]:
        """`keys` of some visual tokens, whose numbers ascend."""
        return _rows(self.keys, rows)

    def signal_of(self, signal: EncoderSignal, rows: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
        """`signal` of some visual tokens, whose numbers ascend."""
        return _rows(self.signal(signal), rows)

    def _checked(self, patches: Patches) -> Patches:
        if len(patches.saliency) != sum(self.lengths):
            raise UnsupportedModelError(
                f"The vision encoder saw {len(patches.saliency)} visual tokens where {sum(self.lengths)} were expected "
                "from the sizes of its pictures; pass pictures as its processor makes them, and please report this if "
                "you did."
            )
        return patches

    @property
    def lengths(self) -> tuple[int, ...]:
        """Visual tokens per image, separators left out."""
        return tuple(image.num_tokens for image in self.images)

    @property
    def placeholders(self) -> tuple[int, ...]:
        """Placeholders per image, separators included."""
        return tuple(image.placeholders for image in self.images)

    @staticmethod
    def concatenate(parts: Sequence[Observation]) -> Observation:
        """The images of all `parts`, in order."""
        if len(parts) == 1:
            return parts[0]
        # What was encoded under another method may lack what this one asks for: then it is missed when it is read.
        common = set.intersection(*(set(part.signals) for part in parts))
        return Observation(
            images=tuple(image for part in parts for image in part.images),
            patches=Patches.concatenate([part.patches for part in parts]),
            signals={signal: Patches.concatenate([part.signals[signal] for part in parts]) for signal in common},
        )

    def take(self, spans: Sequence[tuple[int, int]]) -> Observation:
        """The images of all `spans` (first, end), in order; spans may repeat."""
        starts = [0, *accumulate(self.lengths)]
        rows = [(starts[first], starts[end]) for first, end in spans]
        return Observation(
            images=tuple(image for first, end in spans for image in self.images[first:end]),
            patches=self.patches.take(rows),
            signals={signal: patches.take(rows) for signal, patches in self.signals.items()},
        )


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    values = values.to(rows.device)
    return values if len(rows) == len(values) else values[rows]  # rows ascend: as many as there are is all of them


@dataclass(frozen=True)
class VisionModules:
    """What runs between pixels and the decoder.

    Attributes:
        tower: the vision encoder; convolutions in it make its patches, and what is in `embedding`.
        layers: those of the tower.
        windowed: how many of the layers attend within windows.
        merged: how many of the layers, the last ones, run on what a merger among them has made.
        merging: products of that merger which run on what it makes.
        embedding: products within the tower that make its patches and are no convolutions.
        pooling: attention in the projector by which a query for each visual token sees the patches that become it.
        attention: the one that is observed.
        has_cls: whether [CLS] stands before the patches, and shows the saliency.
        projector: all that features go through behind the tower.
    """

    tower: nn.Module
    layers: Sequence[nn.Module]
    attention: nn.Module
    has_cls: bool
    projector: Sequence[nn.Module]
    windowed: int = 0
    merged: int = 0
    merging: Sequence[nn.Module] = ()
    embedding: Sequence[nn.Module] = ()
    pooling: nn.Module | None = None


@dataclass(frozen=True)
class Description:
    """A row of the table of families, besides what the family's other attributes say.

    Attributes:
        saliency: where it comes from.
        grids: what the encoder sees by itself.
        first_layer: the earliest decoder layer before which tokens may be dropped.
        refuses: what raises.
    """

    saliency: str
    grids: str = "picture"
    first_layer: str = "1"
    refuses: tuple[str, ...] = ()


class ModelFamily(ABC):
    """Where things are in one family of models. One subclass per architecture, not per checkpoint.

    Attributes:
        model_types: `config.model_type` of the models that belong to the family.
        modalities: what the encoder turns into visual tokens, by the names that transformers uses.
        described: the family in the words of the table of families.
        keeps_positions: whether surviving tokens always stay at their positions, whatever the method says.
        tiles_are_images: whether the encoder gets tiles without being told which picture they are of; see `joined`.
        closing_tokens: tokens behind an image by which `joined` tells where it ends.
        has_windows: whether decoder layers may attend to a sliding window, or within chunks. The decoder then takes a
            mask for each kind.
        has_blocks: whether tokens of the prompt may see each other both ways; see `attention_blocks`.
        windows_cut_blocks: whether they do so within a sliding window alone.
        has_states: whether decoder layers may fold tokens into a state (linear attention, short convolutions).
        layer_inputs: names of what a decoder layer gets of each token besides hidden states, (batch, tokens, ...).
        runs_on_some: whether the encoder can run on some of the patches of a picture; see `arguments_of_some`.
        first_stage_layer: the earliest decoder layer before which tokens may be dropped, besides 0: at least one before
            it has keys to show.
        key_cutoff: density cutoff known to suit the keys of this vision encoder, or None.
        observed: for each modality the vision attention of the layer whose features the model uses.
        model, base, decoder, layers: the model, its base model, which is itself where it has none, its language model
            and the layers of that.
        layer_kinds: of each decoder layer, as in `config.layer_types`.
        attending: numbers of the decoder layers that attend; the others keep a state.
        num_layers: decoder layers that hold keys and values, or a state, of their own, over which retention is
            averaged. Any behind them use those of the last one of their kind, and hold no token.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    described: ClassVar[Description]
    keeps_positions: ClassVar[bool] = False
    tiles_are_images: ClassVar[bool] = False
    closing_tokens: ClassVar[int] = 0
    has_windows: bool = False
    has_blocks: ClassVar[bool] = False
    windows_cut_blocks: ClassVar[bool] = True
    has_states: ClassVar[bool] = False
    layer_inputs: ClassVar[tuple[str, ...]] = ()
    runs_on_some: ClassVar[bool] = False
    key_cutoff: float | None = None
    observed: dict[str, nn.Module]

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.base: PreTrainedModel = model.base_model
        self.decoder = self.decoder_of(model)
        _check_decoder(self.decoder, self.has_windows, self.has_states)
        self.layers: nn.ModuleList = self.decoder.layers
        self.layer_kinds = layer_kinds(self.decoder.config)
        self.attending = attending(self.decoder.config)
        self.first_stage_layer = self.attending[0] + 1
        attentions = (getattr(layer, "self_attn", None) for layer in self.layers)
        self.num_layers = sum(not getattr(attention, "is_kv_shared_layer", False) for attention in attentions)
        self.check_attention()

    @staticmethod
    def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
        """The language model of a model, without a head."""
        decoder: PreTrainedModel = model.get_decoder()
        return decoder

    @property
    def stage_layers(self) -> range:
        """Decoder layers, besides 0, before which tokens may be dropped.

        Keys and values that layers behind `num_layers` use have to be made of what these hold.
        """
        last, own = self.num_layers - 1, self.layer_kinds[: self.num_layers]
        used = (last - own[::-1].index(kind) for kind in set(self.layer_kinds[self.num_layers :]))
        return range(self.first_stage_layer, min(used, default=last) + 1)

    @property
    def normalises_keys(self) -> bool:
        """Whether the decoder normalises each key (QK-norm), so that key norms say little about a token."""
        attention = self.layers[self.attending[0]].self_attn
        return any(hasattr(attention, name) for name in ("k_norm", "k_layernorm", "key_layernorm", "qk_norm"))

    def keys_before(self, layer: int) -> int:
        """Number of the decoder layer whose keys a stage before `layer` sees: the nearest before it that attends."""
        return max(number for number in self.attending if number < layer)

    def attending_layer(self, layer: int) -> nn.Module:
        """A decoder layer whose queries and keys can be worked out.

        Raises:
            UnsupportedModelError: the layer has none, or not by itself.
        """
        if layer not in self.attending:
            others = ", ".join(str(number) for number in self.attending if number in self.stage_layers)
            elsewhere = f"place the stage before one of layers {others}, or " if others else ""
            raise UnsupportedModelError(
                f"Decoder layer {layer} of this {self.model.config.model_type!r} model folds tokens into a state, and "
                f"has no queries and keys to select by: {elsewhere}use a method that does not look at the layer about "
                "to run."
            )
        module = self.layers[layer]
        check_rows(module, self.decoder.config)
        return module

    def placeholders(self, call: Call) -> dict[str, Bool[Tensor, "batch seq"]]:
        """Where the prompt has a placeholder of each modality.

        Args:
            call: arguments of the base model, with `input_ids` or `inputs_embeds` in them.

        Raises:
            UnsupportedModelError: the placeholders cannot be told from text in `inputs_embeds`.
        """
        tokens = {modality: getattr(self.model.config, f"{modality}_token_id") for modality in self.modalities}
        if (input_ids := call.get("input_ids")) is not None:
            return {modality: input_ids == token for modality, token in tokens.items()}
        inputs_embeds = call["inputs_embeds"]
        embedding = self.model.get_input_embeddings()
        device = inputs_embeds.device
        masks = {
            modality: (inputs_embeds == embedding(torch.full((), token, dtype=torch.long, device=device))).all(-1)
            for modality, token in tokens.items()
        }
        if not torch.stack(list(masks.values())).any():
            raise UnsupportedModelError(
                "Which of these inputs_embeds are visual tokens cannot be seen: pass input_ids, or inputs_embeds that "
                "still hold the image placeholders together with pixel_values."
            )
        return masks

    def check_attention(self) -> None:
        """Raise if the attention backend, which can be changed at any time, cannot be given what the decoder needs."""
        config = self.decoder.config
        if config._attn_implementation not in ALL_MASK_ATTENTION_FUNCTIONS:
            raise UnsupportedModelError(
                f"The attention backend {config._attn_implementation!r} has no function that makes its masks, which "
                "rows that keep different numbers of tokens need; register one by transformers' "
                "AttentionMaskInterface, or use attn_implementation='sdpa'."
            )
        if "flash" not in config._attn_implementation:
            return
        if self.has_windows or self.has_blocks:
            raise UnsupportedModelError(
                "This decoder cannot be pruned with flash attention, which knows neither image masks nor where in "
                "the prompt a window ends; use attn_implementation='sdpa' or 'eager'."
            )
        if "llama_4_scaling_beta" in (getattr(config, "rope_parameters", None) or {}):
            raise UnsupportedModelError(
                "This decoder scales its queries by their positions, which flash attention must not be shown while "
                "their tokens are pruned; use attn_implementation='sdpa'."
            )

    def check_length(self, tokens: int) -> None:
        """Raise if some layers of the decoder attend to so many tokens otherwise than to all before each.

        Those of Llama 4 attend within chunks of the prompt, or scale queries by how many tokens came before, and count
        the tokens that they hold, which are fewer in a pruned prompt.

        Args:
            tokens: of the unpruned prompt, padding included, and of what came behind it.
        """
        config, most = self.decoder.config, tokens
        if "chunked_attention" in self.layer_kinds:
            most = min(most, config.attention_chunk_size)
        if getattr(config, "attn_temperature_tuning", False) and not all(map(self.turns, range(len(self.layers)))):
            most = min(most, config.floor_scale - 1)
        if tokens > most:
            raise UnsupportedModelError(
                f"Beyond {most:,} tokens, layers of the {config.model_type!r} decoder attend within chunks, or scale "
                f"queries by the tokens before them, which they would count in what is left of these {tokens:,}: ask "
                "with fewer or smaller pictures, so that prompt and answer are no longer before any is dropped."
            )

    def sole_modality(self, call: Call) -> str:
        """What comes along with prompts that have one placeholder for pictures and videos; "image" if nothing does.

        Args:
            call: arguments of the base model.

        Raises:
            UnsupportedModelError: both do.
        """
        pixels = {"image": call.get("pixel_values"), "video": call.get("pixel_values_videos")}
        encoded = call.get("mm_encoder_outputs") or {}
        shown = [kind for kind in pixels if pixels[kind] is not None or encoded.get(kind) is not None]
        if len(shown) > 1:
            raise UnsupportedModelError(
                f"The prompts of a {self.model.config.model_type!r} model have the same placeholder for pictures and "
                "videos, so that transformers takes only one of them in a batch; ask about each in a batch of its own."
            )
        return shown[0] if shown else "image"

    def rotary(self, layer: int) -> nn.Module | None:
        """What makes the rotary embedding of a decoder layer, if the decoder has it where we know it."""
        return getattr(self.decoder, "rotary_emb", None)

    def turns(self, layer: int) -> bool:
        """Whether a decoder layer turns its queries and keys by the rotary embedding that it gets."""
        return bool(getattr(getattr(self.layers[layer], "self_attn", None), "use_rope", True))

    def rotary_frequencies(self, layer: int) -> Float[Tensor, " planes"]:
        """The angles by which the rotary embedding of a decoder layer turns its planes from one position to the next.

        Raises:
            UnsupportedModelError: positions have several axes, angles depend on the length of the prompt, or some
                channels, or layers, are not turned.
        """
        rotary, attention = self.rotary(layer), getattr(self.layers[layer], "self_attn", None)
        kind = self.layer_kinds[layer]
        frequencies = getattr(rotary, f"{kind}_inv_freq", getattr(rotary, "inv_freq", None))
        types = getattr(rotary, "rope_type", None)
        unlike = {"dynamic", "longrope", "proportional"} & set(types.values() if isinstance(types, dict) else [types])
        several = any(self.rotary(other) is not rotary for other in range(len(self.layers)))
        turned = 2 * len(frequencies) if frequencies is not None and self.turns(layer) else 0
        all_turned = turned == getattr(attention, "head_dim", None)
        if frequencies is None or self.keeps_positions or several or unlike or not all_turned:
            raise UnsupportedModelError(
                "calibrate='distance' needs one rotary embedding, of one axis, that turns all channels of every layer "
                "by angles which do not change with the length, and this "
                f"{self.model.config.model_type!r} has another; use calibrate='size'."
            )
        return frequencies

    def check_calibration(self, calibrate: Calibrate | None) -> None:
        """Raise if attention cannot be calibrated in this way, by the decoder or by its backend."""
        if calibrate == "none":
            return
        if calibrate == "distance":
            for layer in range(len(self.layers)):
                self.rotary_frequencies(layer)
        backend = self.decoder.config._attn_implementation
        # On a CPU, flex attention reads beyond the end of a mask of floats: that of torch 2.13 corrupts memory.
        if "flash" in backend or "flex" in backend:
            raise UnsupportedModelError(
                f"Flash and flex attention cannot count a token several times, which calibrate={calibrate!r} asks for; "
                "use attn_implementation='sdpa', or calibrate='none'."
            )

    def check_prefix(self) -> None:  # noqa: B027 - most families have nothing to refuse
        """Raise if where the images of a prompt end depends on what stands behind them."""

    def check_encoding(self, call: Call) -> None:  # noqa: B027 - most families have nothing to refuse
        """Raise if this call of `get_image_features` or the like asks for features that `shown` does not see."""

    def features_in(self, output: Any) -> Tensor | Sequence[Tensor]:
        """What an output of the encoder holds for the placeholders, in one part or several: (..., channels)."""
        features: Tensor | Sequence[Tensor] = output.pooler_output
        return features

    @abstractmethod
    def encoder_attention(self, modality: str, depth: float) -> nn.Module:
        """The attention of the encoder layer that stands at this share of the encoder's depth, above 0 and at most 1.

        Where some layers attend to windows only, it is that of the nearest one that attends to all.
        """

    @abstractmethod
    def grids(self, modality: str, call: Call) -> tuple[Grids, ...]:
        """The grids of each image or video of a call of the encoder, known from the sizes in it before it runs.

        Args:
            modality: "image" or "video".
            call: arguments of `get_image_features` or `get_video_features`.
        """

    @abstractmethod
    def shown(self, modality: str, call: Call, watched: Watched) -> Patches:
        """What one layer of the encoder shows of every visual token, in the order of their placeholders.

        Args:
            modality, call: as of `grids`.
            watched: the attention of that layer in this call.

        Raises:
            UnsupportedModelError: the encoder ran on other pictures than the sizes say.
        """

    def observe(self, modality: str, call: Call, watched: Watched) -> Observation:
        """The grids of a call of the encoder, and what one of its layers shows of them; arguments as of `shown`."""
        return Observation(self.grids(modality, call), self.shown(modality, call, watched))

    @property
    @abstractmethod
    def default_size(self) -> Size:
        """A picture of the size that the number of visual tokens is usually given for."""

    @abstractmethod
    def geometry(self, size: Size) -> Geometry:
        """What the encoder sees of a picture or video, and what enters the decoder, from the config alone.

        Where a processor's setting decides, which is not in the config, it is the default of its class.

        Raises:
            UnsupportedModelError: the processor would not take this size.
        """

    def encoded_size(self, size: Size, inputs: Mapping[str, Any]) -> Size:
        """The size that `geometry` has to be asked for, of a picture of which a processor has made `inputs`."""
        return size

    @abstractmethod
    def vision(self, modality: str) -> VisionModules:
        """The modules that turn a modality into rows of the decoder."""

    def encoder_places(self, sizes: Tensor) -> Int[Tensor, " tokens"]:
        """Where the layers of an encoder that `runs_on_some` have each visual token, on the CPU.

        Args:
            sizes: frames, rows and columns of each picture, in patches.
        """
        raise NotImplementedError

    def arguments_of_some(self, sizes: Tensor, repeats: Repeats) -> Call:
        """What an encoder that `runs_on_some` works out of sizes if it is not given it, for the tokens that go in.

        Args:
            sizes: as of `encoder_places`.
            repeats: which tokens these are.
        """
        raise NotImplementedError

    def joined(self, tokens: Tensor, starts: Sequence[tuple[int, int]], lengths: Sequence[int]) -> list[bool]:
        """Whether each image that was observed is a further tile of the one before it.

        Args:
            tokens: ids (batch, seq) or embeddings (batch, seq, hidden) of the prompts.
            starts: row and column of the first placeholder of each image.
            lengths: placeholders of each image.
        """
        return [False] * len(starts)

    def positions_alone(self, tokens: VisualTokens) -> Int[Tensor, "visual *axes"]:
        """Rotary positions of visual tokens, from 0 in each image by itself; with axes where a token has several."""
        lengths, device = tokens.lengths, tokens.rows.device
        number = torch.arange(sum(lengths), device=device)
        return number - starts_of(lengths, device)[segment_ids(lengths, device)]

    def attention_blocks(self, call: Call) -> dict[str, Int[Tensor, "batch seq"]]:
        """Kinds of layers in which tokens of one block see each other both ways: the block of each, -1 for none.

        Args:
            call: arguments of the base model.

        Raises:
            UnsupportedModelError: they do not say.
        """
        return {}

    def gather_features(self, kwargs: Call, slots: Int[Tensor, "batch kept"], alive: Tensor, count: int) -> Call:
        """What the decoder gets besides embeddings, after tokens were dropped from what enters it.

        Args:
            kwargs: arguments of the decoder.
            slots: where each token that goes on stood before.
            alive: where in `slots` there is a token and no padding, (batch, kept).
            count: visual tokens that go on, over the whole batch.
        """
        return {}


def _check_decoder(decoder: PreTrainedModel, has_windows: bool, has_states: bool) -> None:
    """Raise unless layers attend in a way we can follow, and get their cache, mask and positions by name."""
    config = decoder.config
    layers: Sequence[nn.Module] = getattr(decoder, "layers", ())
    kinds = set(getattr(config, "layer_types", None) or ())
    known = {"full_attention"} | (WINDOWS if has_windows else set()) | (STATES if has_states else set())
    if kinds - known or (not kinds and getattr(config, "sliding_window", None)):
        raise UnsupportedModelError(
            f"The {config.model_type!r} decoder has sliding-window or other partial attention, which is supported for "
            "no family but Gemma 3 and 4, PaliGemma, Cohere's and Llama 4; use a checkpoint whose layers attend to all "
            "tokens before them."
        )
    kept = [layer for layer, kind in zip(layers, layer_kinds(config), strict=False) if kind not in STATES]
    if not kept or not all(hasattr(layer, "self_attn") for layer in kept):
        raise UnsupportedModelError(
            f"The {config.model_type!r} decoder has no `layers` with a `self_attn` each, so that it cannot be pruned; "
            "use a model with a Llama-like decoder."
        )
    parameters = inspect.signature(layers[0].forward).parameters
    takes_cache = "cache" in parameters or "past_key_values" in parameters
    if not {"attention_mask", "position_embeddings"} <= parameters.keys() or not takes_cache:
        raise UnsupportedModelError(
            f"The layers of the {config.model_type!r} decoder do not take cache, mask and rotary embeddings by the "
            "usual names, so that they cannot be pruned; use a model with a Llama-like decoder."
        )
