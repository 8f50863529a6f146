"""The page, made with Gradio: what stands on it, and what each request gives."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .. import builtin
from ..errors import VitcopError, one_line
from ..figures import figure
from ..inputs.chat import Subject
from ..inputs.pictures import read_picture
from ..inputs.video import read_clip
from ..selection.pruner import Pruner
from .asking import Model

# Gradio counts who starts it, and tells its makers, unless it is told not to before it is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio

logger = logging.getLogger("vitcop")

DENSE = "dense"
LONGEST_QUEUE = 16  # requests that wait; whoever comes then is told to try again
LARGEST_UPLOAD = "64mb"
SESSIONS_KEPT = 64  # of those who have the page open: Gradio remembers what stands on it
UPLOADS_KEPT = 600  # seconds, and as long between looks
FRAMES = 8
LONGEST_ANSWER = 64  # tokens
LONGEST_QUESTION = 2000  # characters
LOWEST, HIGHEST = 0.02, 1.0


def make_page(models: Mapping[str, Model], methods: Sequence[str]) -> gradio.Blocks:
    """A page on which these models answer under these methods.

    Args:
        models: by the names that they are chosen by, the first of them at first.
        methods: names to choose from, beside the dense model.
    """
    choices, first = [*methods, DENSE], next(iter(models))
    with gradio.Blocks(title="vitcop", analytics_enabled=False, delete_cache=(UPLOADS_KEPT, UPLOADS_KEPT)) as page:
        gradio.Markdown("# vitcop\nAsk a question about a picture, and see which visual tokens the answer was made of.")
        with gradio.Row():
            with gradio.Column(scale=1):
                model = gradio.Dropdown(list(models), value=first, label="Model", visible=len(models) > 1)
                picture = gradio.Image(str(builtin.EXAMPLE_PICTURE), type="filepath", label="Picture", height=320)
                with gradio.Accordion("A short clip in place of the picture", open=False):
                    clip = gradio.File(label="Clip", file_types=["video"], type="filepath")
                question = gradio.Textbox(builtin.example_question(), label="Question", max_lines=4)
                button = gradio.Button("Ask", variant="primary")
            sides = [_side(choices, chosen) for chosen in ("vitcop", DENSE)]
        subject = [model, picture, clip]
        for method, retention, estimate, shown in sides:
            asked = [*subject, method, retention]
            settled = {"fn": _estimating(models), "inputs": asked, "outputs": estimate}
            for changed in asked:
                changed.change(**settled, show_progress="hidden", trigger_mode="always_last", api_name=False)
            page.load(**settled, show_progress="hidden", api_name=False)
            gradio.on(
                [button.click, question.submit],
                _answering(models),
                [*asked, question],
                shown,
                concurrency_limit=1,
                concurrency_id="model",
                api_name=False,
            )
    return page.queue(max_size=LONGEST_QUEUE)


def serve_page(page: gradio.Blocks, host: str, port: int | None, *, wait: bool = True) -> str:
    """Answer browsers, until somebody stops it or, without waiting, the page is closed.

    Args:
        page: of `make_page`.
        host: address to listen on.
        port: to listen on; None for any that is free.
        wait: whether to come back only then.

    Returns:
        The address of the page.

    Raises:
        OSError: the port is taken.
    """
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        max_file_size=LARGEST_UPLOAD,
        state_session_capacity=SESSIONS_KEPT,
        share=False,
        show_error=False,
        quiet=not wait,
        prevent_thread_lock=not wait,
    )
    return str(address)


def _side(choices: list[str], chosen: str) -> tuple[Any, Any, Any, Any]:
    """What one of the two methods is chosen by, and where its answer goes."""
    with gradio.Column(scale=2):
        with gradio.Row():
            method = gradio.Dropdown(choices, value=chosen, label="Method")
            retention = gradio.Slider(
                LOWEST,
                HIGHEST,
                value=round(1 / 9, 2),
                step=0.01,
                label="Retention, averaged over layers",
            )
        return method, retention, gradio.HTML(), gradio.HTML()


def _estimating(models: Mapping[str, Model]) -> Any:
    """What choices would leave and save, as soon as they change."""

    def estimate(model: str, picture: str | None, clip: str | None, method: str, retention: float) -> str:
        try:
            if method == DENSE:
                return "<p>All visual tokens, in all layers.</p>"
            plan = models[model].plan(_read(picture, clip), _made(method, retention))
        except Exception as error:
            return _refusal(error)
        tokens = sum(plan.visual_tokens) / len(plan.visual_tokens)
        flops, dense = plan.flops.total / 1e9, plan.dense_flops.total / 1e9
        held, whole = plan.kv_bytes / 1e6, plan.dense_kv_bytes / 1e6
        return (
            f"<p>Predicted, with {plan.text_tokens} tokens of text: {tokens:.1f} of {plan.geometry.image.num_tokens} "
            f"visual tokens on average; until the first token {figure(flops)} of {figure(dense)} GFLOP "
            f"({plan.flops_share:.0%}), KV cache {figure(held)} of {figure(whole)} MB ({plan.kv_share:.0%})</p>"
        )

    return estimate


def _answering(models: Mapping[str, Model]) -> Any:
    """The answer of one side, or why there is none."""

    def answer(model: str, picture: str | None, clip: str | None, method: str, retention: float, question: str) -> str:
        try:
            pruner = None if method == DENSE else _made(method, retention)
            if not question.strip():
                raise VitcopError("There is no question; type one.")
            if len(question) > LONGEST_QUESTION:  # whoever comes next waits for as long as it takes
                raise VitcopError(
                    f"A question has at most {LONGEST_QUESTION:,} characters; this has {len(question):,}."
                )
            found = models[model].answer(_read(picture, clip), question, pruner, LONGEST_ANSWER)
        except Exception as error:
            return _refusal(error)
        said = f"<h3>{escape(found.text)}</h3><p>{method}, {found.seconds:.2f} s</p>"
        return said if found.report is None else f"{said}<p>{escape(found.report.summary)}</p>{found.stages}"

    return answer


def _made(method: str, retention: float) -> Pruner:
    return Pruner.from_dict({"method": method, "retention": float(retention)})


def _read(picture: str | None, clip: str | None) -> Subject:
    """What the question is about: the clip, if there is one."""
    if clip is None and picture is None:
        raise VitcopError("There is no picture; drop one, or a clip.")
    try:
        return (read_picture(Path(picture or "")),) if clip is None else read_clip(Path(clip), FRAMES)
    except VitcopError as error:  # which names a file, in a folder that is nobody's business
        raise VitcopError(str(error).replace(f"{Path(clip or picture or '').parent}{os.sep}", "")) from error


def _refusal(error: Exception) -> str:
    """In the place of what stood there. What is not for users, as of a method or a device, goes to the log."""
    said = one_line(error)
    if not isinstance(error, VitcopError):
        logger.error("A request failed.", exc_info=error)
        said = f"This failed with {type(error).__name__}; the log of the page says why."
    return f"<p role='alert'><b>{escape(said)}</b></p>"
