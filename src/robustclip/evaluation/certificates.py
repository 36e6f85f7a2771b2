"""Certified radius and abstention of randomised smoothing (Cohen et al. 2019, Certify)."""

from __future__ import annotations

from scipy import stats

from robustclip.errors import UsageError
from robustclip.referees.smoothed import check_sigma

CHOOSING = 100  # n0, alpha and n's order of magnitude are those of Cohen et al., who take n = 100,000
SAMPLES = 1_000
ALPHA = 0.001
MOST_SAMPLES = 10_000_000  # a hundred times theirs; far beyond, alpha^(1/n) rounds to 1 and the radius to infinity
RADIUS_STEP = 0.25  # as in their tables


def lower_bound(hits: int, n: int, alpha: float) -> float:
    """Clopper and Pearson's lower bound of a probability, at confidence 1 - alpha (one-sided), from hits of n."""
    return float(stats.binomtest(hits, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low)


def certified_radius(bound: float, sigma: float) -> float:
    """sigma * Phi^-1(bound), an L2 radius in pixel units; 0 for a bound that is not above 1/2."""
    return sigma * float(stats.norm.ppf(bound)) if bound > 0.5 else 0.0


def largest_radius(sigma: float, n: int, alpha: float) -> float:
    """What is certified where all n copies get the same label: sigma * Phi^-1(alpha^(1/n))."""
    return certified_radius(alpha ** (1 / n), sigma)


def smallest_n(alpha: float) -> int:
    """From how many copies on anything can be certified: alpha^(1/n) > 1/2."""
    n = 1
    while alpha ** (1 / n) <= 0.5:
        n += 1
    return n


def check_certifiable(
    classes: int, sigma: float, *, n0: int = CHOOSING, n: int = SAMPLES, alpha: float = ALPHA
) -> None:
    """Raise UsageError where no image could be certified, or nothing would be said by it."""
    if classes < 2:
        raise UsageError(f"a classifier of {classes} labels answers the same to everything: certify at least 2")
    check_sigma(sigma)
    if not 0 < alpha < 1:
        raise UsageError(f"alpha is the probability of a false certificate, in (0, 1), not {alpha:g}: e.g. {ALPHA:g}")
    if n0 < 1:
        raise UsageError(f"at least one noisy copy chooses the label, not n0={n0}: e.g. n0={CHOOSING}")
    if n > MOST_SAMPLES:
        raise UsageError(f"{n} noisy copies of each image are too many: take up to {MOST_SAMPLES}, e.g. {SAMPLES}")
    if n < 1 or alpha ** (1 / n) <= 0.5:
        raise UsageError(
            f"from {n} noisy copies nothing can be certified at alpha = {alpha:g}, even if all agree: "
            f"take at least {smallest_n(alpha)}, better {SAMPLES} (--samples {SAMPLES})"
        )


def radii_to_report(sigma: float, n: int, alpha: float = ALPHA) -> list[float]:
    """0, 0.25, 0.5 and so on, as far as anything can be certified."""
    return [step * RADIUS_STEP for step in range(int(largest_radius(sigma, n, alpha) / RADIUS_STEP) + 1)]
