"""Evaluation of referees: clean and robust accuracy, retrieval, input gradients, explanations."""

from robustclip.evaluation.evaluate import evaluate
from robustclip.evaluation.pag import pull
from robustclip.evaluation.report import Report, Row
from robustclip.explanation.gradients import gradient_picture

__all__ = ["Report", "Row", "evaluate", "gradient_picture", "pull"]
