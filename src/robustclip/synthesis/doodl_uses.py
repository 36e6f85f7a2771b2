"""Objectives of DOODL: texts, classes, exemplars, aesthetics, or any function of pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import AfterValidator, PlainValidator
from torch import Tensor

from robustclip.data.images import load_image
from robustclip.errors import UsageError
from robustclip.losses.judged import Entropy, Judged, OfClass, Scored
from robustclip.referees.image_judges import Aesthetics, Classifier, load_aesthetics, load_classifier
from robustclip.runs import terminal
from robustclip.runs.devices import free_memory
from robustclip.synthesis.doodl import Use
from robustclip.synthesis.guides import PairGuides, parse_weight, text_of
from robustclip.synthesis.items import Item
from robustclip.synthesis.prompts import Part, Prompt
from robustclip.synthesis.terms import Loss

HEADROOM: Final = 0.9  # of the free memory that crops may take


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
        raise UsageError(f"{text[:40]!r} is no aim of a score: give up, down, or a number to come near, as in 10")
    return text


def _guidance(value: float | None) -> float | None:
    if value is not None and not value >= 0:
        raise UsageError(
            f"guidance {value:g} would lead away from the text: give 0 (no text), 1 (the text alone) or more"
        )
    return value


Function = Annotated[Any, PlainValidator(_function), "Python only: a function of pictures, (B,3,H,W) to (B,)"]
Aim = Annotated[str, AfterValidator(_aim), "direction of the aesthetic score: up, down, or a target value"]
Guidance = Annotated[float | None, AfterValidator(_guidance), "classifier-free, of the chain; by default the mode's"]


def use_of(classifier: str | None, exemplar: Sequence[str], aesthetics: Sequence[str], loss: Any) -> Use:
    """The use that the flags ask for; text, where none does. Raises UsageError for two."""
    asked: list[tuple[Use, str, bool]] = [
        ("class", "--classifier", classifier is not None),
        ("exemplar", "--exemplar", bool(exemplar)),
        ("aesthetics", "--aesthetics", bool(aesthetics)),
        ("function", "loss=", loss is not None),
    ]
    found = [(use, flag) for use, flag, is_asked in asked if is_asked]
    if len(found) > 1:
        raise UsageError(f"{' and '.join(flag for _, flag in found)} pull to different ends: give one of them")
    return found[0][0] if found else "text"


@dataclass(frozen=True)
class Ends:
    """What the flags ask for, read: one of them, beside the use, is there."""

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
    """size: of what its judge sees; losses: items -> each loss and its weight; targets: items -> what the pictures
    are to be like, for the similarity that is told."""

    size: tuple[int, int]
    losses: Callable[[Sequence[Item]], list[tuple[Loss, float]]]
    targets: Callable[[Sequence[Item]], list[Prompt]]


def objective_of(ends: Ends, guides: PairGuides, entropy: Entropy) -> Objective:
    """What pulls. Raises UsageError for heads that are not one a CLIP, or not of its embeddings' width."""

    def prompts(items: Sequence[Item]) -> list[Prompt]:
        return [item.prompt if ends.wanted is None else ends.wanted for item in items]

    def text(items: Sequence[Item]) -> list[tuple[Loss, float]]:
        asked = prompts(items)
        found: list[tuple[Loss, float]] = []
        if ends.wanted is None:
            found += guides.pairings(asked, matching=1.0, captioning=1.0)
        if guides.referees:
            found.append((guides.spherical(asked), sum(guides.weights)))
        whole = sum(weight for _, weight in found)
        return [(loss, weight / whole) for loss, weight in found]

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
    """What a picture is to be like: these pictures, each as much. One that cannot be read is told and left out.

    Raises UsageError where none can be read.
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


def told_to_the_model(item: Item, model_prompt: str) -> str:
    """The diffusion model's own prompt for an item."""
    return model_prompt.replace("{}", text_of(item.prompt)) if "{}" in model_prompt else model_prompt


def check_crops(loss: Loss, count: int, pictures: int, size: tuple[int, int], device: torch.device) -> None:
    """Measure what one crop of each picture keeps for its gradient. Raises UsageError, with what would fit, where so
    many take more memory than is free."""
    free = free_memory(device)
    if free is None or not count:
        return

    def kept(crops: int) -> int:
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        probe = torch.zeros(pictures, crops, 3, *size, device=device, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = loss(probe)
        del out  # until here, so that no storage is another's again
        return sum(found.values())

    each = max(kept(2) - kept(1), 0)  # in which weights, that are kept as well, do not count
    if each * count > HEADROOM * free:
        fit = int(HEADROOM * free / each) if each else count
        raise UsageError(
            f"{count} crops of {pictures} picture{'s' if pictures > 1 else ''} keep about {each * count / 1e9:.1f} GB "
            f"for the gradient, and {free / 1e9:.1f} GB are free: give --crops {max(fit, 1)}, or a smaller --batch-size"
        )
