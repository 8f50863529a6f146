"""Does a pruned model still see? Questions with known answers, put to it under every method."""

from .contenders import Subject
from .results import Evaluation
from .runner import Course, evaluate
from .suite import Case, Suite

__all__ = ["Case", "Course", "Evaluation", "Subject", "Suite", "evaluate"]
