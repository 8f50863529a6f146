"""JSON that is whole at any time: whoever stops the run finds what it had found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(file: Path, values: Any) -> None:
    """Write beside the file, and put it in its place at once."""
    beside = file.with_name(file.name + ".new")
    beside.write_text(json.dumps(values, indent=1), encoding="utf-8")
    os.replace(beside, file)
