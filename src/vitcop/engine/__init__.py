"""Runs a pruning method inside a stock transformers model. Its face is what this module names."""

from .hooks import Pruning, prune, pruning_of
from .prefix import ImagePrefix
from .skipping import Skipping, skip_repeated_patches

__all__ = ["ImagePrefix", "Pruning", "Skipping", "prune", "pruning_of", "skip_repeated_patches"]
