"""Objectives of DOODL: texts, classes, exemplars, aesthetics, or any function of pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import AfterValidator, PlainValidator

from robustclip.data.images import load_image
from robustclip.diffusion.stable import Guidance
from robustclip.errors import UsageError
from robustclip.losses.judged import Entropy, Judged, OfClass, Scored
from robustclip.referees.image_judges import Aesthetics, Classifier, load_aesthetics, load_classifier
from robustclip.runs import terminal
from robustclip.runs.devices import free_memory, saved_bytes
from robustclip.synthesis.doodl import Use
from robustclip.synthesis.guides import PairGuides, parse_weight, text_of
from robustclip.synthesis.items import Item
from robustclip.synthesis.prompts import Part, Prompt
from robustclip.synthesis.terms import Loss

HEADROOM: Final = 0.9  # share of the free memory for crops


def _function(given: Any) -> Any:
    if given is not None and not callable(given):
        raise UsageError("a loss is a Python function of pictures (B,3,H,W) -> (B,), for robustclip.synthesize(...)")
    return given


def _aim(text: str) -> str:
    if text not in ("up", "down"):
        try:
            if math.isfinite(float(text)):
                return text
        except ValueError:
            pass
        raise UsageError(f"{text[:40]!r} is not an aim of a score: give up, down, or a target value such as 10")
    return text


Function = Annotated[Any, PlainValidator(_function), "Python only: a function of pictures, (B,3,H,W) to (B,)"]
Aim = Annotated[str, AfterValidator(_aim), "direction of the aesthetic score: up, down, or a target value"]
ChainGuidance = Annotated[Guidance | None, "classifier-free guidance of the chain; default: the mode's"]


def use_of(classifier: str | None, exemplar: Sequence[str], aesthetics: Sequence[str], loss: Any) -> Use:
    """The use that the flags select; default: text. Raises UsageError for two."""
    flags: list[tuple[Use, str, bool]] = [
        ("class", "--classifier", classifier is not None),
        ("exemplar", "--exemplar", bool(exemplar)),
        ("aesthetics", "--aesthetics", bool(aesthetics)),
        ("function", "loss=", loss is not None),
    ]
    selected = [(use, flag) for use, flag, is_given in flags if is_given]
    if len(selected) > 1:
        raise UsageError(f"{' and '.join(flag for _, flag in selected)} are different objectives: give one of them")
    return selected[0][0] if selected else "text"


@dataclass(frozen=True)
class Ends:
    """Loaded targets of the use: the fields of one use are set."""

    use: Use
    classifier: Classifier | None = None
    index: int = 0
    wanted: Prompt | None = None
    heads: Sequence[tuple[Aesthetics, float]] = ()
    aim: str = "up"
    loss: Any = None

    @classmethod
    def read(
        cls,
        device: torch.device,
        classifier: str | None = None,
        class_name: str | None = None,
        classes: Path | None = None,
        exemplar: Sequence[str] = (),
        aesthetics: Sequence[str] = (),
        aim: str = "up",
        loss: Any = None,
    ) -> Ends:
        """Raises UsageError for a classifier, class, exemplar or head that cannot be used."""
        use = use_of(classifier, exemplar, aesthetics, loss)
        if classifier is not None:
            judge = load_classifier(classifier, device, classes=classes)
            return cls(use, judge, judge.index(class_name or ""))
        heads = [(load_aesthetics(name), weight) for name, weight in map(parse_weight, aesthetics)]
        for head, _ in heads:
            head.head.to(device)
        return cls(use, wanted=exemplars(exemplar) if exemplar else None, heads=heads, aim=aim, loss=loss)


@dataclass(frozen=True)
class Objective:
    """size: input size of its judge; losses: items -> losses with weights; targets: items -> prompts of the reported
    similarity."""

    size: tuple[int, int]
    losses: Callable[[Sequence[Item]], list[tuple[Loss, float]]]
    targets: Callable[[Sequence[Item]], list[Prompt]]


def objective_of(ends: Ends, guides: PairGuides, entropy: Entropy) -> Objective:
    """The objective of a use. Raises UsageError unless there is one head per CLIP, of its embeddings' width."""

    def prompts(items: Sequence[Item]) -> list[Prompt]:
        return [item.prompt if ends.wanted is None else ends.wanted for item in items]

    def text(items: Sequence[Item]) -> list[tuple[Loss, float]]:
        targets = prompts(items)
        losses: list[tuple[Loss, float]] = []
        if ends.wanted is None:
            losses += guides.pairings(targets, matching=1.0, captioning=1.0)
        if guides.referees:
            losses.append((guides.spherical(targets), sum(guides.weights)))
        total = sum(weight for _, weight in losses)
        return [(loss, weight / total) for loss, weight in losses]

    if (judge := ends.classifier) is not None:

        def of_class(items: Sequence[Item]) -> list[tuple[Loss, float]]:
            return [(OfClass(judge, [ends.index] * len(items), entropy=entropy, dtype=guides.dtype), 1.0)]

        return Objective(judge.size, of_class, prompts)
    if ends.heads:
        if len(ends.heads) != len(guides.referees):
            raise UsageError(
                f"{len(ends.heads)} aesthetics heads and {len(guides.referees)} CLIPs: give each head its own "
                "--referee, in this order"
            )
        pairs = [(clip, head, weight) for clip, (head, weight) in zip(guides.referees, ends.heads, strict=True)]
        aim: float | Literal["up", "down"] = (
            "up" if ends.aim == "up" else "down" if ends.aim == "down" else float(ends.aim)
        )
        scored = Scored(pairs, aim, guides.dtype)
        return Objective(guides.size, lambda _: [(scored, 1.0)], prompts)
    if ends.loss is not None:
        return Objective(guides.size, lambda _: [(Judged(ends.loss), 1.0)], prompts)
    return Objective(guides.size, text, prompts)


def exemplars(files: Sequence[str]) -> Prompt:
    """A prompt of these pictures with equal weights; unreadable ones are left out with a note.

    Raises UsageError if none can be read.
    """
    readable = []
    for file in files:
        try:
            load_image(file)
            readable.append(file)
        except UsageError as error:
            terminal.note(f"{error}: it is left out")
    if not readable:
        raise UsageError(f"none of the {len(files)} exemplars can be read: give pictures, as .png or .jpg")
    return Prompt(tuple(Part(file, 1 / len(readable), "image") for file in readable))


def generator_prompt(item: Item, model_prompt: str) -> str:
    """The diffusion model's own prompt for an item."""
    return model_prompt.replace("{}", text_of(item.prompt)) if "{}" in model_prompt else model_prompt


def check_crops(loss: Loss, count: int, pictures: int, size: tuple[int, int], device: torch.device) -> None:
    """Measure the activations that one crop of each picture stores for its gradient. Raises UsageError, with a number
    that fits, if `count` crops exceed free memory."""
    free = free_memory(device)
    if free is None or not count:
        return

    def kept(crops: int) -> int:
        probe = torch.zeros(pictures, crops, 3, *size, device=device, requires_grad=True)
        return saved_bytes(lambda: loss(probe))

    each = max(kept(2) - kept(1), 0)  # the difference excludes stored weights
    if each * count > HEADROOM * free:
        fit = int(HEADROOM * free / each) if each else count
        raise UsageError(
            f"{count} crops of {pictures} picture{'s' if pictures > 1 else ''} take about {each * count / 1e9:.1f} GB "
            f"for the gradient, and {free / 1e9:.1f} GB are free: give --crops {max(fit, 1)}, or a smaller --batch-size"
        )
