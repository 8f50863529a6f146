"""A question as a model wants to be asked it."""

from __future__ import annotations

from typing import Any

from ..errors import VitcopError, reason


def prompt_about(question: str, processor: Any, modality: str | None, count: int = 1) -> str:
    """The prompt with pictures or a video before the question, by the processor's chat template if it has one.

    Args:
        question: of words alone.
        processor: of a transformers model.
        modality: "image" or "video"; None asks without either.
        count: how many of them.

    Raises:
        VitcopError: the template fails, or the question holds what stands for the picture or video.
    """
    if modality is not None and (token := placeholder_of(processor, modality)) in question:
        raise VitcopError(f"The question {question!r} holds {token!r}, which stands for the {modality}.")
    if getattr(processor, "chat_template", None) is not None:
        visuals = [] if modality is None else [{"type": modality}] * count
        content = [*visuals, {"type": "text", "text": question}]
        try:
            return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        except Exception as error:  # it is a program of the checkpoint's, and can raise anything
            raise VitcopError(
                f"The chat template of the model fails: {reason(error)} Give a model with a template that works."
            ) from error
    placeholders = "" if modality is None else f"{placeholder_of(processor, modality)}\n" * count
    return f"USER: {placeholders}{question} ASSISTANT:"


def placeholder_of(processor: Any, modality: str) -> str:
    """What stands for a picture or a video in a prompt."""
    return getattr(processor, f"{modality}_token", f"<{modality}>")
