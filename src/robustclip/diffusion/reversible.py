"""Gradients through a whole diffusion chain at the memory of one step, by exact reversal (DOODL, Wallace et al. 2023).

The backward pass reconstructs each state from the next one, and differentiates the denoiser evaluation that this needs.
A step costs one forward and one backward pass of the denoiser, as with checkpointing, but no stored state. Couplings:
`robustclip.diffusion.samplers`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from robustclip.diffusion.samplers import SAMPLERS, Coupling, Levels, SamplerName
from robustclip.diffusion.stable import Conditioning, LatentDiffusion, check_guidance
from robustclip.errors import RunError, UsageError

_log = logging.getLogger(__name__)

Gradient = Literal["reversed", "checkpointed", "stored"]
Denoise = Callable[..., Tensor]
"""(latents (P,...), time, *conditioning) -> predicted noise (P,...); conditioning tensors may get gradients."""
BOUND: Final = 1e-3
"""Relative RMS error of a reconstructed start above which there is a warning; the gradient's error is larger."""


@final
class Chain:
    """A denoiser, sampled by couplings. States are (2,P,...) in the dtype of the start: float64 is best, because each
    inverse step amplifies rounding.

    reversible: the couplings have inverses; pictures: indices of the latents that the last step made (both for EDICT);
    evaluations: of the denoiser per sample; error: of the last reconstruction, see `BOUND`.

    gradient: "reversed" stores the ends of the chain, "checkpointed" each step's latents, "stored" the whole graph.
    Raises UsageError for "reversed" without an inverse.
    """

    def __init__(
        self,
        denoise: Denoise,
        couplings: Sequence[Coupling],
        levels: Levels,
        *,
        name: str = "chain",
        gradient: Gradient = "reversed",
    ) -> None:
        self.denoise, self.couplings, self.levels, self.name = denoise, list(couplings), levels, name
        self.steps = len(levels.times)
        self.reversible = all(one.own for one in self.couplings)
        if gradient == "reversed" and not self.reversible:
            message = f"{name} has no exact inverse to take gradients by: give gradient='checkpointed'"
            raise UsageError(message, "no_inverse", sampler=name)
        self.gradient = gradient
        self.pictures = sorted({one.to for one in self.couplings if one.step == self.steps - 1})
        self.evaluations = sum(bool(one.noise) for one in self.couplings)
        self.error: float | None = None

    def sample(self, start: Float[Tensor, "2 p *shape"], *conditioning: Tensor) -> Float[Tensor, "2 p *shape"]:
        """The final state, differentiable in the start and the conditioning; `state[chain.pictures]` are pictures.

        Raises RunError, with the step, for a latent that is not finite, also in the backward pass.
        """
        if self.gradient == "reversed":
            end: Tensor = _Reversed.apply(self, start, *conditioning)
            return end
        return self.run(start, conditioning)

    @torch.no_grad()
    def invert(self, end: Float[Tensor, "2 p *shape"], *conditioning: Tensor) -> Float[Tensor, "2 p *shape"]:
        """Invert the chain: the start whose sample is this state. Raises UsageError for samplers without inverse."""
        if not self.reversible:
            raise UsageError(
                f"{self.name} has no exact inverse: give edict, bdia or o-belm", "no_inverse", sampler=self.name
            )
        state = list(end.unbind())
        for one in reversed(self.couplings):
            found = self.denoise(state[1 - one.to], one.time, *conditioning) if one.noise else None
            state[one.to] = undone(one, state, found)
            self._check(state[one.to], one, "backward")
        return torch.stack(state)

    @torch.no_grad()
    def ending(self, latents: Float[Tensor, p * shape], *conditioning: Tensor) -> Float[Tensor, "2 p *shape"]:
        """A final state of these latents: two copies, or, if one of the pair is a step older, DDIM's inverse for it.
        `sample(invert(ending(x)))` contains x."""
        if len(self.pictures) == 2:
            return torch.stack([latents, latents])
        a, b = self.levels.ddim(self.steps - 1)
        older = (latents - b * self.denoise(latents, self.levels.times[-1], *conditioning)) / a
        return torch.stack([latents, older] if self.pictures == [0] else [older, latents])

    def run(self, start: Tensor, conditioning: Sequence[Tensor]) -> Tensor:
        """Run the steps under autograd."""
        state = list(start.unbind())
        for one in self.couplings:
            u, v = state[one.to], state[1 - one.to]
            u = one.own * u + one.other * v
            if one.noise:
                found = (
                    checkpoint(self.denoise, v, one.time, *conditioning, use_reentrant=False)
                    if self.gradient == "checkpointed" and torch.is_grad_enabled()
                    else self.denoise(v, one.time, *conditioning)
                )
                u = u + one.noise * found
            state[one.to] = u
            self._check(u, one, "forward")
        return torch.stack(state)

    def check_start(self, rebuilt: Tensor, start: Tensor) -> None:
        """Measure the reconstruction error of the start, and warn if it is large."""
        off = (rebuilt - start).flatten(2).square().mean(2).sqrt() / start.flatten(2).square().mean(2).sqrt()
        error, previous = float(off.max()), self.error
        self.error = error
        if not error <= BOUND and not (previous is not None and previous > BOUND):
            _log.warning(
                f"{self.name} over {self.steps} steps reconstructs its start to {error:.1e} ({start.dtype} "
                "states), and gradients are less exact: take fewer steps, less guidance, float64 states or edict"
            )

    def _check(self, latents: Tensor, one: Coupling, direction: str) -> None:
        if not latents.detach().isfinite().all():
            raise RunError(
                f"{self.name}: a latent is not finite at step {one.step + 1} of {self.steps} (time {one.time}), "
                f"{direction}: compute in float32 (--dtype float32), or take less guidance or another sampler",
                "not_finite",
                step=one.step,
            )


