"""The tree shows the architecture: nothing imports, however late, what imports it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vitcop

ROOT = Path(vitcop.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


def imported_by(name: str) -> Iterator[str]:
    """The modules of this package that a module names in an import, at its head or anywhere else in it."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                found = f"{home}.{alias.name}" if f"{home}.{alias.name}" in MODULES else home
                if found in MODULES and found != name:
                    yield found


def folder(name: str) -> str:
    """The part of the architecture that a module belongs to: a folder of the package, or a file beside them."""
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize("part_of", [str, folder], ids=["modules", "folders"])
def test_no_import_leads_back_to_where_it_started(part_of):
    # The face of the package is for everybody, and names everything.
    graph = {part_of(name): set() for name in MODULES if name != "vitcop"}
    for name in MODULES.keys() - {"vitcop"}:
        graph[part_of(name)] |= {part_of(found) for found in imported_by(name)} - {part_of(name), "vitcop"}
    list(TopologicalSorter(graph).static_order())
