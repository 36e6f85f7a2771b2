"""Point-wise mutual information of a picture and its prompt, estimated by a diffusion model's own denoiser.

Three estimators, in nats; lambda(t) = log(abar_t / (1 - abar_t)) is the log signal-to-noise ratio, e the noise in z_t:

- gap (`pointwise_mi(form="gap")`): 1/2 * integral over lambda of E[|e - e(z_t)|^2 - |e - e(z_t, prompt)|^2], the gap
  of minimum mean squared errors (MMG, arXiv 2509.20609, in terms of noise). For the optimal denoiser it is
  log p(x | prompt) / p(x) of the given picture.
- difference (`pointwise_mi(form="difference")`): the same integral of E|e(z_t, prompt) - e(z_t)|^2: Eq. 2 of MI-TUNE
  (Wang et al. 2025) on a given picture. It equals the gap only in expectation over pictures and their true prompts: for
  a wrong prompt it grows where the gap falls below 0, so it does not rank prompts of a picture.
- trajectory (`sample_with_mi`): Eq. 2 on the states of the model's own ancestral sampling, MI-TUNE's Alg. 1, without a
  second pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from robustclip.errors import RunError, UsageError

Form = Literal["gap", "difference"]
FORMS: Final[tuple[Form, ...]] = ("gap", "difference")
Kappa = Literal["exact", "released"]
METRIC: Final = "mutual-information"
"""Its name in reports."""
MARK: Final = "mi:"
"""Prefix of the name or folder of a diffusion model used as judge, selector or guide."""
OWN: Final = (
    "estimates mutual information by the diffusion model itself: for pictures that it generated this measures its "
    "confidence, not their correctness"
)
"""Warning for a model that scores its own pictures."""
SKIPPED: Final = 50
"""Steps of the schedule that MI-TUNE's release skips, because of their variance."""


class Denoiser(Protocol):
    """Interface of diffusion models; see `robustclip.diffusion.stable.LatentDiffusion`."""

    alphas_cumprod: Float[Tensor, " t"]

    def predict_both(
        self, noisy: Float[Tensor, p * shape], times: Int[Tensor, " p"], conditioning: Any, unconditional: Any, /
    ) -> tuple[Float[Tensor, p * shape], Float[Tensor, p * shape]]:
        """The noise with the text and without it."""


@dataclass(frozen=True)
class MutualInformation:
    """nats: (N,), the estimate of each pair of picture and prompt; standard_error: (N,), of the Monte Carlo draws, NaN
    for a single draw; terms: (N,T), the contribution of each of the T levels, whose times (N,T) are steps of the
    schedule; maps: (N,*shape), the contribution of each element of the latent. Terms and maps each add up to `nats`.
    Estimates are float64 on the CPU, since MPS has no float64."""

    nats: Float[Tensor, " n"]
    standard_error: Float[Tensor, " n"]
    times: Int[Tensor, "n t"]
    terms: Float[Tensor, "n t"]
    maps: Float[Tensor, n * shape]

    @property
    def bits(self) -> Float[Tensor, " n"]:
        """The estimates in bits."""
        return self.nats / math.log(2)


