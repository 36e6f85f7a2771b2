"""Reversible and deterministic diffusion samplers (EDICT, BDIA, O-BELM, DDIM) as couplings of two latents.

A coupling changes one latent of the pair and reads the other, which stays:

    u <- own * u + other * v + noise * eps(v, time)

If `own` is not 0, it is inverted by the same evaluation eps(v, time), because v is unchanged. A sampler is a function
from noise levels to couplings; step, inverse and gradient are in `robustclip.diffusion.reversible`.

Below, t is a level, s the next one (less noise) and p the previous one; alpha and sigma are the square roots of
alpha-bar and 1 - alpha-bar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, Final, Literal

from robustclip.errors import UsageError

try:
    from diffusers import DDIMScheduler
except ImportError as error:
    raise UsageError("generators are diffusers': pip install 'robustclip[synthesis]'") from error

SamplerName = Literal["edict", "bdia", "o-belm", "ddim"]


@dataclass(frozen=True)
class Coupling:
    """A coupling as above. to: index of the latent that changes; time: of the schedule; step: of the chain, from 0.
    With noise 0 the denoiser is not evaluated."""

    to: int
    own: float
    other: float
    noise: float
    time: int
    step: int


@dataclass(frozen=True)
class Levels:
    """The noise levels of a chain of N steps, from noise to picture.

    times: N steps of the schedule at which the denoiser is evaluated; alphas, sigmas: N + 1 of each, the last of the
    picture.
    """

    times: tuple[int, ...]
    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any], steps: int) -> Levels:
        """The levels of DDIM by a scheduler's config (diffusers').

        Raises UsageError for steps that do not divide the schedule, and for zero terminal SNR.
        """
        scheduler: Any = DDIMScheduler.from_config(dict(config))
        whole = int(scheduler.config["num_train_timesteps"])
        if steps < 1 or whole % steps:
            near = sorted((n for n in range(1, whole + 1) if whole % n == 0), key=lambda n: (abs(n - steps), n))[:2]
            raise UsageError(
                f"a chain of {steps} steps does not divide the schedule of {whole}: give {' or '.join(map(str, near))}",
                "not_divisible",
                argument="steps",
                given=steps,
                near=near,
            )
        offset = min(int(scheduler.config["steps_offset"]), whole // steps - 1)  # all steps leave no room for one
        scheduler = DDIMScheduler.from_config({**config, "steps_offset": offset})
        scheduler.set_timesteps(steps)
        times = [int(time) for time in scheduler.timesteps]
        kept = [float(scheduler.alphas_cumprod[time]) for time in times]
        last = times[-1] - whole // steps
        kept.append(float(scheduler.alphas_cumprod[last] if last >= 0 else scheduler.final_alpha_cumprod))
        if min(kept) <= 0:
            raise UsageError(
                "this schedule begins in noise without any signal (rescale_betas_zero_snr), where no step has an "
                "inverse: sample by another model, or with timestep_spacing 'leading' in its scheduler's config",
                "no_signal",
            )
        return cls(tuple(times), tuple(map(sqrt, kept)), tuple(sqrt(max(1 - one, 0.0)) for one in kept))

    def ddim(self, place: int, to: int | None = None) -> tuple[float, float]:
        """(a, b) of x_to = a x + b eps(x) from the level at `place` to another, by default the next (Song et al. 2021,
        Eq. 12 without noise)."""
        to = place + 1 if to is None else to
        a = self.alphas[to] / self.alphas[place]
        return a, self.sigmas[to] - self.sigmas[place] * a


def edict(levels: Levels, p: float = 0.93) -> list[Coupling]:
    """EDICT (Wallace et al. 2023): two latents, each stepped by the noise predicted at the other, then mixed by p, in
    alternating order. Two evaluations a step. Raises UsageError for p outside (0.5, 1]."""
    if not 0.5 < p <= 1:
        message = f"EDICT mixes its pair by p in (0.5, 1], and {p:g} is outside: 0.93 is its authors'"
        raise UsageError(message, "out_of_range", argument="p", given=p)
    row = []
    for step, time in enumerate(levels.times):
        a, b = levels.ddim(step)
        first = step % 2
        row += [Coupling(to, a, 0.0, b, time, step) for to in (first, 1 - first)]
        row += [Coupling(to, p, 1 - p, 0.0, time, step) for to in (0, 1)]
    return row


def bdia(levels: Levels, gamma: float = 0.9) -> list[Coupling]:
    """BDIA (Zhang et al. 2023, arXiv 2307.10829): x_s from x_p and x_t, one evaluation a step. gamma in (0, 1]:
    the inverse is most exact at 1; near 0 it is DDIM. Raises UsageError for others."""
    if not 0 < gamma <= 1:
        message = f"BDIA weighs the older latent by gamma in (0, 1], and {gamma:g} is outside: give e.g. 0.9"
        raise UsageError(message, "out_of_range", argument="gamma", given=gamma)

    def step(place: int) -> tuple[float, float, float]:
        (a, b), (back, noise) = levels.ddim(place), levels.ddim(place, place - 1)
        return gamma, a - gamma * back, b - gamma * noise

    return _two_steps(levels, step)


def o_belm(levels: Levels) -> list[Coupling]:
    """O-BELM (Wang et al. 2024, arXiv 2410.07273): the bidirectional linear multistep of the least local error, one
    evaluation a step."""

    def step(place: int) -> tuple[float, float, float]:
        (pa, ta, sa), ratios = (
            levels.alphas[place - 1 : place + 2],
            [
                s / a
                for s, a in zip(levels.sigmas[place - 1 : place + 2], levels.alphas[place - 1 : place + 2], strict=True)
            ],
        )
        h1, h2 = ratios[1] - ratios[0], ratios[2] - ratios[1]
        q = (h2 / h1) ** 2
        return q * sa / pa, (1 - q) * sa / ta, sa * h2 * (h1 + h2) / h1

    return _two_steps(levels, step)


def ddim(levels: Levels) -> list[Coupling]:
    """DDIM (Song et al. 2021), which has no exact inverse."""
    return [Coupling(step % 2, 0.0, *levels.ddim(step), time, step) for step, time in enumerate(levels.times)]


def _two_steps(levels: Levels, step: Callable[[int], tuple[float, float, float]]) -> list[Coupling]:
    """Couplings that replace x_p by x_s. The first step is DDIM's, with weight 1 of the older latent, a copy of x_T, so
    that it is invertible."""
    a, b = levels.ddim(0)
    rows = [(1.0, a - 1, b), *(step(place) for place in range(1, len(levels.times)))]
    return [
        Coupling(place % 2, *row, time, place) for place, (row, time) in enumerate(zip(rows, levels.times, strict=True))
    ]


SAMPLERS: Final[Mapping[SamplerName, Callable[..., list[Coupling]]]] = {
    "edict": edict,
    "bdia": bdia,
    "o-belm": o_belm,
    "ddim": ddim,
}
