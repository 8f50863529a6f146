"""What answers depend on, in a few letters: kept answers are taken again only where all of it is the same."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

from ..environment import device_name, versions
from ..errors import VitcopError
from ..selection.pruner import Pruner
from .contenders import Contender, Subject
from .variants import VARIANTS

COUNTED = ("*.py", "*.png", "*.jpg", "*.webp", "*.json")
"""Files of vitcop that answers depend on."""
UNCOUNTED = ("cli", "bench", "builtin", "lmms", "testbed")
"""Parts of vitcop that no answer depends on."""


def fingerprint(subject: Subject, cases: Iterable[object], *settings: object) -> str:
    """Tells apart what can give other answers: weights, where and how they run, questions, and the code between.

    Args:
        cases: the questions, each of which is told by its `repr`.
        settings: whatever else answers depend on, such as how many prompts go together.
    """
    model, processor = subject.model, subject.processor
    ran = versions(), device_name(model.device), model.dtype, model.config._attn_implementation, *settings
    said = repr(processor), processor.chat_template, model.generation_config.to_diff_dict()
    digest = hashlib.sha256(repr((ran, said)).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {weight.double().sum().item()} {weight.double().norm().item()}".encode())
    for case in cases:
        digest.update(repr(case).encode())
    package = Path(__file__).parent.parent
    for file in sorted(file for kind in COUNTED for file in package.rglob(kind)):
        if file.relative_to(package).parts[0] not in UNCOUNTED:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def codes(methods: Iterable[str]) -> dict[str, str]:
    """Tell apart the states of methods that are not vitcop's, whose code the fingerprint does not cover."""
    kinds = {name: Pruner.named(name) for name in methods if name not in VARIANTS}
    outside = {name: kind for name, kind in kinds.items() if kind.__module__.partition(".")[0] != "vitcop"}
    try:
        return {name: _digest(Path(inspect.getfile(kind)).read_bytes()) for name, kind in outside.items()}
    except (OSError, TypeError) as error:
        raise VitcopError(f"What is kept in a folder is told apart by files of methods: {error}.") from error


def file_name(contender: Contender, retention: float, codes: Mapping[str, str]) -> str:
    """Where the answers of a contender are kept, without an extension.

    Args:
        codes: of those that are not vitcop's.
    """
    own = f"-{codes[contender.name]}" if contender.name in codes else ""
    return f"{quote(str(contender).replace(' ', '-'), safe='')}{own}-{retention!r}"


def _digest(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()[:16]
