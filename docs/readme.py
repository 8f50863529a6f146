"""Parts of the README that are made from stored runs, each between two marks."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def rewrite(part: str, text: str) -> None:
    """Puts `text` between the marks of `part`."""
    before, rest = README.read_text(encoding="utf-8").split(f"<!-- {part}: ", 1)
    mark, rest = rest.split("\n", 1)
    behind = rest.split(f"<!-- end of {part} -->\n", 1)[1]
    whole = f"{before}<!-- {part}: {mark}\n{text}<!-- end of {part} -->\n{behind}"
    README.write_text(whole, encoding="utf-8")
