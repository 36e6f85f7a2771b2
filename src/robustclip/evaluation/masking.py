"""Gradient-masking sanity checks (Athalye et al. 2018; Carlini et al. 2019).

After Athalye et al. 2018, §3.1 ("Identifying obfuscated and masked gradients"), and Carlini et al. 2019, §5. Thresholds
are ours. A comparison of paired rates fails only if the 95% interval of their difference lies above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from robustclip.attacks.gradient import attacking
from robustclip.attacks.library import check_installed
from robustclip.attacks.spec import AttackSpec, run_attack
from robustclip.attacks.threat import broadcast, draw_normal, per_image_max
from robustclip.data.embedded import EMBEDDED_DATA
from robustclip.errors import UsageError, faults_of
from robustclip.evaluation import intervals
from robustclip.evaluation.attacked import classify_under_attack, predict
from robustclip.evaluation.named import NamedReferee, Setting, load_named
from robustclip.evaluation.report import Check
from robustclip.evaluation.zeroshot import Candidates, Predictions, predictions
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import all_cosines, batches, class_embeddings, cosines
from robustclip.runs.rng import each

USUAL: Final = "l2:1.5@20"  # default attack of the embedded sets
SOURCE: Final = "emoji-vanilla"
QUERIES: Final = 500  # of Square, with the cost of 170 steps of PGD
STEPS: Final = (5, 20, 50)
RESTARTS: Final = 3
BROKEN: Final = 0.01  # the accuracy that counts as about 0
WIDEST: Final = 0.5  # L-inf
FLAT: Final = 0.01  # the share of images that may have no gradient
DISAGREEMENT: Final = 0.2  # of a finite difference with the gradient's length, for the median image
STRIDE: Final = 0.003  # of the finite difference, in units of the L2 eps that has the threat model's RMS


@dataclass(frozen=True)
class Subject:
    """A referee with its evaluation: images, class embeddings, and predictions on clean images."""

    name: str
    referee: TwoTower
    setting: Setting
    spec: AttackSpec
    among: Candidates
    classes: Float[Tensor, "c d"]
    clean: Predictions

    @classmethod
    def of(cls, name: str, referee: TwoTower, setting: Setting, among: Candidates, spec: AttackSpec) -> Subject:
        classes = class_embeddings(referee, among.names, setting.templates)
        size, dtype, title = setting.batch_size, setting.dtype, f"{name}, masking, clean"
        scores = all_cosines(referee, setting.examples.images, classes, batch_size=size, dtype=dtype, title=title)
        return cls(name, referee, setting, spec, among, classes, predictions(scores, among.targets))

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which clean images it classifies correctly."""
        return (self.clean.ranks == 0).numpy()

    def attacked(self, spec: AttackSpec) -> NDArray[np.bool_]:
        """Which images it classifies correctly, clean and under `spec`, any attack of zero-shot classification."""
        predicted = classify_under_attack(
            self.referee,
            self.setting.examples.images,
            self.among.targets,
            self.classes,
            spec,
            clean=self.clean,
            batch_size=self.setting.batch_size,
            seed=self.setting.seed,
            dtype=self.setting.dtype,
            ids=self.setting.examples.ids,
            title=f"{self.name}, masking {spec}",
        )
        return (predicted.ranks == 0).numpy()

    def loss(self, images: Float[Tensor, "b 3 h w"], right: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The cross-entropy that the attack maximises."""
        return F.cross_entropy(self.logits(images), right.to(images.device), reduction="none")

    def fine_loss(self, images: Float[Tensor, "b 3 h w"], right: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The cross-entropy in float64, on the CPU (not every device has it), of cosines in float32, whatever the
        attacks compute in: less is too coarse for finite differences of confident predictions."""
        logits = self.referee.logit_scale * cosines(self.referee, images, self.classes, torch.float32)
        return F.cross_entropy(logits.cpu().double(), right, reduction="none")

    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        return self.referee.logit_scale * cosines(self.referee, images, self.classes, self.setting.dtype)


def faults(
    attacks: Sequence[str], data: str | Path, source: str | None, *, masking: bool
) -> Iterator[str | UsageError]:
    """Faults of an `evaluate` call's masking arguments."""
    if source is not None and not masking:
        message = f"the masking source {source!r} has no effect without the masking checks: add masking"
        yield UsageError(message, "no_effect", argument="masking_source")
    if not masking:
        return
    yield from faults_of([check_installed])
    if not attacks and not str(data).startswith(EMBEDDED_DATA):
        yield UsageError("masking checks need an attack: give one, e.g. --attack linf:4/255@20", "no_attack")
    if attacks and AttackSpec.parse(attacks[0]).kind != "pgd":
        message = f"the masking checks need PGD, and the first attack is {attacks[0]}: give PGD first"
        yield UsageError(message, "not_pgd", attack=attacks[0])


def sources_of(measured: Sequence[NamedReferee], source: str | None, data: str, *, device: torch.device) -> Others:
    """Source referees of transferred adversarial images: `source`, or else all referees; for a single referee on
    embedded data, emoji-vanilla. Raises UsageError for a source that cannot be loaded."""
    if source is not None or (len(measured) == 1 and data.startswith(EMBEDDED_DATA)):
        measured = load_named([source or SOURCE], device=device)
    return [(one.name, one.referee) for one in measured]


def checks_of_all(
    measured: Sequence[NamedReferee], sources: Others, setting: Setting, among: Candidates
) -> list[Check]:
    """The checks of all referees under the first attack, with transfer from all sources but itself."""
    spec = setting.attacks[0] if setting.attacks else AttackSpec.parse(USUAL)
    return [
        check
        for name, referee in ((one.name, one.referee) for one in measured)
        for check in checks(name, referee, setting, among, spec, [one for one in sources if one[0] != name])
    ]


def checks(
    name: str,
    referee: TwoTower,
    setting: Setting,
    among: Candidates,
    spec: AttackSpec,
    others: Sequence[tuple[str, TwoTower]] = (),
) -> list[Check]:
    """Run all gradient-masking checks of a referee under `spec` (PGD); `others` are the sources of transferred
    adversarial images. Costs about 250 forward and backward passes and 500 forward passes per correct image.

    Raises UsageError for an attack that is not PGD.
    """
    if spec.kind != "pgd":
        raise UsageError(f"the masking checks need PGD, not {spec}: give {spec.ball}@20")
    subject = Subject.of(name, referee, setting, among, spec)
    with attacking(referee):
        if not subject.right.any():
            return [Check(name, title, None, "no clean image is classified correctly") for title in CHECKS]
        left = subject.attacked(spec)
        return [Check(name, title, *check(subject, left, others)) for title, check in CHECKS.items()]


Outcome = tuple[bool | None, str]
Others = Sequence[tuple[str, TwoTower]]


def black_box(subject: Subject, left: NDArray[np.bool_], _: Others) -> Outcome:
    """A black-box attack is not stronger than the white-box one. Not applicable to images that Square cannot tile and
    to a single label."""
    spec = replace(subject.spec, kind="square", steps=QUERIES, restarts=1, step=None)
    try:
        by_square = subject.attacked(spec)
    except UsageError as error:  # the other checks still apply
        return None, str(error)
    return not_stronger(subject, by_square, left, f"Square with {QUERIES} queries")


def far_enough(subject: Subject, left: NDArray[np.bool_], _: Others) -> Outcome:
    """Accuracy falls to about 0 as eps grows. The last ball is L-inf 0.5, in which every picture can become the same
    grey (Carlini et al. 2019, §5)."""
    rates = [f"{subject.spec.ball}: {left.mean():.1%}"]
    spec, n = subject.spec, len(left)
    while left.mean() > max(BROKEN, 1 / n) and (wider := doubled(spec, subject)) is not None:
        spec = wider
        left = subject.attacked(spec)
        rates.append(f"{spec.ball}: {left.mean():.1%}")
    return bool(left.mean() <= max(BROKEN, 1 / n)), f"top-1 in {', '.join(rates)}"


def doubled(spec: AttackSpec, subject: Subject) -> AttackSpec | None:
    """The attack with twice the eps; if no threat model is that large, L-inf 0.5, and after that None."""
    if (spec.norm, spec.eps) == ("linf", WIDEST):
        return None
    wider = replace(spec, eps=2 * spec.eps, step=None, restarts=1)
    try:
        wider.threat(subject.setting.examples.size)
    except UsageError:
        return replace(wider, norm="linf", eps=WIDEST)
    return wider if spec.norm == "l2" or wider.eps < WIDEST else replace(wider, eps=WIDEST)


def monotone(subject: Subject, _left: NDArray[np.bool_], _: Others) -> Outcome:
    """More steps and more restarts do not raise accuracy."""
    one = replace(subject.spec, restarts=1, step=None)
    by_steps = [subject.attacked(replace(one, steps=steps)) for steps in STEPS]
    by_restarts = [by_steps[1], subject.attacked(replace(one, steps=STEPS[1], restarts=RESTARTS))]
    rises = [rises_above(later, earlier) for row in (by_steps, by_restarts) for earlier, later in pairwise(row)]
    steps = ", ".join(f"{steps}: {hits.mean():.1%}" for steps, hits in zip(STEPS, by_steps, strict=True))
    restarts = ", ".join(f"{n}: {hits.mean():.1%}" for n, hits in zip((1, RESTARTS), by_restarts, strict=True))
    return not any(rises), f"top-1 by steps {steps}; by restarts {restarts}"


def transfer(subject: Subject, left: NDArray[np.bool_], others: Others) -> Outcome:
    """Transferred adversarial images of other referees are not stronger than its own."""
    texts, passed = [], True
    for name, other in others:
        good, text = not_stronger(subject, transferred(subject, name, other), left, f"PGD on {name}")
        texts.append(text)
        passed = passed and bool(good)
    return (passed, "; ".join(texts)) if texts else (None, "there is no other referee: give one, or a --masking-source")


def transferred(subject: Subject, name: str, other: TwoTower) -> NDArray[np.bool_]:
    """Which images the subject classifies correctly, clean and after an attack on another referee."""
    setting = subject.setting
    source = Subject.of(name, other, setting, subject.among, subject.spec)
    still = subject.right.copy()
    with attacking(other):
        for batch in batches(
            torch.from_numpy(still).nonzero()[:, 0], setting.batch_size, f"{subject.name}, masking by {name}"
        ):
            right = subject.among.targets[batch]

            def loss(pixels: Tensor, right: Tensor = right) -> Tensor:
                return source.loss(pixels, right)

            images = setting.examples.images[batch].to(subject.classes.device)
            moved = run_attack(
                other, images, loss, replace(subject.spec, restarts=1), key=(setting.seed, 0, int(batch[0]))
            )
            predicted = predict(subject.referee, moved, subject.classes, right, setting.dtype)
            still[batch.numpy()] &= (predicted.ranks == 0).numpy()
    return still


def not_flat(subject: Subject, _left: NDArray[np.bool_], _: Others) -> Outcome:
    """Images have a non-zero gradient that agrees with a finite difference of the loss.

    The median is over the images' absolute disagreements: for random gradients, ratios err both ways, and their median
    would be right.
    """
    lengths, slopes = (torch.cat(parts) for parts in zip(*slopes_of(subject), strict=True))
    usable = (lengths > 0) & lengths.isfinite()
    none = 1 - float(usable.double().mean())
    if none > FLAT:
        return False, f"{none:.1%} of the images have no gradient"
    off = float((slopes[usable] / lengths[usable] - 1).abs().median())
    text = f"{none:.1%} have no gradient; a finite difference along it is off by {off:.1%} of its length (median)"
    return off <= DISAGREEMENT, text


def slopes_of(subject: Subject) -> Iterator[tuple[Float[Tensor, " b"], Float[Tensor, " b"]]]:
    """`slopes` of the images, with noise of one level in 255 and slightly reduced contrast, so that their neighbourhood
    lies in [0,1]."""
    setting = subject.setting
    height, width = setting.examples.size
    stride = STRIDE * subject.spec.threat((height, width)).rms * (3 * height * width) ** 0.5
    title = f"{subject.name}, masking, slopes"
    for batch in batches(torch.arange(len(setting.examples)), setting.batch_size, title):
        images = setting.examples.images[batch].to(subject.classes.device)
        streams = each(setting.seed, "slopes", ids=[setting.examples.ids[int(index)] for index in batch])
        moved = (0.05 + 0.9 * images + draw_normal(images, streams) / 255).clamp(0, 1)
        yield slopes(partial(subject.fine_loss, right=subject.among.targets[batch]), moved, stride=stride)


def not_stronger(subject: Subject, left: NDArray[np.bool_], by_own_gradients: NDArray[np.bool_], what: str) -> Outcome:
    """Whether an attack leaves at least as high an accuracy as the white-box one."""
    text = f"{what} leaves {left.mean():.1%}, {subject.spec} {by_own_gradients.mean():.1%}"
    return not rises_above(by_own_gradients, left), text


def rises_above(later: Bool[Any, " n"], earlier: Bool[Any, " n"]) -> bool:
    """Whether a rate is significantly higher than another on the same images."""
    return intervals.difference(later, earlier, seed=0).low > 0


CHECKS: Final[dict[str, Callable[[Subject, NDArray[np.bool_], Others], Outcome]]] = {
    "black box not stronger than white box": black_box,
    "accuracy falls to about 0 as eps grows": far_enough,
    "monotone in steps and restarts": monotone,
    "transfer not stronger than white box": transfer,
    "loss not flat at the start": not_flat,
}


def slopes(
    loss: Callable[[Tensor], Tensor], images: Float[Tensor, "b 3 h w"], *, stride: float
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """The L2 norm of each image's gradient, and the central finite difference of the loss along it; float64, on the
    CPU. They agree if `loss`, images to (B,), is smooth.

    `stride` is the L2 distance to either side, in pixel units; pixels must be as far from 0 and 1. Both are 0 without a
    gradient. Max pooling over equal neighbours, as on a drawing's plain background, is not differentiable: add a little
    noise to such images.
    """
    leaf = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    largest = per_image_max(gradient.abs())  # factored out, so that squares of a tiny gradient do not underflow
    scaled = gradient / broadcast(torch.where(largest > 0, largest, 1), gradient)
    norms = torch.linalg.vector_norm(scaled, dim=(1, 2, 3))
    step = stride * scaled / broadcast(torch.where(norms > 0, norms, 1), scaled)
    with torch.no_grad():
        above, below = (loss((images.detach() + side * step).clamp(0, 1)).cpu().double() for side in (1, -1))
    return largest.cpu().double() * norms.cpu().double(), (above - below) / (2 * stride)
