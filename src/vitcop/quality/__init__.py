"""Does a pruned model still see? Questions with known answers, or of one's own, put to it under every method."""

from .contenders import Subject
from .own import OwnQuestion, read_questions
from .plan import plan_quality
from .results import Evaluation
from .runner import Course, evaluate
from .suite import Case, Suite
from .target import QualityPlan

__all__ = [
    "Case",
    "Course",
    "Evaluation",
    "OwnQuestion",
    "QualityPlan",
    "Subject",
    "Suite",
    "evaluate",
    "plan_quality",
    "read_questions",
]
