"""DOODL's Algorithm 1 (Wallace et al. 2023) as canvas, stream and callbacks of the loop, and its objectives: texts,
classes, exemplars, aesthetics, or any function of pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import AfterValidator, PlainValidator
from torch import Generator, Tensor

from robustclip.canvases.latents import Autoencoder, Chain, ChainStart
from robustclip.data.images import load_image
from robustclip.diffusion.samplers import SamplerName
from robustclip.diffusion.stable import Guidance
from robustclip.errors import UsageError
from robustclip.losses.scores import Entropy, OfClass, OfFunction, Scored
from robustclip.referees.image_judges import Aesthetics, Classifier, load_aesthetics, load_classifier
from robustclip.runs.devices import free_memory, saved_bytes
from robustclip.synthesis.guides import Guides, PairGuides, parse_weight, text_of
from robustclip.synthesis.inversion import Mode as Mode
from robustclip.synthesis.items import Item
from robustclip.synthesis.loop import Callback, Moment, Noise
from robustclip.synthesis.prompts import Part, Prompt
from robustclip.synthesis.terms import MEAN, Looking, Loss, Lowest, Reduce, Stream, Term, Terms
from robustclip.views import Views
from robustclip.views.policies import RandomSquares

_log = logging.getLogger(__name__)

Method = Literal["doodl", "plain", "best-of", "one-step", "one-step-noise"]
Use = Literal["text", "class", "exemplar", "aesthetics", "function"]


@dataclass(frozen=True)
class Task:
    """Settings of a use in the release (demo.ipynb).

    scale: of the loss; clip: of each element of the gradient; noise: deviation of noise added to the latents after each
    step; steps: of the optimisation; power: of the crops' sides; tied: both latents of a pair share one noise, which
    keeps its initial norm.
    """

    scale: float = 1.0
    clip: float = 1e-3
    noise: float = 1e-4
    steps: int = 50
    power: float = 0.3
    tied: bool = True


TASKS: Final[dict[Use, Task]] = {
    "text": Task(),
    "class": Task(scale=0.05, clip=1e-2, noise=1e-3),
    "exemplar": Task(scale=3.0, clip=3e-3, noise=0.0, steps=500, power=0.06),
    "aesthetics": Task(noise=0.0, steps=25, tied=False),
    "function": Task(noise=0.0),
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What the modes differ by; the defaults are common to the paper and its release.

    sampler, chain_steps, guidance: of the chain.
    reduce      of the losses of a picture's crops.
    entropy     of a classifier's logits.
    through     gradients pass pixels that were clamped to [0,1].
    whole       the smallest crop is the referee's input size, which for small pictures is all of them; else half the
                picture's side.
    gain        factor of the task's loss scale.
    clip        of all tasks, in place of the task's.
    """

    sampler: SamplerName = "edict"
    chain_steps: int = 50
    guidance: float = 7.5
    reduce: Reduce = MEAN
    entropy: Entropy = "cross"
    through: bool = False
    whole: bool = True
    gain: float = 1.0
    clip: float | None = None


VARIANTS: Final[dict[Mode, Variant]] = {
    # The paper's text. Its learning rates are illegible in the text that we have: rate 1 and the release's scales.
    "faithful": Variant(entropy="binary"),
    # salesforce/DOODL, demo.ipynb.
    "released": Variant(reduce=Lowest()),  # the best crop alone counts
    # Ours, chosen on 8 prompts and the small embedded model, whose gradients are below the release's clip.
    "fixed": Variant(
        sampler="bdia",  # half of EDICT's evaluations
        chain_steps=20,
        guidance=3.0,
        through=True,
        whole=False,
        gain=300.0,  # most elements of the gradient reach the clip
        clip=3e-2,
    ),
}


