"""Runs parts one after another, each in a process of its own, and keeps a record that is whole after each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .plan import Part
from .records import write_json

ROOT = Path(__file__).parents[2]
LAST_LINES = 30
"""Of the log, that say what a process which left no word died of."""
DYING = 10.0
"""Seconds that a process which is stopped has to be gone, before the next part runs all the same."""

Outcome = dict[str, Any]


def run_parts(
    parts: Sequence[Part], folder: Path, minutes: float, rehearsal: bool, told: Callable[[Outcome], None]
) -> list[Outcome]:
    """Run what there is time for, and write `run.json` and `log.txt`.

    Args:
        folder: for these, and for the files of the parts.
        minutes: after which the part that runs is stopped, and the rest is "not reached".
        told: gets the outcome of each: name, status ("ok", "failed", "cut short" or "not reached"), seconds, what was
            found, and the error.
    """
    start = time.monotonic()
    record: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": minutes,
        "rehearsal": rehearsal,
        "parts": [],
    }
    (folder / "log.txt").write_text("", encoding="utf-8")
    needed_failed = False
    for part in parts:
        left = 60 * minutes - (time.monotonic() - start)
        outcome: Outcome = {"name": part.name, "status": "not reached", "seconds": 0.0, "found": {"lines": []}}
        if left > 0 and not needed_failed:
            outcome |= _run(part, folder, min(part.most, left), rehearsal)
        needed_failed |= part.is_needed and outcome["status"] != "ok"
        record["parts"].append(outcome)
        write_json(folder / "run.json", record)
        told(outcome)
    return record["parts"]


def _run(part: Part, folder: Path, seconds: float, rehearsal: bool) -> Outcome:
    log, start = folder / "log.txt", time.monotonic()
    with tempfile.TemporaryDirectory() as own, log.open("a", encoding="utf-8") as output:
        file = Path(own) / "found.json"
        order = {
            "module": part.module,
            "options": dict(part.options),
            "file": str(file),
            "folder": str(folder),
            "rehearsal": rehearsal,
            "seconds": seconds,
            "estimate": part.estimate,
        }
        output.write(f"\n== {part.name}, {seconds:.0f} s at most\n")
        output.flush()
        code = _wait([sys.executable, "-u", "-m", "benchmarks.gpu.child", json.dumps(order)], output, seconds)
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"lines": []}
    outcome = {"status": found.pop("status", None), "error": found.pop("error", None), "found": found}
    if code is None:
        outcome |= {"status": "cut short", "error": f"stopped after {seconds:.0f} s"}
    elif outcome["status"] is None:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        outcome |= {"status": "failed", "error": "\n".join([f"ended with exit code {code}", *last])}
    return outcome | {"seconds": round(time.monotonic() - start, 1)}


def _wait(command: list[str], output: Any, seconds: float) -> int | None:
    """The exit code of a process, or None if it was stopped."""
    # Without a network, nothing must wait for a hub.
    environment = os.environ | {"PYTHONPATH": _path(), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # what waits for a GPU that hangs may never go
                process.wait(DYING)


def _path() -> str:
    """The library and the tests' tiny models and oracle, from this checkout, before whatever else there is."""
    own = [ROOT, ROOT / "src", ROOT / "tests"]
    return os.pathsep.join([*map(str, own), *filter(None, [os.environ.get("PYTHONPATH")])])
