"""Runs one part, in the process that the runner started for it."""

from __future__ import annotations

import json
import sys
import traceback
from importlib import import_module
from pathlib import Path

from .task import Task


def main(order: str) -> int:
    """Returns 0 if the part came to its end, else 1.

    Args:
        order: JSON of the part's module, its options, and what its `Task` is made of.
    """
    values = json.loads(order)
    module, options = values.pop("module"), values.pop("options")
    task = Task(**values | {name: Path(values[name]) for name in ("file", "folder")})
    try:
        import_module(module).run(task, **options)
    except Exception as error:
        traceback.print_exc()
        task.found["status"] = "cut short" if isinstance(error, TimeoutError) else "failed"
        task.found["error"] = traceback.format_exc()
    else:
        task.found["status"] = "ok"
    task.save()
    return task.found["status"] != "ok"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