@dataclass(frozen=True)
class Doodl:
    """DOODL's settings. A step: chain, decode, losses of crops, gradient, clip, momentum, step, noise, average,
    rescale."""

    variant: Variant
    task: Task
    momentum: float = 0.9

    @classmethod
    def of(cls, use: Use, *, mode: Mode = "fixed", momentum: float = 0.9, **settings: Any) -> Doodl:
        """Settings of a mode and a use, overridden by fields of `Variant` and `Task` among `settings` that are not
        None; other names are ignored."""
        variant, task = VARIANTS[mode], TASKS[use]
        kept = {name: one for name, one in settings.items() if one is not None}
        clip = task.clip if variant.clip is None else variant.clip
        ours = replace(task, scale=variant.gain * task.scale, clip=clip)
        return cls(
            replace(variant, **{name: kept[name] for name in ("sampler", "chain_steps", "guidance") if name in kept}),
            replace(ours, **{name: kept[name] for name in Task.__dataclass_fields__ if name in kept}),
            momentum,
        )

    def canvas(
        self,
        autoencoder: Autoencoder,
        chain: Chain,
        conditioning: Sequence[Tensor],
        size: tuple[int, int],
        generators: Sequence[Generator],
        *,
        device: torch.device,
    ) -> ChainStart:
        """Initial noise of a batch, one generator per picture."""
        return ChainStart(
            *(autoencoder, chain, conditioning, size, generators),
            device=device,
            tied=self.task.tied,
            renormalise=self.task.tied,
            through=self.variant.through,
        )

    def look(self, crops: int, size: tuple[int, int], picture: tuple[int, int]) -> Looking | None:
        """Random crops at the referee's input size; None for 0 crops."""
        if not crops:
            return None
        smallest = None if self.variant.whole else max(1, min(picture) // 2)
        return Views(crops, (RandomSquares(size, self.task.power, smallest, averaged=True),), name="crops")

    def stream(self, canvas: ChainStart, losses: Sequence[tuple[Loss, float]], look: Looking | None) -> Stream:
        """Stream of the weighted losses of each of the pair's pictures. The gradient is halved, and averaged over a
        tied pair, which halves it again."""
        reads = ["image", "other"][: len(canvas.chain.pictures)]
        terms = tuple(
            Term(loss, look, weight=weight, reduce=self.variant.reduce, reads=read)
            for read in reads
            for loss, weight in losses
        )
        scale = self.task.scale * (0.5 if len(reads) == 1 or not self.task.tied else 0.25)
        descent = torch.optim.SGD(canvas.parameters(), lr=1.0, momentum=self.momentum)
        return Stream(Terms(terms), descent, scale=scale, clip_value=self.task.clip, name="doodl")

    def callbacks(self, generators: Sequence[Generator]) -> list[Callback]:
        """Noise on the latents after each step."""
        return [Noise(self.task.noise, generators)] if self.task.noise else []


class StopBy:
    """Callback that keeps each picture's best step by held-out judges, and stops the loop if no picture of the batch
    improved for `patience` steps."""

    def __init__(self, judges: Guides, prompts: Sequence[Prompt], patience: int | None = None) -> None:
        self.judges, self.prompts, self.patience = judges, prompts, patience
        self.best: Tensor | None = None
        self.images: Tensor | None = None
        self.steps: Tensor | None = None
        self.scores: list[Tensor] = []

    def __call__(self, moment: Moment) -> bool:
        self.update(moment.canvas.picture(moment.image), moment.step)
        assert self.steps is not None
        return self.patience is not None and bool((moment.step - self.steps >= self.patience).all())

    def update(self, images: Tensor, step: int) -> Tensor:
        """Score `images` and return each picture's best so far."""
        scores = self.judges.similarity(images, self.prompts)
        self.scores.append(scores)
        if self.best is None or self.images is None or self.steps is None:
            self.best, self.images, self.steps = scores, images, torch.full_like(scores, step)
        better = scores > self.best
        self.best, self.steps = torch.where(better, scores, self.best), torch.where(better, step, self.steps)
        self.images = torch.where(better[:, None, None, None], images, self.images)
        return self.images

    def trace(self) -> Tensor:
        """Scores before each step, (S,P), without those of the final picture."""
        return torch.stack(self.scores[:-1] or self.scores)


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
        message = f"{' and '.join(flag for _, flag in selected)} are different objectives: give one of them"
        raise UsageError(message, "clash", flags=[flag for _, flag in selected])
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
    """The objective of a use. Raises UsageError unless there is one head per CLIP, of its embeddings' width, and for
    exemplars with a pair reader."""
    if ends.wanted is not None and guides.readers:
        name = guides.readers[0][0].card.name
        message = f"exemplars are pictures, and {name} compares pictures with texts: give CLIPs alone as --referee"
        raise UsageError(message, "reads_texts", referee=name)

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
                "--referee, in this order",
                "unequal_lengths",
                heads=len(ends.heads),
                referees=len(guides.referees),
            )
        pairs = [(clip, head, weight) for clip, (head, weight) in zip(guides.referees, ends.heads, strict=True)]
        aim: float | Literal["up", "down"] = (
            "up" if ends.aim == "up" else "down" if ends.aim == "down" else float(ends.aim)
        )
        scored = Scored(pairs, aim, guides.dtype)
        return Objective(guides.size, lambda _: [(scored, 1.0)], prompts)
    if ends.loss is not None:
        return Objective(guides.size, lambda _: [(OfFunction(ends.loss), 1.0)], prompts)
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
            _log.warning(f"{error}: it is left out")
    if not readable:
        message = f"none of the {len(files)} exemplars can be read: give pictures, as .png or .jpg"
        raise UsageError(message, "no_pictures", files=files)
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
            f"for the gradient, and {free / 1e9:.1f} GB are free: give --crops {max(fit, 1)}, "
            f"or a smaller --batch-size",
            "too_little_memory",
            crops=count,
            fit=max(fit, 1),
        )
