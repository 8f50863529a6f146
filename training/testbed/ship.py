"""Puts the cut-outs that may be shipped into the package: Microsoft's Fluent Emoji, as they are."""

import shutil
import sys
from pathlib import Path

from training.testbed.cutouts import ENTRIES
from training.testbed.sources import fluent_files
from vitcop.photos.shelf import CUTOUTS


def main() -> None:
    CUTOUTS.mkdir(exist_ok=True)
    for noun, entry in ENTRIES.items():
        for number, file in enumerate(fluent_files(Path(sys.argv[1]), entry.emoji)):
            shutil.copyfile(file, CUTOUTS / f"{noun}{f'-{number + 1}' if number else ''}.webp")


if __name__ == "__main__":
    main()
