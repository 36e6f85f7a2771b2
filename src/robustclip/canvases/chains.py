"""Canvas of DOODL (Wallace et al. 2023): the initial latents of a diffusion chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, final

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from robustclip.canvases.base import Canvas
from robustclip.canvases.latents import Autoencoder, drawn_latents
from robustclip.data.images import clamp_through
from robustclip.errors import UsageError
from robustclip.referees.base import check_images


class Chain(Protocol):
    """What samples, and its inverse; see `robustclip.diffusion.reversible.Chain`."""

    pictures: list[int]

    def sample(self, start: Float[Tensor, "2 p c h w"], /, *given: Tensor) -> Float[Tensor, "2 p c h w"]: ...
    def invert(self, end: Float[Tensor, "2 p c h w"], /, *given: Tensor) -> Float[Tensor, "2 p c h w"]: ...
    def ending(self, latents: Float[Tensor, "p c h w"], /, *given: Tensor) -> Float[Tensor, "2 p c h w"]: ...


@final
class ChainStart(Canvas):
    """x_T of P pictures of `size` (height, width), N(0,I) at first, each picture's from its own of `generators`. It
    renders the end of the chain; `given` are the tensors that the chain's denoiser reads.

    "image" and, of samplers whose both latents are pictures (EDICT), "other".

    tied: the pair starts from one latent, (P,c,h,w); without it, from one each, (P,2,c,h,w). renormalise: after each
    step a picture's noise gets its first norm again. through: gradients pass pixels that were cut to [0,1].

    Latents are float64, float32 where a device has none (MPS): see `robustclip.diffusion.reversible`.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        chain: Chain,
        given: Sequence[Tensor],
        size: tuple[int, int],
        generators: Sequence[Generator],
        *,
        device: torch.device | str = "cpu",
        tied: bool = True,
        renormalise: bool = True,
        through: bool = True,
    ) -> None:
        super().__init__()
        self.autoencoder, self.chain, self.given = [autoencoder], chain, [one.detach() for one in given]
        self.size, self.tied, self.renormalise, self.through = size, tied, renormalise, through
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        noise = drawn_latents(autoencoder, size, generators, device).to(dtype)
        self.latent = nn.Parameter(noise if tied else torch.stack([noise, noise], 1))
        self.norms = self._norms()

    def render(self) -> dict[str, Tensor]:
        start = self.latent.expand(2, *self.latent.shape) if self.tied else self.latent.transpose(0, 1)
        end = self.chain.sample(start, *self.given)[self.chain.pictures].float()
        images = [self.autoencoder[0].decode(one) for one in end]
        images = [clamp_through(one) if self.through else one.clamp(0, 1) for one in images]
        return dict(zip(("image", "other"), images, strict=False)) | {"latent": self.latent}

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "p 3 h w"]) -> None:
        """Start where the chain ends in these images: exactly if it is not tied, else the mean of the pair."""
        check_images(images)
        held = (len(self.latent), 3, *self.size)
        if images.shape != held:
            raise UsageError(f"the canvas holds {held}, the images are {tuple(images.shape)}")
        latents = self.autoencoder[0].encode(images).to(self.latent.dtype)
        start = self.chain.invert(self.chain.ending(latents, *self.given), *self.given)
        self.latent.copy_(start.mean(0) if self.tied else start.transpose(0, 1))
        self.norms = self._norms()

    @torch.no_grad()
    def project(self) -> None:
        if self.renormalise:
            self.latent.mul_(self.norms / self._norms())

    def _norms(self) -> Tensor:
        """Of each picture's noise, over all of it."""
        return self.latent.detach().flatten(1).norm(dim=1).view(-1, *[1] * (self.latent.ndim - 1))
