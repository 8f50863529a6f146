"""Runs a pruning method inside a stock transformers model. `prune` and `Pruning` are its face."""

from .hooks import Pruning, prune

__all__ = ["Pruning", "prune"]
