"""Score Distillation Sampling (Poole et al. 2023, "DreamFusion", Eq. 3) of latents by a diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol, final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from robustclip.errors import UsageError

Weighting = Literal["constant", "one minus alpha"]
REFERENCE: Final = 64 * 64
"""Cells of a latent of Stable Diffusion's 512x512 pictures, for which published weights were chosen."""


class Denoiser(Protocol):
    """Interface of a diffusion model; see `robustclip.diffusion.stable.LatentDiffusion`."""

    steps: int
    alphas_cumprod: Float[Tensor, " t"]

    def predict_noise(
        self,
        noisy: Float[Tensor, "p c h w"],
        times: Int[Tensor, " p"],
        conditioning: Any,
        unconditional: Any,
        guidance: float,
        /,
    ) -> Float[Tensor, "p c h w"]: ...


@final
class Distillation:
    """SDS on latents (P,1,C,h,w) -> (P,1): the gradient is that of SDS, the value its norm, since SDS has no meaningful
    loss value.

    At a step t of the schedule and with noise e, both drawn for each picture from its generator, the gradient is
    w(t) (e_guided(z_t, t) - e) / cells. `cells` is the latent's height times width, as in the release of
    Referee-Can-Play (VLMinv), whose weight of 800 is for 64 x 64 cells. w(t) is constant 2 in that release
    (2 alpha^a sigma^b with a = b = 0); "one minus alpha" is DreamFusion's, 1 - alpha-bar(t).

    t lies in [first, last): [50, 950) of 1,000 in the release. Raises UsageError for a range that is empty or not in
    the schedule.
    """

    draws: Final = True

    def __init__(
        self,
        model: Denoiser,
        conditioning: Any,
        unconditional: Any,
        *,
        guidance: float = 30.0,
        times: tuple[int, int] = (50, 950),
        weighting: Weighting = "constant",
    ) -> None:
        if not 0 <= times[0] < times[1] <= model.steps:
            raise UsageError(
                f"SDS draws steps from {times[0]} to {times[1]}, and the schedule has {model.steps}: e.g. (50, 950)"
            )
        self.model = model
        self.conditioning, self.unconditional = conditioning, unconditional
        self.guidance, self.times, self.weighting = guidance, times, weighting

    def __call__(self, views: Float[Tensor, "p 1 c h w"], generators: Sequence[Generator]) -> Float[Tensor, "p 1"]:
        gradient = self.gradient(views[:, 0].detach().float(), generators)
        value: Tensor = _Gradient.apply(views[:, 0], gradient)
        return value.unsqueeze(1)

    @torch.no_grad()
    def gradient(self, latents: Float[Tensor, "p c h w"], generators: Sequence[Generator]) -> Float[Tensor, "p c h w"]:
        """The SDS gradient at these latents."""
        device = latents.device
        times = torch.stack([torch.randint(*self.times, (), generator=one, device=one.device) for one in generators])
        drawn = [torch.randn(latents.shape[1:], generator=one, device=one.device) for one in generators]
        times, noise = times.to(device), torch.stack(drawn).to(device)
        kept = self.model.alphas_cumprod[times].view(-1, 1, 1, 1)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        predicted = self.model.predict_noise(noisy, times, self.conditioning, self.unconditional, self.guidance)
        weight = 2.0 if self.weighting == "constant" else 1 - kept
        return weight * (predicted - noise) / (latents.shape[-2] * latents.shape[-1])

    def __str__(self) -> str:
        return f"sds guidance {self.guidance:g}"


class _Gradient(torch.autograd.Function):
    """The norm of a given gradient per picture, with that gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return gradient.flatten(1).norm(dim=1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return upstream[0].view(-1, *[1] * (gradient.ndim - 1)) * gradient, None
