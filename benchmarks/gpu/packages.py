"""Makes sure that what the run imports can be imported, on a machine where nothing can be installed from a network."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from .runner import ROOT

WHEELS = ROOT / ".wheels"
BROUGHT_ALONG = {"jaxtyping": "jaxtyping", "PIL": "pillow", "rich": "rich"}
"""Modules, and the packages that they are in. torch and transformers are too large to bring along."""


def add_missing(site: Path) -> None:
    """Install from `WHEELS` what is missing, for this process's children.

    Args:
        site: folder to install into.

    Raises:
        SystemExit: something is missing, and is not in `WHEELS`.
    """
    large = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if large:
        raise SystemExit(
            f"{sys.executable} has no {' and no '.join(large)}; name a Python that has: make gpu PYTHON=..."
        )
    missing = [package for module, package in BROUGHT_ALONG.items() if find_spec(module) is None]
    if not missing:
        return
    names = ", ".join(missing)
    if not WHEELS.is_dir():
        raise SystemExit(
            f"Missing: {names}. Run `make gpu-wheels` where there is a network, and bring the folder {WHEELS.name} "
            "along."
        )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-cache-dir", "--find-links", WHEELS]
    if subprocess.run([*pip, "--target", site, "--upgrade", *missing]).returncode:
        raise SystemExit(f"{WHEELS.name} does not hold what {names} need for this Python: run `make gpu-wheels` again.")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