def log_snr(alphas_cumprod: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """log(abar / (1 - abar)) of each step, float64 on the CPU, falling. Raises UsageError for zero terminal SNR."""
    return torch.logit(_with_signal(alphas_cumprod))


def _with_signal(alphas_cumprod: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    kept = alphas_cumprod.cpu().double()
    if not bool((kept > 0).all()):
        raise UsageError(
            "this schedule ends without signal (rescale_betas_zero_snr), where mutual information has no finite "
            "weight: take a model of another schedule, or set rescale_betas_zero_snr to false",
            "no_signal",
        )
    return kept


def widths(alphas_cumprod: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """Trapezoidal weights of the steps for an integral over log SNR, float64 on the CPU; their sum is its range."""
    levels = log_snr(alphas_cumprod)
    half = (levels[:-1] - levels[1:]) / 2
    return torch.cat([half[:1], half[1:] + half[:-1], half[-1:]])


def pointwise_mi(
    model: Denoiser,
    latents: Float[Tensor, n * shape],
    conditioning: Any,
    unconditional: Any,
    *,
    form: Form = "gap",
    **settings: Any,
) -> MutualInformation:
    """Estimate the mutual information of N latents and their prompts by one form; settings as of `pointwise_forms`."""
    return pointwise_forms(model, latents, conditioning, unconditional, **settings)[form]


def pointwise_forms(
    model: Denoiser,
    latents: Float[Tensor, n * shape],
    conditioning: Any,
    unconditional: Any,
    *,
    levels: int = 32,
    draws: int = 4,
    seed: int = 0,
    common: bool = True,
    at_once: int = 64,
) -> dict[Form, MutualInformation]:
    """Estimate the mutual information of N latents and their prompts by both forms from the same predictions.

    `conditioning` holds the states of N prompts, with `rows(index)`, and `unconditional` those of the empty one
    (`model.embed_prompts([""])`). Each of `draws` repetitions draws one step of the schedule in each of `levels` strata
    of equal width in log SNR, and noise for it; both predictions read the same noisy latent. The standard error is that
    of the mean of the repetitions. With `common` all pictures get the same steps and noise, so that differences between
    them vary less, but errors are correlated. It costs 2 * levels * draws evaluations of the denoiser per picture,
    `at_once` latents per pass. The integral ends where the schedule does.

    Differentiable in `latents`. Raises UsageError for no level or draw, and unless there is one prompt per picture;
    RunError for predictions that are not finite, and a denoiser that does not read the prompt.
    """
    if len(latents) != len(conditioning):
        raise UsageError(
            f"{len(latents)} pictures and {len(conditioning)} prompts are not pairs: give one prompt for each picture, "
            "or call information_matrix for all combinations",
            "not_pairs",
            pictures=len(latents),
            prompts=len(conditioning),
        )
    if levels < 1 or draws < 1:
        message = f"levels={levels} and draws={draws}: both are 1 or more, as in levels=32, draws=4"
        raise UsageError(message, "out_of_range", levels=levels, draws=draws)
    count, device = len(latents), latents.device
    generator = torch.Generator().manual_seed(seed)
    weights = widths(model.alphas_cumprod)
    edges = weights.cumsum(0) / weights.sum()
    owners = torch.arange(count, device=device).repeat_interleave(levels)
    terms, steps = [], []
    maps: Tensor = torch.zeros(len(FORMS), *latents.shape, dtype=torch.float64)
    for _ in range(draws):
        times, noise = _drawn(edges, levels, latents, generator, common)
        elements = torch.cat(
            [
                _integrand(model, latents[rows], at, drawn, conditioning.rows(rows), unconditional)
                for rows, at, drawn in zip(
                    owners.split(at_once),
                    times.flatten().split(at_once),
                    noise.flatten(0, 1).split(at_once),
                    strict=True,
                )
            ],
            dim=1,
        )
        elements = elements.view(len(FORMS), count, levels, *latents.shape[1:]) * (weights.sum() / (2 * levels))
        maps = maps + elements.sum(2) / draws
        terms.append(elements.flatten(3).sum(3))
        steps.append(times)
    if count and not maps.any():
        raise RunError(
            "the denoiser predicts the same with and without the prompt: it reads no text, or was distilled for one "
            "guidance scale; use the model before distillation",
            "text_not_read",
        )
    repeated, every, times = (
        torch.stack([one.sum(2) for one in terms]),
        torch.cat(terms, 2) / draws,
        torch.cat(steps, 1),
    )
    error = repeated.std(0) / math.sqrt(draws) if draws > 1 else torch.full(repeated.shape[1:], math.nan)
    means, error = repeated.mean(0), error.detach()
    return {form: MutualInformation(means[at], error[at], times, every[at], maps[at]) for at, form in enumerate(FORMS)}


def information_matrix(
    model: Denoiser, latents: Float[Tensor, n * shape], conditioning: Any, unconditional: Any, **settings: Any
) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n p"]]:
    """(nats, standard errors) of each of N latents with each of P prompts: `pointwise_mi` of all N * P pairs, with its
    settings. All pairs share the draws, so that they can be compared."""
    pictures, prompts = torch.cartesian_prod(torch.arange(len(latents)), torch.arange(len(conditioning))).unbind(1)
    estimate = pointwise_mi(model, latents[pictures], conditioning.rows(prompts), unconditional, **settings)
    shape = len(latents), len(conditioning)
    return estimate.nats.view(shape), estimate.standard_error.view(shape)


def evaluations_needed(found: MutualInformation, share: float = 0.05) -> float:
    """Evaluations of the denoiser per picture at which the standard error is `share` of the spread between pictures.

    `found` holds estimates of at least two pictures by `draws` >= 2 repetitions with independent draws
    (`common=False`). The spread is the standard deviation between pictures without the estimates' own variance;
    infinity if that is not positive.
    """
    variance = found.standard_error.square().mean()
    spread = found.nats.var() - variance
    if not float(spread) > 0:
        return math.inf
    return 2 * found.terms.shape[1] * float(variance / spread) / share**2


def _drawn(
    edges: Tensor, levels: int, latents: Tensor, generator: Generator, common: bool
) -> tuple[Int[Tensor, "n l"], Float[Tensor, "n l *shape"]]:
    """A step in each stratum of the schedule and its noise, for each latent, or common to all."""
    count = 1 if common else len(latents)
    place = (torch.arange(levels) + torch.rand(count, levels, generator=generator, dtype=torch.float64)) / levels
    times = torch.searchsorted(edges, place).clamp(max=len(edges) - 1)
    noise = torch.randn((count, levels, *latents.shape[1:]), generator=generator, dtype=torch.float64)
    shape = (len(latents), levels, *latents.shape[1:])
    return times.to(latents.device).expand(shape[:2]), noise.to(latents).expand(shape)


def _integrand(
    model: Denoiser,
    latents: Tensor,
    times: Tensor,
    noise: Tensor,
    conditioning: Any,
    unconditional: Any,
) -> Float[Tensor, "f m *shape"]:
    """The integrand of each form by element, float64 on the CPU, of latents at their steps of the schedule."""
    kept = model.alphas_cumprod.to(latents)[times].view(-1, *[1] * (latents.ndim - 1))
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    with_text, without = (one.cpu().double() for one in model.predict_both(noisy, times, conditioning, unconditional))
    apart = with_text - without
    # The gap |e - without|^2 - |e - with|^2 as a product: two large squares would cancel.
    squared = torch.stack([apart * (2 * noise.cpu().double() - with_text - without), apart.square()])
    if not squared.isfinite().all():
        broken = times.cpu()[~squared.isfinite().all(0).flatten(1).all(1)][0]
        raise RunError(
            f"the denoiser gives NaN or infinity at step {int(broken)} of the schedule", "not_finite", step=int(broken)
        )
    return squared


@torch.no_grad()
def sample_with_mi(
    model: Denoiser,
    start: Float[Tensor, n * shape],
    conditioning: Any,
    unconditional: Any,
    *,
    generators: Sequence[Generator],
    steps: int = 100,
    guidance: float = 7.5,
    kappa: Kappa = "exact",
    skip: int = 0,
) -> tuple[Float[Tensor, n * shape], Float[Tensor, " n"]]:
    """Sample latents by DDPM (Ho et al. 2020) from the noise `start` and estimate their mutual information along the
    trajectory (MI-TUNE, Alg. 1): (latents, nats).

    nats is the mean over the steps of kappa_t |e(z_t, prompt) - e(z_t)|^2, summed over the latent, by the raw
    predictions at the states of the guided chain. kappa_t = beta_t T / (2 alpha_t (1 - abar_t)), of the schedule's T
    steps; "released" drops alpha_t as MI-TUNE's code does. The mean leaves out steps t <= `skip` (50 in that code).
    The chain visits `steps` of the schedule's steps evenly; alpha and beta of its updates are those between them.

    Raises UsageError for steps that the schedule does not have, a `skip` that leaves none, and a schedule that ends
    without signal.
    """
    total = len(model.alphas_cumprod)
    if not 1 <= steps <= total or skip >= total - total // steps:
        raise UsageError(
            f"steps={steps} and skip={skip}: the schedule has {total} steps, and one must remain after skip, as in "
            f"steps={min(100, total)}, skip={min(SKIPPED, total // 2)}",
            "out_of_range",
            steps=steps,
            skip=skip,
        )
    kept = _with_signal(model.alphas_cumprod)
    alphas = kept / torch.cat([kept.new_ones(1), kept[:-1]])
    weight = (1 - alphas) * total / (2 * (1 - kept)) / (alphas if kappa == "exact" else 1)
    visited = [total - 1 - place * total // steps for place in range(steps)]
    latents, gathered, counted = start, torch.zeros(len(start), dtype=torch.float64), 0
    for time, after in zip(visited, [*visited[1:], -1], strict=True):
        times = torch.full((len(latents),), time, device=latents.device)
        with_text, without = model.predict_both(latents, times, conditioning, unconditional)
        if time > skip or skip == 0:
            gathered += weight[time] * (with_text - without).cpu().double().square().flatten(1).sum(1)
            counted += 1
        noise = without + guidance * (with_text - without)
        before = kept[after].item() if after >= 0 else 1.0
        latents = _ancestral(latents, noise, kept[time].item(), before, generators if after >= 0 else None)
    return latents, gathered / counted


def _ancestral(
    latents: Tensor, noise: Tensor, kept: float, before: float, generators: Sequence[Generator] | None
) -> Tensor:
    """A step of DDPM from abar `kept` to the larger `before` (Ho et al. 2020, Alg. 2), without noise in the last."""
    alpha = kept / before
    mean = (latents - (1 - alpha) / math.sqrt(1 - kept) * noise) / math.sqrt(alpha)
    if generators is None:
        return mean
    drawn = torch.stack([torch.randn(latents.shape[1:], generator=one, device=one.device) for one in generators])
    return mean + math.sqrt((1 - before) / (1 - kept) * (1 - alpha)) * drawn.to(latents)
