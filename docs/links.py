"""Links of the site to files of the repository that are no pages of it: they lead to where the repository is kept."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\((\.\./[^)#\s]+)(#[^)\s]+)?\)")


def on_page_markdown(markdown: str, page: Any, **rest: Any) -> str:
    """What mkdocs calls with the text of each page."""
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    here = (ROOT / "docs" / page.file.src_uri).parent

    def led(link: re.Match[str]) -> str:
        target = (here / link[1]).resolve()
        if target.is_relative_to(ROOT / "docs") or not target.exists():
            return link[0]  # for mkdocs to judge
        kind = "tree" if target.is_dir() else "blob"
        return f"]({repository}/{kind}/main/{target.relative_to(ROOT)}{link[2] or ''})"

    return LINK.sub(led, markdown)
