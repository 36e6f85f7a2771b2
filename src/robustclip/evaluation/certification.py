"""Certified accuracy of the smoothed zero-shot classifier, by L2 radius.

Randomised smoothing (Cohen et al. 2019, "Certified Adversarial Robustness via Randomized Smoothing"). The smoothed
classifier predicts the label that its base referee gives most often to x + delta, delta ~ N(0, sigma^2 I). If that
label has a probability of at least p > 1/2, the prediction is constant within the L2 radius sigma * Phi^-1(p)
(Theorem 1 with p_B <= 1 - p). Their Certify: n0 noisy copies choose the label; n fresh ones bound p from below at
confidence 1 - alpha (Clopper and Pearson); it abstains if the bound is not above 1/2.

The certificate is of the smoothed classifier, not of the base referee, at the images' given size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from robustclip.attacks.gradient import attacking
from robustclip.data.pictures import Images
from robustclip.errors import RunError, UsageError, faults_of
from robustclip.evaluation.named import Setting
from robustclip.evaluation.report import Findings, Measurement
from robustclip.referees.base import TwoTower, unit
from robustclip.referees.similarity import class_embeddings
from robustclip.referees.smoothed import check_sigma, refuse_wrapped
from robustclip.runs.devices import autocast
from robustclip.runs.progress import watched
from robustclip.runs.rng import each
from robustclip.runs.terminal import counted

CHOOSING = 100  # n0, alpha and n's order of magnitude are those of Cohen et al., who take n = 100,000
SAMPLES = 1_000
ALPHA = 0.001
MOST_SAMPLES = 10_000_000  # a hundred times theirs; far beyond, alpha^(1/n) rounds to 1 and the radius to infinity
RADIUS_STEP = 0.25  # as in their tables


def lower_bound(hits: int, n: int, alpha: float) -> float:
    """Clopper and Pearson's lower bound of a probability, at confidence 1 - alpha (one-sided), from hits of n."""
    return float(stats.binomtest(hits, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low)


def certified_radius(bound: float, sigma: float) -> float:
    """sigma * Phi^-1(bound), an L2 radius in pixel units; 0 for a bound of at most 1/2."""
    return sigma * float(stats.norm.ppf(bound)) if bound > 0.5 else 0.0


def largest_radius(sigma: float, n: int, alpha: float) -> float:
    """The radius if all n copies get the same label: sigma * Phi^-1(alpha^(1/n))."""
    return certified_radius(alpha ** (1 / n), sigma)


def smallest_n(alpha: float) -> int:
    """The least number of copies that can certify anything: alpha^(1/n) > 1/2."""
    n = 1
    while alpha ** (1 / n) <= 0.5:
        n += 1
    return n


def check_certifiable(
    classes: int, sigma: float, *, n0: int = CHOOSING, n: int = SAMPLES, alpha: float = ALPHA
) -> None:
    """Raise UsageError if no image could be certified, or the certificate would be trivial."""
    if classes < 2:
        raise UsageError(
            f"a classifier of {classes} labels is constant: certify at least 2", "too_few_labels", labels=classes
        )
    check_sigma(sigma)
    if not 0 < alpha < 1:
        message = f"alpha is the probability of a false certificate, in (0, 1), not {alpha:g}: e.g. {ALPHA:g}"
        raise UsageError(message, "out_of_range", argument="alpha")
    if n0 < 1:
        raise UsageError(
            f"at least one noisy copy chooses the label, not n0={n0}: e.g. n0={CHOOSING}", "too_few", argument="n0"
        )
    if n > MOST_SAMPLES:
        message = f"{n} noisy copies of each image are too many: take up to {MOST_SAMPLES}, e.g. {SAMPLES}"
        raise UsageError(message, "too_many", argument="n")
    if n < 1 or alpha ** (1 / n) <= 0.5:
        raise UsageError(
            f"from {n} noisy copies nothing can be certified at alpha = {alpha:g}, even if all agree: "
            f"take at least {smallest_n(alpha)}, better {SAMPLES} (--samples {SAMPLES})",
            "too_few",
            argument="n",
            least=smallest_n(alpha),
        )


def radii_to_report(sigma: float, n: int, alpha: float = ALPHA) -> list[float]:
    """0, 0.25, 0.5, ... up to the largest certifiable radius."""
    return [step * RADIUS_STEP for step in range(int(largest_radius(sigma, n, alpha) / RADIUS_STEP) + 1)]


ABSTAINED = -1


@dataclass(frozen=True)
class Certified:
    """The smoothed classifier's prediction for each image, and its certified radius.

    labels   (N,), index of the class; -1 where it abstains.
    radii    (N,) float64, L2 in pixel units at the images' size; 0 where it abstains.
    bounds   (N,) float64, lower bound of the chosen label's probability under noise, each at confidence 1 - alpha.
    counts   (N,), how many of the n noisy copies got the chosen label.
    """

    labels: Int[Tensor, " n"]
    radii: Float[Tensor, " n"]
    bounds: Float[Tensor, " n"]
    counts: Int[Tensor, " n"]
    sigma: float
    n: int
    alpha: float

    def holds_at(self, radius: float, targets: Int[Tensor, " n"]) -> list[bool]:
        """Whether each image is classified correctly and certified for at least `radius`."""
        return [bool(hit) for hit in (self.labels == targets) & (self.radii >= radius)]

    def abstentions(self) -> list[bool]:
        """Whether the classifier abstained, for each image."""
        return [bool(one) for one in self.labels == ABSTAINED]


def certify(
    referee: TwoTower,
    images: Images,
    classes: Float[Tensor, "c d"],
    *,
    sigma: float,
    n0: int = CHOOSING,
    n: int = SAMPLES,
    alpha: float = ALPHA,
    seed: int = 0,
    batch_size: int = 64,
    ids: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    title: str = "",
) -> Certified:
    """Cohen et al.'s Certify for each image, with `referee` (not smoothed) as the base classifier.

    images       (N,3,H,W) in [0,1]; noise of standard deviation `sigma` is added at that size, and not clipped.
    classes      unit vectors; the nearest by cosine is the prediction.
    batch_size   noisy copies per forward pass.
    ids          names of the images, which key their noise with the seed, independently of the other images and of
                 `batch_size`; default: their indices.

    Raises UsageError for fewer than two classes, an invalid sigma, too small an n for this alpha, and a referee that
    adds noise itself; RunError if an embedding is not finite.
    """
    refuse_wrapped(referee.image_tower, "is certified by its base", "certify that, which is given the noise")
    check_certifiable(len(classes), sigma, n0=n0, n=n, alpha=alpha)
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: give at least 1", "too_few", argument="batch_size")
    names = list(map(str, range(len(images)))) if ids is None else list(ids)
    if len(names) != len(images):
        message = f"{len(names)} ids for {len(images)} images: give each image one"
        raise UsageError(message, "unequal_lengths", ids=len(names), images=len(images))
    with attacking(referee):
        outcomes = _labels_and_hits(referee, images, classes, sigma, (n0, n), seed, batch_size, names, dtype, title)
    chosen = torch.tensor([label for label, _ in outcomes], dtype=torch.long)
    bounds = torch.tensor([lower_bound(hits, n, alpha) for _, hits in outcomes], dtype=torch.float64)
    sure = bounds > 0.5
    radii = torch.tensor([certified_radius(float(bound), sigma) for bound in bounds], dtype=torch.float64)
    hits = torch.tensor([hits for _, hits in outcomes], dtype=torch.long)
    return Certified(torch.where(sure, chosen, ABSTAINED), radii, bounds, hits, sigma, n, alpha)


def _labels_and_hits(
    referee: TwoTower,
    images: Images,
    classes: Float[Tensor, "c d"],
    sigma: float,
    copies: tuple[int, int],
    seed: int,
    batch_size: int,
    ids: Sequence[str],
    dtype: torch.dtype,
    title: str,
) -> list[tuple[int, int]]:
    """For each image the label chosen by the first n0 copies, and how many of the n second ones get it."""
    outcomes: list[tuple[int, int]] = []
    drawn = each(seed, "certification", ids=ids)
    for place, noise in enumerate(watched(drawn, title and f"{title}: {counted(len(ids), 'image')}", title)):
        image = images[torch.tensor([place])].to(classes.device)

        def counts(number: int, image: Tensor = image, noise: torch.Generator = noise) -> Int[Tensor, " c"]:
            return counts_under_noise(referee, image, classes, sigma, number, noise, batch_size, dtype)

        label = int(counts(copies[0]).argmax())
        outcomes.append((label, int(counts(copies[1])[label])))
    return outcomes


@torch.no_grad()
def counts_under_noise(
    referee: TwoTower,
    image: Float[Tensor, "1 3 h w"],
    classes: Float[Tensor, "c d"],
    sigma: float,
    copies: int,
    noise: torch.Generator,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> Int[Tensor, " c"]:
    """Number of noisy copies of an image per predicted label (Cohen et al.'s SampleUnderNoise). Copies are drawn one at
    a time, so that they do not depend on `batch_size`."""
    total = torch.zeros(len(classes), dtype=torch.long)
    for start in range(0, copies, batch_size):
        drawn = [torch.randn(image.shape[1:], generator=noise) for _ in range(min(batch_size, copies - start))]
        noisy = image + sigma * torch.stack(drawn).to(image)
        scores = cosines_of_views(referee, noisy, classes, dtype)
        if not bool(scores.isfinite().all()):
            raise RunError(
                f"{referee.card.name} has no finite embedding of an image with noise: nothing is certified",
                "not_finite",
            )
        total += scores.argmax(1).cpu().bincount(minlength=len(classes))
    return total


def faults(tasks: Sequence[str], sigma: float | None, samples: int, *, sign: bool) -> Iterator[str | UsageError]:
    """Faults of an `evaluate` call's certification arguments."""
    if "certification" not in tasks:
        if sigma is not None:
            message = f"sigma {sigma:g} has no effect without the task certification: add that, or leave sigma out"
            yield UsageError(message, "no_effect", argument="sigma")
        return
    if sign:
        message = "a certification cannot be signed, since verify does not re-measure it: leave out sign, or the task"
        yield UsageError(message, "not_signable", task="certification")
    if sigma is None:
        yield UsageError(
            "the task certification needs the noise's standard deviation on [0,1] pixels: --sigma 0.25", "no_sigma"
        )
    yield from faults_of([partial(check_certifiable, 2, 0.25 if sigma is None else sigma, n=samples)])


def certification(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """The task: certified accuracy at increasing radii, and the abstention rate."""
    if setting.sigma is None:
        raise UsageError("a certification needs the noise's standard deviation: --sigma 0.25", "no_sigma")
    examples = setting.examples
    among = setting.among()
    certified = certify(
        referee,
        examples.images,
        class_embeddings(referee, among.names, setting.templates),
        sigma=setting.sigma,
        n=setting.samples,
        seed=setting.seed,
        batch_size=setting.batch_size,
        ids=examples.ids,
        dtype=setting.dtype,
        title=title,
    )
    noise, choice = f"noise {setting.sigma:g}", setting.choice(len(among.names))
    findings = Findings([Measurement(f"abstained{choice}", noise, np.array(certified.abstentions()))])
    for radius in radii_to_report(setting.sigma, setting.samples):
        hits = np.array(certified.holds_at(radius, among.targets))
        findings.measurements.append(Measurement(f"certified at l2:{radius:g}{choice}", noise, hits))
    findings.add_predictions(
        attack=noise,
        id=examples.ids,
        label=[among.names[target] for target in among.targets.tolist()],
        prediction=[None if label == ABSTAINED else among.names[label] for label in certified.labels.tolist()],
        radius=certified.radii.tolist(),
        bound=certified.bounds.tolist(),
    )
    return findings


def cosines_of_views(
    referee: TwoTower, views: Float[Tensor, "b 3 h w"], classes: Float[Tensor, "c d"], dtype: torch.dtype
) -> Float[Tensor, "b c"]:
    """`similarity.cosines` for images that noise has moved outside [0,1]."""
    with autocast(views.device, dtype):
        embeddings = referee.embed_views(views)
    return unit(embeddings) @ classes.T
