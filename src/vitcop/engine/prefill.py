"""A prompt's first forward: its images are found, and then its stages run."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from ..entrance import schedules
from ..models import ModelFamily, Observation
from ..models.base import Call
from ..report import Report
from ..selection.pruner import Pruner, SmallImages
from .forward import Forward
from .placement import Placeholders, place_images
from .refusals import check_drafted, check_kinds, check_text_behind
from .signals import Prompts
from .stages import Stages


class Prefill(Forward):
    """A batch of prompts that the model reads for the first time.

    Attributes:
        observations: of each modality, what the vision encoder has shown of this batch, in order.
        stages: what becomes of it in the decoder; None until it enters there.
    """

    def __init__(
        self,
        family: ModelFamily,
        method: Pruner,
        call: Call,
        placeholders: Placeholders,
        small_images: SmallImages = "floor",
        *,
        prefix: bool = False,
    ) -> None:
        family.check_attention()
        self.prefix = prefix
        self.family, self.method, self.placeholders, self.small_images = family, method, placeholders, small_images
        self.observations: dict[str, list[Observation]] = {modality: [] for modality in family.modalities}
        self.stages: Stages | None = None
        ids = call.get("input_ids")
        self.prompts: Tensor = ids if ids is not None else call["inputs_embeds"]
        self.blocks = family.attention_blocks(call)
        if drafted := placeholders.drafted:
            # To drafts transformers gives kinds in some models only; they are text, which sees what is before it.
            self.blocks = {
                kind: pad(block, (0, drafted), value=-1) if block.shape[1] == placeholders.undrafted else block
                for kind, block in self.blocks.items()
            }
        check_kinds(self.blocks, self.prompts)
        check_drafted(self.blocks, placeholders)

    def enter(self, kwargs: Call) -> Call:
        """Apply stage 0 to what enters the language model."""
        family, embeddings = self.family, kwargs["inputs_embeds"]
        if self.prefix:
            check_text_behind(kwargs.get("position_ids"))
        placed = place_images(family, self.prompts, self.placeholders, self.observations)
        lengths = placed.observation.lengths
        schedule = schedules(self.method, family, lengths, self.small_images)
        prompts = Prompts(
            embeddings=embeddings,
            visual=placed.slots.to(embeddings.device),
            lengths=lengths,
            rows=placed.rows,
            placeholders=self.placeholders,
            blocks=self.blocks,
            prefix=self.prefix,
        )
        self.stages = Stages(family, self.method, prompts, placed, schedule)
        if self.stages.layers:
            family.check_length(embeddings.shape[1])
            family.check_calibration(self.method.calibrate)
        return self.stages.enter(kwargs)

    def leaves_alone(self, kwargs: Call) -> bool:
        """Whether no layer needs anything from us, since nothing is dropped."""
        return not self._entered.layers

    def before_layer(self, layer: int, hidden_states: Tensor, kwargs: Call) -> tuple[Tensor, Call]:
        """Apply the stage that stands before `layer`, and give the layer what fits its tokens."""
        return self._entered.before_layer(layer, hidden_states, kwargs)

    def finish(self) -> Report:
        """What was kept. What went wrong at a stage is told now, at once, so that no stage waits for the device."""
        self._entered.check()
        return self._entered.report()

    def release(self) -> None:
        if self.stages is not None:
            self.stages.release()

    @property
    def _entered(self) -> Stages:
        assert self.stages is not None
        return self.stages
