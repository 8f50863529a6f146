"""A question as a model wants to be asked it."""

from __future__ import annotations

from typing import Any

from ..errors import VitcopError, reason


def prompt_about(question: str, processor: Any, modality: str | None) -> str:
    """The prompt with one picture or video before the question, by the processor's chat template if it has one.

    Args:
        question: without placeholders.
        processor: of a transformers model.
        modality: "image" or "video"; None asks without either.

    Raises:
        VitcopError: the template fails.
    """
    if getattr(processor, "chat_template", None) is not None:
        content = [{"type": "text", "text": question}]
        if modality is not None:
            content.insert(0, {"type": modality})
        try:
            return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        except Exception as error:  # it is a program of the checkpoint's, and can raise anything
            raise VitcopError(
                f"The chat template of the model fails: {reason(error)} Give a model with a template that works."
            ) from error
    placeholder = "" if modality is None else f"{placeholder_of(processor, modality)}\n"
    return f"USER: {placeholder}{question} ASSISTANT:"


def placeholder_of(processor: Any, modality: str) -> str:
    """What stands for a picture or a video in a prompt."""
    return getattr(processor, f"{modality}_token", f"<{modality}>")
