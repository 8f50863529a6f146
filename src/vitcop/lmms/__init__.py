"""A plug-in for lmms-eval, which finds it by its entry points: its wrappers of stock models, with pruning."""