def undone(one: Coupling, state: Sequence[Tensor], found: Tensor | None) -> Tensor:
    """Invert a coupling; `found` is the predicted noise."""
    u, v = state[one.to], state[1 - one.to]
    u = u if not one.other else u - one.other * v
    return (u if found is None else u - one.noise * found) / one.own


def pair(latents: Float[Tensor, p * shape]) -> Float[Tensor, "2 p *shape"]:
    """The start x_T = y_T."""
    return latents.expand(2, *latents.shape)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chain: Chain, start: Tensor, *conditioning: Tensor) -> Tensor:
        end = chain.run(start, conditioning)
        ctx.chain = chain
        ctx.save_for_backward(start, end, *conditioning)
        return end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        chain: Chain = ctx.chain
        start, end, *conditioning = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        state, slopes = list(end.unbind()), list(upstream.unbind())
        sums: list[Tensor | None] = [
            torch.zeros_like(one) if want else None for one, want in zip(conditioning, wanted, strict=True)
        ]
        for one in reversed(chain.couplings):
            u, v = one.to, 1 - one.to
            slope, passed, found = slopes[u], one.other * slopes[u], None
            if one.noise:
                with torch.enable_grad():
                    leaves = [state[v].detach().requires_grad_()]
                    leaves += [
                        each.detach().requires_grad_(want) for each, want in zip(conditioning, wanted, strict=True)
                    ]
                    out = chain.denoise(leaves[0], one.time, *leaves[1:])
                inputs = [leaf for leaf in leaves if leaf.requires_grad]
                back = torch.autograd.grad(out, inputs, (one.noise * slope).to(out.dtype), allow_unused=True)
                found = out.detach()
                del out
                if back[0] is not None:
                    passed = passed + back[0]
                places = [place for place, want in enumerate(wanted) if want]
                for place, more in zip(places, back[1:], strict=True):
                    sums[place] = sums[place] if more is None else sums[place] + more  # type: ignore[operator]
            state[u] = undone(one, state, found)
            chain._check(state[u], one, "backward")
            slopes[u], slopes[v] = one.own * slope, slopes[v] + passed
        chain.check_start(torch.stack(state), start)
        return None, torch.stack(slopes), *sums


