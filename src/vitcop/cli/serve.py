"""`vitcop serve`: vLLM's own server, of a pruned model."""

from __future__ import annotations

import json
import os
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import VitcopError
from .choice import METHOD_HELP, Amount, check_method, make_method, read_positions
from .common import TESTBED, RetentionOption, TokensOption, one_line_errors, read_config
from .outputs import printing

OURS = {
    "--hf-overrides": "is what tells vLLM of the method; add yours to it in the command that --print gives",
    "--model": "stands in front; name the model there alone",
}
"""Flags of vLLM of which it would take the last alone."""


def serve(
    model: Annotated[str, typer.Argument(help="Folder or Hugging Face name of a vision-language model.")],
    flags: Annotated[
        list[str] | None, typer.Argument(help="vLLM's own flags, behind --, such as -- --port 8000.")
    ] = None,
    method: Annotated[
        str, typer.Option(help=f"How to choose the tokens to keep: {METHOD_HELP}, if it prunes at the entrance alone.")
    ] = "visionzip",
    retention: RetentionOption = None,
    tokens: TokensOption = None,
    positions: Annotated[
        str,
        typer.Option(help="Positions of what is left: keep, compact (numbered anew), or the method's default."),
    ] = "default",
    print_: Annotated[bool, typer.Option("--print", help="Print vLLM's command, and do not run it.")] = False,
) -> None:
    """Serve a pruned model by vLLM's OpenAI-compatible server."""
    with one_line_errors():
        amount = Amount.read(retention, tokens)
        check_method(method)
        (numbering,) = read_positions(positions, both=False)
        _check_model(model)
        _check_flags(flags or [])
        if not print_ and find_spec("vllm") is None:
            raise VitcopError(
                'vLLM is not installed: on Linux, pip install "vitcop[vllm]" into this environment; elsewhere, --print '
                "gives the command for a machine that has it."
            )
        from ..vllm.served import engine_arguments

        pruner = make_method(method, amount, numbering)
        arguments = engine_arguments(read_config(model), pruner)
    command = [*_server(model), *_written(arguments), *(flags or [])]
    if print_:
        with one_line_errors(), printing():
            typer.echo(shlex.join(command))
        return
    # As where its environment is active, whether it is or not.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    os.execvpe(command[0], command, os.environ | {"PATH": path})


def _check_model(model: str) -> None:
    if model.startswith("-"):
        raise VitcopError(f"The model stands in front of vLLM's flags: vitcop serve MODEL -- {model} ...")
    if model == TESTBED:
        raise VitcopError(
            "vLLM reads a model from a folder or the hub, and the testbed is made in memory: save what "
            "vitcop.testbed.build() gives, and name the folder."
        )
    if Path(model).is_file():
        raise VitcopError(f"A model is served from the folder that holds its weights; {model} is a file.")


def _check_flags(flags: list[str]) -> None:
    for flag in flags:
        name = flag.replace("_", "-").partition("=")[0].partition(".")[0]
        if name.startswith("--hf-o") and "--hf-overrides".startswith(name):  # vLLM takes what is short for it, too
            name = "--hf-overrides"
        if name in OURS:
            raise VitcopError(f"{name} {OURS[name]}.")


def _server(model: str) -> list[str]:
    """What starts vLLM's server: its command, or a module where it is distributed by another name, as for CPUs.

    That command asks for the version of what is distributed as "vllm", and fails where nothing is.
    """
    if find_spec("vllm") is not None:
        try:
            version("vllm")
        except PackageNotFoundError:
            return ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return ["vllm", "serve", model]


def _written(arguments: dict[str, Any]) -> list[str]:
    """Arguments of vLLM's engine as flags of its server."""
    return [word for name, value in arguments.items() for word in (f"--{name.replace('_', '-')}", json.dumps(value))]
