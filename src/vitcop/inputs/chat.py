"""A question about pictures or a video, as a model takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..errors import VitcopError, reason
from .prompts import prompt_about
from .video import Clip

MAX_NEW_TOKENS = 64

Subject = tuple[Image.Image, ...] | Clip
"""What a question is about: pictures, or a video."""


def modality_of(subject: Subject) -> str:
    """What transformers calls the kind of the subject."""
    return "video" if isinstance(subject, Clip) else "image"


def pictures_in(subject: Subject) -> tuple[Image.Image, ...]:
    """The pictures, or the frames of the video."""
    return subject.frames if isinstance(subject, Clip) else subject


@dataclass(frozen=True)
class Chat:
    """A loaded model, and a question about pictures or a video as it takes it."""

    model: Any
    processor: Any
    inputs: Any
    max_new_tokens: int

    @staticmethod
    def about(
        subject: Subject, question: str, model: Any, processor: Any, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> Chat:
        modality = modality_of(subject)
        prompt = prompt_about(question, processor, modality, 1 if isinstance(subject, Clip) else len(subject))
        try:
            inputs = processor(text=prompt, return_tensors="pt", **_visual_arguments(subject))
        except Exception as error:  # a processor does what the settings of a checkpoint say, and can raise anything
            raise VitcopError(
                f"The model cannot take the question {question!r} on this {modality}: {reason(error)}"
            ) from error
        return Chat(model, processor, inputs.to(model.device, dtype=model.dtype), max_new_tokens)

    def answer(self, streamer: Any = None) -> str:
        """What the model says, greedily.

        Args:
            streamer: as `generate` takes it, told of every token.
        """
        output = self.generate(self.max_new_tokens, streamer=streamer)
        new = output[:, self.inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, skip_special_tokens=True)[0].strip()

    @property
    def pixel_values(self) -> Any:
        """Of its pictures, as the processor made them; None about a video."""
        return self.inputs.get("pixel_values")

    def generate(self, max_new_tokens: int, **options: Any) -> Any:
        return self.model.generate(**self.inputs, **options, max_new_tokens=max_new_tokens, do_sample=False)


def _visual_arguments(subject: Subject) -> dict[str, Any]:
    """Pictures or a video as the processors of transformers take them."""
    if isinstance(subject, Clip):
        # They may not take frames away again, but some write into the prompt when each frame was.
        return {
            "videos": [list(subject.frames)],
            "video_metadata": [subject.metadata],
            "do_sample_frames": False,
        }
    return {"images": list(subject)}
