"""Who judges what: models that answer questions, detectors, and CLIPs, told apart by what their folders hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.evaluation.generation.compbench.phrases import RULES, Chunker, pick_chunker
from robustclip.evaluation.generation.compbench.prompts import Category
from robustclip.evaluation.named import NamedReferee, load_named
from robustclip.referees.detecting import Detection
from robustclip.referees.scene_reader import SceneReader, is_scene_reader, load_scene_reader, reader_fingerprint

NEEDED: dict[Category, tuple[str, ...]] = {
    "color": ("questions",),
    "shape": ("questions",),
    "texture": ("questions",),
    "spatial": ("detector",),
    "numeracy": ("detector",),
    "non-spatial": ("clip",),
    "complex": ("questions", "detector", "clip"),
}
"""What the benchmark measures each category with."""
EXAMPLES = {
    "questions": "a BlipForQuestionAnswering of transformers (Salesforce/blip-vqa-base), or emoji-scenes",
    "detector": "an Owlv2ForObjectDetection or GroundingDinoForObjectDetection of transformers, or emoji-scenes",
    "clip": "a CLIP, such as emoji-judge",
}


class Asks(Protocol):
    """Who answers questions."""

    name: str
    fingerprint: str

    def yes(self, images: Float[Tensor, "b 3 h w"], questions: Sequence[Sequence[str]]) -> list[Float[Tensor, " q"]]:
        """The probability of yes to each question about each picture."""


class Detects(Protocol):
    """Who finds things."""

    name: str
    fingerprint: str

    def detect(self, images: Float[Tensor, "b 3 h w"], labels: Sequence[str]) -> list[list[Detection]]:
        """What of `labels` is found in each picture, the surest first."""


@dataclass
class Roles:
    """The judges by role. `grammar`: questions are the atoms of captions worded as the compositions are, not noun
    phrases; `calibration` says how often the answers to such questions are right, by category."""

    questions: Asks | None = None
    detector: Detects | None = None
    clip: NamedReferee | None = None
    grammar: bool = False
    calibration: dict[str, Any] = field(default_factory=dict)
    chunker: Chunker = field(default_factory=pick_chunker)

    @property
    def complete(self) -> bool:
        """Whether all three are there, as complex prompts need."""
        return all(getattr(self, role) is not None for role in NEEDED["complex"])

    def check(self, category: Category) -> None:
        """Raise UsageError where nobody can judge a category as the benchmark does, or by atoms."""
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
    """A scene reader as both who answers and who detects; nouns that it does not know are found nowhere."""

    def __init__(self, reader: SceneReader) -> None:
        self.reader, self.name, self.fingerprint = reader, reader.card.name, reader_fingerprint(reader)

    def yes(self, images: Float[Tensor, "b 3 h w"], questions: Sequence[Sequence[str]]) -> list[Float[Tensor, " q"]]:
        return self.reader.yes(images, questions)

    def detect(self, images: Float[Tensor, "b 3 h w"], labels: Sequence[str]) -> list[list[Detection]]:
        known = [label for label in labels if label in self.reader.nouns]
        return self.reader.detect(images, known) if known else [[] for _ in images]


def load_roles(given: object, device: torch.device) -> Roles:
    """Judges by name or folder, or objects that answer (`yes`) or find (`detect`); one, or several.

    Raises UsageError for a folder that holds no judge, and two of one role.
    """
    roles = Roles()
    for one in given if isinstance(given, list | tuple) else [given]:
        for role, judge in _load(one, device).items():
            if getattr(roles, role) is not None:
                raise UsageError(
                    f"two judges are for {role}: {getattr(roles, role).name} and {judge.name}: give one", "two_judges"
                )
            setattr(roles, role, judge)
            if isinstance(judge, _Embedded):
                roles.grammar, roles.chunker = True, RULES  # whose nouns are one word, as the captions' are
                roles.calibration = dict(judge.reader.card.provenance.get("measured") or {})
    return roles


def _load(given: object, device: torch.device) -> dict[str, Any]:
    if isinstance(given, str | Path):
        if is_scene_reader(given):
            reader = _Embedded(load_scene_reader(given, device))
            return {"questions": reader, "detector": reader}
        from robustclip.referees import detector, vqa  # transformers' models, which need seconds to import

        kind = vqa.architecture(given)
        if kind == vqa.KIND:
            return {"questions": vqa.load_vqa(given, device)}
        if kind in detector.KINDS:
            return {"detector": detector.load_detector(given, device)}
    found = {role: given for role, method in (("questions", "yes"), ("detector", "detect")) if hasattr(given, method)}
    return found or {"clip": load_named([given], device=device)[0]}  # type: ignore[list-item]
