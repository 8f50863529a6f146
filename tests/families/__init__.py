"""One tiny model per family: every module here that holds a `TinyFamily` is found by itself."""

from importlib import import_module
from pkgutil import iter_modules

from .base import TinyFamily

_MODULES = [import_module(module.name) for module in iter_modules(__path__, f"{__name__}.")]

FAMILIES: dict[str, TinyFamily] = {
    value.name: value for module in _MODULES for value in vars(module).values() if isinstance(value, TinyFamily)
}

MISSING: tuple[str, ...] = tuple(name for module in _MODULES for name in getattr(module, "MISSING", ()))
"""Model types that this transformers has not, or not as models of their own."""
