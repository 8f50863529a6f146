"""What pruning a prompt would save, from a model's config alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby, pairwise
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PretrainedConfig

from ..errors import BudgetError, UnsupportedModelError, VitcopError, reason
from ..models import Geometry, ModelFamily, Size, VisionModules, family_of, known_family
from ..selection.pruner import Pruner, SmallImages, checked_budgets
from ..selection.stage_shape import StageShape
from ..selection.tokens import SALIENCY, EncoderSignal
from .closed_forms import (
    VisionCost,
    decoder_widths,
    kv_cache_bytes,
    layer_flops,
    prefill_flops,
    query_channels,
    signal_flops,
    vision_cost,
)

TEXT_TOKENS = 64
LONGEST_SIDE, MOST_FRAMES, MOST_TEXT, MOST_LAYERS = 100_000, 10_000, 10_000_000, 1000
_STEPS = 40  # of bisection


@dataclass(frozen=True)
class Flops:
    """Floating point operations until the first token; see `cost` for what is counted.

    Attributes:
        vision, projector, decoder: of the model.
        selection: of the pruning method.
    """

    vision: int
    projector: int
    decoder: int
    selection: int

    @property
    def total(self) -> int:
        return self.vision + self.projector + self.decoder + self.selection


@dataclass(frozen=True)
class Plan:
    """One prompt with one picture or video, dense and pruned.

    Attributes:
        method: how it is pruned.
        size: of the picture or video.
        geometry: what the encoder sees of it, and what enters the decoder.
        text_tokens: assumed in the prompt besides placeholders and what the processor writes among them, all of them
            behind the image.
        visual_tokens: alive in each decoder layer.
        stages: decoder layer before which a stage stands -> visual tokens alive from there on.
        dense_flops, flops: until the first token.
        least_flops: of a prompt whose visual tokens are all dropped before the decoder.
        dense_kv_bytes, kv_bytes: of the prompt's keys and values, unquantised.
        bytes_per_value: of a key or value.
    """

    method: Pruner
    size: Size
    geometry: Geometry
    text_tokens: int
    visual_tokens: tuple[int, ...]
    stages: dict[int, int]
    dense_flops: Flops
    flops: Flops
    least_flops: Flops
    dense_kv_bytes: int
    kv_bytes: int
    bytes_per_value: int

    @property
    def stretches(self) -> list[tuple[int, int, int]]:
        """First and last of consecutive decoder layers with the same number of visual tokens, and that number."""
        found, layer = [], 0
        for alive, layers in groupby(self.visual_tokens):
            first, layer = layer, layer + len(list(layers))
            found.append((first, layer - 1, alive))
        return found

    @property
    def average_retention(self) -> float:
        """Share of the visual tokens alive, averaged over the decoder layers."""
        return sum(self.visual_tokens) / (len(self.visual_tokens) * self.geometry.image.num_tokens)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt before pruning."""
        return self.text_tokens + self.geometry.markers + self.geometry.image.placeholders

    @property
    def flops_share(self) -> float:
        """Of the dense prompt's."""
        return self.flops.total / self.dense_flops.total

    @property
    def encoder_share(self) -> float:
        """Of the dense prompt's operations, those of the vision tower and the projector, which pruning leaves alone."""
        return (self.dense_flops.vision + self.dense_flops.projector) / self.dense_flops.total

    @property
    def most_speedup(self) -> float:
        """How many times fewer operations the first token can need, whatever is dropped behind the encoder."""
        return self.dense_flops.total / self.least_flops.total

    @property
    def kv_share(self) -> float:
        """Of the dense prompt's."""
        return self.kv_bytes / self.dense_kv_bytes

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, ready for JSON."""
        image = self.geometry.image
        return {
            **self.method.to_dict(),
            **dataclasses.asdict(self.size),
            "grids": [list(shape) for shape in image.shapes],
            "visual_tokens": image.num_tokens,
            "separators": image.placeholders - image.num_tokens,
            "markers": self.geometry.markers,
            "text_tokens": self.text_tokens,
            "stages": {str(layer): count for layer, count in self.stages.items()},
            "average_retention": self.average_retention,
            "prefill_flops": {"dense": _flops_dict(self.dense_flops), "pruned": _flops_dict(self.flops)},
            "flops_share": self.flops_share,
            "encoder_share": self.encoder_share,
            "most_speedup": self.most_speedup,
            "kv_cache_bytes": {"dense": self.dense_kv_bytes, "pruned": self.kv_bytes},
            "kv_share": self.kv_share,
            "bytes_per_value": self.bytes_per_value,
        }


@dataclass(frozen=True)
class Planner:
    """A model and a prompt, for which any method can be planned.

    Attributes:
        family: of the model, whose weights need not be there.
        size: of the one picture or video in the prompt.
        text_tokens: in the prompt besides placeholders and what the processor writes among them.
    """

    family: ModelFamily
    size: Size
    text_tokens: int = TEXT_TOKENS

    @staticmethod
    def of(
        config: PretrainedConfig,
        *,
        height: int | None = None,
        width: int | None = None,
        frames: int | None = None,
        text_tokens: int = TEXT_TOKENS,
    ) -> Planner:
        """Read the model off its config.

        Args:
            config: of the whole model.
            height, width: of the picture or of the frames, in pixels; the family's usual size if both are absent.
            frames: of a video; None plans for a picture.
            text_tokens: in the prompt besides placeholders and what the processor writes among them.

        Raises:
            UnsupportedModelError: the model cannot be pruned, or takes no such input.
            VitcopError: a number is out of range.
        """
        if (height is None) != (width is None):
            raise VitcopError("height and width go together; give both, or neither for the usual size.")
        for name, value, least, most in (
            ("height", height, 1, LONGEST_SIDE),
            ("width", width, 1, LONGEST_SIDE),
            ("frames", frames, 1, MOST_FRAMES),
            ("text_tokens", text_tokens, 0, MOST_TEXT),
        ):
            if value is not None and not least <= value <= most:
                raise VitcopError(f"{name} has to be from {least} to {most}; got {value}.")
        kind = known_family(config.model_type)
        if frames is not None and "video" not in kind.modalities:
            raise UnsupportedModelError(
                f"Models of type {config.model_type!r} take no videos, or only as pictures of their own; leave out the "
                "number of frames."
            )
        _check_layers(config)
        with _errors_of_config():
            with torch.device("meta"):
                family = family_of(AutoModelForImageTextToText.from_config(config, trust_remote_code=False))
            usual = family.default_size
            planner = Planner(family, Size(height or usual.height, width or usual.width, frames), text_tokens)
            if not planner.geometry.image.num_tokens:
                raise UnsupportedModelError(
                    f"The processor makes no visual token of {planner.size.width} x {planner.size.height} pixels; give "
                    "a picture that is not as thin."
                )
        return planner

    @cached_property
    def geometry(self) -> Geometry:
        return self.family.geometry(self.size)

    def plan(self, method: Pruner, *, small_images: SmallImages = "floor") -> Plan:
        """What `method` would leave and save.

        Args:
            small_images: as in `vitcop.prune`.

        Raises:
            BudgetError: the method cannot reach its retention here.
        """
        image, config, layers = self.geometry.image, self.family.decoder.config, self.family.num_layers
        others = self.prompt_tokens - image.num_tokens
        stages = checked_budgets(method, image.num_tokens, layers, self.family.stage_layers, small_images)
        alive = [image.num_tokens] * layers
        for layer, count in stages.items():
            alive[layer:] = [count] * (layers - layer)
        dense, pruned = [self.prompt_tokens] * layers, [others + count for count in alive]
        tower, projector = self._vision.tower, self._vision.projector
        return Plan(
            method=method,
            size=self.size,
            geometry=self.geometry,
            text_tokens=self.text_tokens,
            visual_tokens=tuple(alive),
            stages=stages,
            dense_flops=Flops(tower, projector, prefill_flops(config, dense), 0),
            flops=Flops(tower, projector, prefill_flops(config, pruned), self._selection(method, stages)),
            least_flops=Flops(tower, projector, prefill_flops(config, [others] * layers), 0),
            dense_kv_bytes=kv_cache_bytes(config, dense, self._bytes_per_value),
            kv_bytes=kv_cache_bytes(config, pruned, self._bytes_per_value),
            bytes_per_value=self._bytes_per_value,
        )

    def for_tokens(self, method: Pruner, tokens: int | float) -> Plan:
        """The method at the retention that averages `tokens` visual tokens over the decoder layers.

        Raises:
            BudgetError: there are not as many, or the method cannot keep so few.
        """
        count = self.geometry.image.num_tokens
        if not 0 < tokens <= count:
            raise BudgetError(
                f"tokens is above 0 and at most {count}, all visual tokens of the prompt; got {tokens:g}."
            )
        return self.plan(_at(method, tokens / count), small_images="refuse")

    def for_flops(self, method: Pruner, share: float) -> Plan:
        """The method at the highest retention that needs at most `share` of the dense prompt's operations.

        Raises:
            BudgetError: no retention needs so few.
        """
        if not 0 < share <= 1:
            raise BudgetError(f"flops is a share of the dense prompt's, above 0 and at most 1; got {share:g}.")
        return self._solve(method, share, lambda plan: plan.flops_share, "of the dense FLOPs")

    def for_kv_mb(self, method: Pruner, megabytes: float) -> Plan:
        """The method at the highest retention whose keys and values take at most `megabytes` of 10^6 bytes.

        Raises:
            BudgetError: no retention takes so few.
        """
        return self._solve(method, megabytes, lambda plan: plan.kv_bytes / 1e6, "MB of KV cache")

    def _solve(self, method: Pruner, most: float, measure: Callable[[Plan], float], unit: str) -> Plan:
        """The plan of highest retention that measures at most `most`."""
        plans = self._samples(method)
        fitting = [plan for plan in plans if measure(plan) <= most]
        if not fitting:
            raise BudgetError(
                f"{method.name} cannot get down to {most:.4g} {unit}; with this prompt {measure(plans[-1]):.4g} to "
                f"{measure(plans[0]):.4g} is possible."
            )
        best = fitting[0]
        above = [_retention(plan) for plan in plans if _retention(plan) > _retention(best)]
        return self._refine(method, best, min(above), lambda plan: measure(plan) <= most) if above else best

    def _samples(self, method: Pruner) -> list[Plan]:
        """Plans from the highest to the lowest retention that the method can reach."""
        plans, low = [], 0.0
        for step in range(4 * self.geometry.image.num_tokens.bit_length()):
            retention = 2 ** (-step / 4)
            try:
                plans.append(self.plan(_at(method, retention), small_images="refuse"))
            except BudgetError as error:
                refusal, low = error, retention
                if plans:
                    break
        if not plans:
            raise refusal
        return [*plans, self._refine(method, plans[-1], low, lambda plan: True)]

    def _refine(self, method: Pruner, good: Plan, bad: float, fits: Callable[[Plan], bool]) -> Plan:
        """Go from a plan that fits as far as plans fit towards a retention that does not."""
        for _ in range(_STEPS):
            middle = (_retention(good) + bad) / 2
            try:
                plan = self.plan(_at(method, middle), small_images="refuse")
            except BudgetError:
                bad = middle
                continue
            good, bad = (plan, bad) if fits(plan) else (good, middle)
        return good

    def _selection(self, method: Pruner, stages: dict[int, int]) -> int:
        """Floating point operations of the method, over all of its stages."""
        image = self.geometry.image
        counts = [image.num_tokens, *stages.values()]
        if min(counts) == image.num_tokens:
            return 0  # nothing is ever dropped, and so nothing selected

        def shown(layer: int, before: int) -> int:
            """Visual tokens in the layer whose keys and attention a stage sees, `before` having come to it."""
            if layer == 0:
                return before
            seen = self.family.keys_before(layer)
            return counts[sum(stage <= seen for stage in stages)]

        return sum(
            method.selection_flops(self._shape(layer, number, before, after, shown(layer, before)))
            for number, (layer, (before, after)) in enumerate(zip(stages, pairwise(counts), strict=True))
        )

    def _shape(self, layer: int, stage: int, before: int, after: int, shown: int) -> StageShape:
        """Sizes at a stage; of visual tokens `before` come to it, `after` stay, and it sees `shown` in a layer."""
        image, vision, config = self.geometry.image, self._vision, self.family.decoder.config
        others, seen = self.prompt_tokens - image.num_tokens, self.family.keys_before(layer) if layer else 0
        hidden, queries, keys = decoder_widths(config, seen)
        _, ahead_queries, ahead_keys = decoder_widths(config, layer)
        return StageShape(
            layer=layer,
            stage=stage,
            before=before,
            after=after,
            grids=image.sizes,
            prompt=before + others,
            shown=shown + others,
            text=self.text_tokens,
            hidden=hidden,
            query_width=queries,
            query_channels=query_channels(config, seen),
            key_width=vision.key_width if layer == 0 else keys,
            head_dim=vision.head_dim if layer == 0 else queries // config.num_attention_heads,
            ahead_query_width=ahead_queries,
            ahead_query_channels=query_channels(config, layer),
            ahead_key_width=ahead_keys,
            saliency=self._shown_by(SALIENCY),
            encoder_signal=self._shown_by,
            decoder_layer=partial(layer_flops, config),
            normalised_keys=self.family.normalises_keys,
        )

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt before pruning."""
        return self.text_tokens + self.geometry.markers + self.geometry.image.placeholders

    @cached_property
    def _modules(self) -> VisionModules:
        return self.family.vision(self.size.modality)

    @cached_property
    def _vision(self) -> VisionCost:
        return vision_cost(self._modules, self.geometry)

    def _shown_by(self, signal: EncoderSignal) -> int:
        """Floating point operations of a signal of the encoder."""
        attention = self._modules.attention
        if signal.depth is not None:
            attention = self.family.encoder_attention(self.size.modality, signal.depth)
        return signal_flops(self._modules, self.geometry, attention, received=signal.received)

    @cached_property
    def _bytes_per_value(self) -> int:
        config = self.family.model.config
        dtype = getattr(config, "dtype", None) or getattr(self.family.decoder.config, "dtype", None) or torch.bfloat16
        return (getattr(torch, dtype) if isinstance(dtype, str) else dtype).itemsize


