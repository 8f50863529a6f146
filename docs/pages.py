"""The pages that people read, and their parts that are made from stored runs, each between two marks."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
README = ROOT / "README.md"


def pages() -> list[Path]:
    """README, CONTRIBUTING, and all of the documentation."""
    return [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def rewrite(page: Path, part: str, text: str) -> None:
    """Puts `text` between the marks of `part`."""
    before, rest = page.read_text(encoding="utf-8").split(f"<!-- {part}: ", 1)
    mark, rest = rest.split("\n", 1)
    behind = rest.split(f"<!-- end of {part} -->\n", 1)[1]
    whole = f"{before}<!-- {part}: {mark}\n{text}<!-- end of {part} -->\n{behind}"
    page.write_text(whole, encoding="utf-8")
