"""Writes questions about generated scenes, as files of Parquet: something for `answer.py` to read."""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vitcop.scenes import scene

SCENES_PER_FILE = 4


def rows(seed: int) -> list[dict[str, str | bytes]]:
    """The questions about one test scene, with ids such as 3-0 for the first one about scene 3."""
    drawn, picture = scene(seed, "test"), BytesIO()
    drawn.picture.save(picture, "png")
    return [
        {"id": f"{seed}-{number}", "picture": picture.getvalue(), "question": asked.text, "expected": asked.answer}
        for number, asked in enumerate(drawn.questions)
    ]


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to; made if it is not there")
    parser.add_argument("--scenes", type=int, default=16)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, given.scenes, SCENES_PER_FILE):
        seeds = range(first, min(first + SCENES_PER_FILE, given.scenes))
        table = pa.Table.from_pylist([row for seed in seeds for row in rows(seed)])
        pq.write_table(table, given.folder / f"{first:06}.parquet")


if __name__ == "__main__":
    main()
