"""Runs a pruning method inside a stock transformers model. Its face is what this module names."""

from .hooks import Pruning, prune, pruning_of
from .skipping import Skipping, skip_repeated_patches

__all__ = ["Pruning", "Skipping", "prune", "pruning_of", "skip_repeated_patches"]
