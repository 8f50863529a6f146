"""Runs a pruning method inside a stock transformers model. `prune`, `pruning_of` and `Pruning` are its face."""

from .hooks import Pruning, prune, pruning_of

__all__ = ["Pruning", "prune", "pruning_of"]