def _check_layers(config: PretrainedConfig) -> None:
    """Raise before minutes go into layers that no model has."""
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    counts = [getattr(part, name, 0) for part in parts for name in ("num_hidden_layers", "depth")]
    most = max(count for count in counts if isinstance(count, int))
    if most > MOST_LAYERS:
        raise UnsupportedModelError(f"The config has {most:,} layers, and plans are made for up to {MOST_LAYERS:,}.")


@contextmanager
def _errors_of_config() -> Iterator[None]:
    """Say in one line that a config describes no model."""
    try:
        yield
    except VitcopError:
        raise
    except Exception as error:  # sizes that are none come out in whatever is made of them
        raise UnsupportedModelError(
            f"The config describes no model that can be built: {reason(error)} Mend the config."
        ) from error


def _at(method: Pruner, retention: float) -> Pruner:
    """The method with another retention."""
    if "retention" not in {field.name for field in dataclasses.fields(method)}:
        raise VitcopError(f"{method.name} has no retention that could be solved for; choose another method.")
    return dataclasses.replace(method, retention=retention, tokens=None)  # type: ignore[call-arg]


def _retention(plan: Plan) -> float:
    """That the method was asked for."""
    return plan.method.retention


def _flops_dict(flops: Flops) -> dict[str, int]:
    return {**dataclasses.asdict(flops), "total": flops.total}
