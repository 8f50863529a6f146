"""Which methods there are. Names are known before anything is imported, so that a misspelled one is refused at once."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ..errors import VitcopError, unknown_name

GROUP = "vitcop.methods"
"""Entry points by which other packages announce theirs: name = "package.module:Class"."""

T = TypeVar("T")

_defined: dict[str, type[Any]] = {}
_announced: dict[str, str] = {}
_stages: set[str] = set()


def define(kind: type[Any]) -> None:
    """Make a class known by its name; abstract ones are not to be had.

    A class that is defined anew takes its own place. So does what is defined in a function, as tests do, once
    another such class has had the name.

    Raises:
        VitcopError: another class has the name.
    """
    if any(getattr(getattr(kind, name, None), "__isabstractmethod__", False) for name in dir(kind)):
        return
    place, other = _place(kind), _defined.get(kind.name)
    taken = _announced.get(kind.name) or (other and _place(other))
    if taken and taken != place and not ("<locals>" in taken or (other and _origin(other) == _origin(kind))):
        raise VitcopError(
            f"{place} cannot be called {kind.name!r}, which is the name of {taken}; set `name` of one of them."
        )
    _defined[kind.name] = kind


class Catalogue(Mapping[str, T]):
    """Classes by name, each imported when it is asked for.

    Attributes:
        places: where they stand, by name, as "package.module:Class".
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self.places = dict(places)

    def __getitem__(self, name: str) -> T:
        kind: T = _load(self.places[name])
        return kind

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def announce(*places: str, stages: bool = False) -> Catalogue[Any]:
    """Make classes known by name, their own in lower case, without importing them.

    Args:
        places: of the classes, as "package.module:Class".
        stages: whether they are stages of methods, and no methods.
    """
    named = {place.rpartition(":")[2].lower(): place for place in places}
    _announced.update(named)
    if stages:
        _stages.update(named)
    return Catalogue(named)


def plug_ins() -> dict[str, str]:
    """The methods that other packages announce, and where they stand."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


def names(*, stages: bool = False) -> list[str]:
    """All methods that are known by name, and, if asked for, stages of methods; nothing is imported."""
    announced = [name for name in _announced if stages or name not in _stages]
    defined = [name for name, kind in _defined.items() if stages or hasattr(kind, "budgets")]
    return list(dict.fromkeys([*announced, *defined, *plug_ins()]))


def check(text: str, *, others: Iterable[str] = (), stages: bool = False) -> None:
    """Raise unless a text can name a class, as far as can be told without importing any.

    Args:
        others: words that may stand in the place of a name, for the message.
        stages: whether it may be a stage of a method.

    Raises:
        VitcopError: it is no known name, or of a file that is not there.
    """
    if text in _defined or text in _announced or text in plug_ins():
        return
    home, colon, _ = text.rpartition(":")
    if not colon:
        unknown = unknown_name("method", text, [*names(stages=stages), *others])
        raise VitcopError(f"{unknown} One of your own is file.py:Class or package.module:Class.")
    if home.endswith(".py") and not Path(home).is_file():
        raise VitcopError(f"There is no method {text!r}, since there is no file {home}.")


def find(text: str, *, stages: bool = False) -> Any:
    """What a text names: a known name, `file.py:Class` or `package.module:Class`.

    The latter is looked for in the current folder as well, and what a file imports in the file's own.

    Raises:
        VitcopError: it names nothing, or what it names cannot be imported.
    """
    check(text, stages=stages)
    if text in _defined:
        return _defined[text]
    if text in _announced:
        return _load(_announced[text])
    if ":" in text:
        _make_importable(Path.cwd())
        return _load_from_outside(text, f"method {text!r}")
    places = {point.value for point in entry_points(group=GROUP, name=text)}
    if len(places) > 1:
        raise VitcopError(f"{' and '.join(sorted(places))} are both announced as {text!r}; uninstall one of them.")
    (place,) = places
    kind = _load_from_outside(place, f"method {text!r}, which a package announces as {place}")
    if getattr(kind, "name", text) != text:
        raise VitcopError(f"{place} is announced as {text!r}, but its `name` is {kind.name!r}; make them the same.")
    return kind


def written(kind: type[Any]) -> str:
    """What `find` finds a class by, in this process, and in others if it can be imported there.

    Its name where that is announced, and else the file or the module that it stands in.
    """
    place = _place(kind)
    if _announced.get(kind.name) == place or "<locals>" in place or plug_ins().get(kind.name) == place:
        return kind.name
    if kind.__module__ == "__main__":
        file = _origin(kind)[0]
        return f"{Path(file).resolve()}:{kind.__qualname__}" if file.endswith(".py") else kind.name
    return place


def _place(kind: type[Any]) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _origin(kind: type[Any]) -> tuple[str, str]:
    """The file of a class, and what it is called there; a script that is imported besides is one file."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file or kind.__module__, kind.__qualname__


def _load(place: str) -> Any:
    module, _, name = place.rpartition(":")
    return attrgetter(name)(import_module(module))


def _load_from_outside(place: str, what: str) -> Any:
    home, _, name = place.rpartition(":")
    try:
        module = _file_module(Path(home).resolve()) if home.endswith(".py") else import_module(home)
    except (Exception, SystemExit) as error:  # of code that is not ours
        reason = str(error).strip().partition("\n")[0]
        raise VitcopError(f"Cannot import {what}: {type(error).__name__}: {reason}") from error
    try:
        return attrgetter(name)(module)
    except AttributeError as error:
        own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
        unknown = unknown_name(f"class of {home}", name, [kind.__name__ for kind in own])
        raise VitcopError(f"Cannot find {what}: {unknown}") from error


def _file_module(path: Path) -> ModuleType:
    """A file as a module, which is called by its path, unless it is imported already."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and vars(module).get("__file__") == str(path):
            return module
    spec = spec_from_file_location(str(path), path)
    assert spec is not None and spec.loader is not None  # as of all names that end like this
    _make_importable(path.parent)
    module = sys.modules[spec.name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _make_importable(folder: Path) -> None:
    """Behind all else, so that nothing in it stands in the way of what is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
