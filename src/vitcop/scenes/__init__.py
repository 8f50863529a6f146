"""Generated scenes with questions: what the model in the box learns from and is measured on."""

from vitcop.scenes.compose import SIZE, Scene, scene
from vitcop.scenes.item import Item
from vitcop.scenes.questions import TYPES, Question

__all__ = ["SIZE", "TYPES", "Item", "Question", "Scene", "scene"]