def chain_of(
    model: LatentDiffusion,
    conditioning: Conditioning,
    unconditional: Conditioning,
    *,
    sampler: SamplerName = "edict",
    steps: int = 50,
    guidance: float = 7.5,
    gradient: Gradient | None = None,
    constants: Mapping[str, float] = MappingProxyType({}),
) -> tuple[Chain, tuple[Tensor, Tensor]]:
    """A chain of a latent diffusion model, and the states of both conditionings, for its `sample`.

    gradient: default: "reversed" if the sampler is reversible. constants: p of edict, gamma of bdia. Raises
    UsageError for a guidance below 0, steps that do not divide the schedule, and constants out of range.
    """
    check_guidance(guidance)
    levels = Levels.of(model.scheduler_config, steps)
    gradient = gradient or ("checkpointed" if sampler == "ddim" else "reversed")
    denoise = partial(_noise, model, conditioning, unconditional, guidance)
    chain = Chain(denoise, SAMPLERS[sampler](levels, **constants), levels, name=sampler, gradient=gradient)
    return chain, (conditioning.states, unconditional.states)


def _noise(
    model: LatentDiffusion,
    conditioning: Conditioning,
    unconditional: Conditioning,
    guidance: float,
    latents: Tensor,
    time: int,
    states: Tensor,
    empty: Tensor,
) -> Tensor:
    times = torch.full((len(latents),), time, device=latents.device)
    with_text, without = Conditioning(states, conditioning.mask), Conditioning(empty, unconditional.mask)
    return model.predict_noise(latents, times, with_text, without, guidance)


Score = Callable[[Float[Tensor, "p c h w"]], Float[Tensor, " p"]]
"""Predicted latents of pictures -> one loss each, differentiable."""


def predicted(latents: Tensor, noise: Tensor, alpha: float, sigma: float) -> Tensor:
    """x_0 from x_t and its noise."""
    return (latents - sigma * noise) / alpha


def guided(
    chain: Chain, start: Float[Tensor, "p c h w"], conditioning: tuple[Tensor, ...], loss: Score, scale: float
) -> Tensor:
    """DDIM with classifier guidance (Dhariwal and Nichol 2021, Alg. 2; DOODL's baseline): the noise is corrected by
    sigma * scale times the gradient of the loss of the predicted picture. Returns the final latents (P,C,h,w)."""
    levels, x = chain.levels, start
    for place, time in enumerate(levels.times):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            noise = chain.denoise(leaf, time, *conditioning)
            losses = loss(predicted(leaf, noise, levels.alphas[place], levels.sigmas[place]))
            (slope,) = torch.autograd.grad(losses.sum(), leaf)
        a, b = levels.ddim(place)
        x = (a * x + b * (noise.detach() + scale * levels.sigmas[place] * slope)).detach()
    return x


@final
class Predicted:
    """A chain whose gradient is that of its first step's predicted picture: noise optimisation without a gradient
    through the chain. Without gradients, it samples the whole chain."""

    pictures: Final = [0]

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    def sample(self, start: Float[Tensor, "2 p c h w"], *conditioning: Tensor) -> Float[Tensor, "2 p c h w"]:
        if not torch.is_grad_enabled():
            return self.chain.sample(start, *conditioning)[self.chain.pictures[:1]]
        levels = self.chain.levels
        x = start.mean(0)
        noise = self.chain.denoise(x, levels.times[0], *conditioning)
        return predicted(x, noise, levels.alphas[0], levels.sigmas[0])[None]

    def invert(self, end: Float[Tensor, "2 p c h w"], *conditioning: Tensor) -> Float[Tensor, "2 p c h w"]:
        return self.chain.invert(end, *conditioning)

    def ending(self, latents: Float[Tensor, "p c h w"], *conditioning: Tensor) -> Float[Tensor, "2 p c h w"]:
        return self.chain.ending(latents, *conditioning)
