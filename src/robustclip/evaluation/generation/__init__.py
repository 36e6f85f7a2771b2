"""Metrics of generated pictures, by referees that did not guide them, with 95% intervals."""

from robustclip.evaluation.generation.judge import judge, judge_images, judge_pictures
from robustclip.evaluation.generation.judgement import Figure, JudgeReport
from robustclip.evaluation.generation.pictures import Pictures, read_pictures, read_reference

__all__ = [
    "Figure",
    "JudgeReport",
    "Pictures",
    "judge",
    "judge_images",
    "judge_pictures",
    "read_pictures",
    "read_reference",
]
