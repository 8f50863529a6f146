"""`python -m benchmarks.gpu`: all parts, or a rehearsal of them on a CPU."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .packages import add_missing
from .plan import MINUTES, PARTS
from .runner import Outcome, run_parts


def main() -> int:
    """Returns 0 if all parts came to their ends, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for what is found (default: $OUT, or build/gpu)")
    parser.add_argument("--rehearsal", action="store_true", help="the same code on the CPU, with tiny sizes")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="in all (default: %(default)s)")
    options = parser.parse_args()
    folder = options.out or Path(os.environ.get("OUT") or "build/gpu")
    folder.mkdir(parents=True, exist_ok=True)
    add_missing(Path("build/gpu-site").resolve())
    outcomes = run_parts(PARTS, folder.resolve(), options.minutes, options.rehearsal, tell)
    print(f"\n{sum(outcome['status'] == 'ok' for outcome in outcomes)} of {len(outcomes)} parts ran; see {folder}.")
    return any(outcome["status"] != "ok" for outcome in outcomes)


def tell(outcome: Outcome) -> None:
    """Print what a part found, and the end of what went wrong."""
    print(f"{outcome['name']}: {outcome['status']}, {outcome['seconds']:.0f} s", flush=True)
    for line in outcome["found"]["lines"]:
        print(f"  {line}")
    if outcome.get("error"):
        print(f"  ! {outcome['error'].strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
