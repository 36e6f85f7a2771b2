"""Judges of T2I-CompBench by role: VQA models, detectors and CLIPs, recognised by their folders' content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.evaluation.generation.compbench.prompts import RULES, Category, Chunker, pick_chunker
from robustclip.evaluation.named import NamedReferee, load_named
from robustclip.referees.base import Detection
from robustclip.referees.scene_reader import SceneReader, is_scene_reader, load_scene_reader
from robustclip.referees.weights import digest

NEEDED: dict[Category, tuple[str, ...]] = {
    "color": ("questions",),
    "shape": ("questions",),
    "texture": ("questions",),
    "spatial": ("detector",),
    "numeracy": ("detector",),
    "non-spatial": ("clip",),
    "complex": ("questions", "detector", "clip"),
}
"""The benchmark's judges of each category."""
EXAMPLES = {
    "questions": "a BlipForQuestionAnswering of transformers (Salesforce/blip-vqa-base), or emoji-scenes",
    "detector": "an Owlv2ForObjectDetection or GroundingDinoForObjectDetection of transformers, or emoji-scenes",
    "clip": "a CLIP, such as emoji-judge",
}


class QuestionAnswerer(Protocol):
    """A model that answers yes/no questions about pictures."""

    name: str
    fingerprint: str

    def yes(self, images: Float[Tensor, "b 3 h w"], questions: Sequence[Sequence[str]]) -> list[Float[Tensor, " q"]]:
        """The probability of yes to each question about each picture."""


class ObjectDetector(Protocol):
    """A model that detects objects by label."""

    name: str
    fingerprint: str

    def detect(self, images: Float[Tensor, "b 3 h w"], labels: Sequence[str]) -> list[list[Detection]]:
        """Detections of `labels` in each picture, by descending score."""


@dataclass
class Roles:
    """The judges by role. `grammar`: questions are the atoms of captions of compositions instead of noun phrases;
    `calibration`: the accuracy of answers to such questions, by category."""

    questions: QuestionAnswerer | None = None
    detector: ObjectDetector | None = None
    clip: NamedReferee | None = None
    grammar: bool = False
    calibration: dict[str, Any] = field(default_factory=dict)
    chunker: Chunker = field(default_factory=pick_chunker)

    @property
    def complete(self) -> bool:
        """Whether all three roles are filled, as complex prompts need."""
        return all(getattr(self, role) is not None for role in NEEDED["complex"])

    def check(self, category: Category) -> None:
        """Raise UsageError if a category lacks a judge."""
        if self.grammar:
            return
        lacking = [EXAMPLES[role] for role in NEEDED[category] if getattr(self, role) is None]
        if lacking:
            raise UsageError(
                f"the category {category} is judged with {' and '.join(NEEDED[category])}: add "
                f"{'; and '.join(lacking)}, e.g. --judge blip-vqa-base --judge owlv2-base --judge emoji-judge",
                "judge_lacking",
                category=category,
            )


class _Embedded:
    """A scene reader as question answerer and detector; unknown nouns yield no detection."""

    def __init__(self, reader: SceneReader) -> None:
        self.reader, self.name, self.fingerprint = reader, reader.card.name, digest(reader.state_dict())

    def yes(self, images: Float[Tensor, "b 3 h w"], questions: Sequence[Sequence[str]]) -> list[Float[Tensor, " q"]]:
        return self.reader.yes(images, questions)

    def detect(self, images: Float[Tensor, "b 3 h w"], labels: Sequence[str]) -> list[list[Detection]]:
        vocabulary = [label for label in labels if label in self.reader.nouns]
        return self.reader.detect(images, vocabulary) if vocabulary else [[] for _ in images]


def load_roles(judges: object, device: torch.device) -> Roles:
    """Load one or several judges by name or folder, or take objects that answer (`yes`) or detect (`detect`).

    Raises UsageError for a folder without a judge, and for two judges of one role.
    """
    roles = Roles()
    for one in judges if isinstance(judges, list | tuple) else [judges]:
        for role, judge in _load(one, device).items():
            if getattr(roles, role) is not None:
                raise UsageError(
                    f"two judges are for {role}: {getattr(roles, role).name} and {judge.name}: give one", "two_judges"
                )
            setattr(roles, role, judge)
            if isinstance(judge, _Embedded):
                roles.grammar, roles.chunker = True, RULES  # the captions' nouns are single words
                roles.calibration = dict(judge.reader.card.provenance.get("measured") or {})
    return roles


def _load(judge: object, device: torch.device) -> dict[str, Any]:
    if isinstance(judge, str | Path):
        if is_scene_reader(judge):
            reader = _Embedded(load_scene_reader(judge, device))
            return {"questions": reader, "detector": reader}
        from robustclip.referees import detector, vqa  # here, since transformers takes seconds to import

        kind = vqa.architecture(judge)
        if kind == vqa.KIND:
            return {"questions": vqa.load_vqa(judge, device)}
        if kind in detector.KINDS:
            return {"detector": detector.load_detector(judge, device)}
    by_role = {role: judge for role, method in (("questions", "yes"), ("detector", "detect")) if hasattr(judge, method)}
    return by_role or {"clip": load_named([judge], device=device)[0]}  # type: ignore[list-item]
