"""One tiny model per family: every module here that holds a `TinyFamily` is found by itself."""

from importlib import import_module
from pkgutil import iter_modules

from .base import TinyFamily

FAMILIES: dict[str, TinyFamily] = {
    value.name: value
    for module in iter_modules(__path__, f"{__name__}.")
    for value in vars(import_module(module.name)).values()
    if isinstance(value, TinyFamily)
}
