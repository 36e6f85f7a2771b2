"""Canvas of Referee-Can-Play: the latents of an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, final

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from robustclip.canvases.base import Canvas, check_fit
from robustclip.data.images import clamp_through
from robustclip.errors import UsageError


class Autoencoder(Protocol):
    """Interface of latent generators; see `robustclip.diffusion.stable.LatentDiffusion`."""

    factor: int
    channels: int

    def encode(self, images: Float[Tensor, "p 3 H W"], /) -> Float[Tensor, "p c h w"]: ...
    def decode(self, latents: Float[Tensor, "p c h w"], /) -> Float[Tensor, "p 3 H W"]: ...


@final
class Latents(Canvas):
    """Scaled latents of P pictures of `size` (height, width), initialised as N(0,I) by one of `generators` per picture.

    through: gradients pass pixels that were clamped to [0,1]; without it they do not, as in the release of
    Referee-Can-Play (VLMinv). Raises UsageError for a size that is not a multiple of the cell.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        size: tuple[int, int],
        generators: Sequence[Generator],
        *,
        device: torch.device | str = "cpu",
        through: bool = True,
    ) -> None:
        super().__init__()
        self.autoencoder = [autoencoder]  # in a list, so that its weights are not parameters of the canvas
        self.size = size
        self.through = through
        self.latent = nn.Parameter(drawn_latents(autoencoder, size, generators, device))

    def render(self) -> dict[str, Tensor]:
        image = self.autoencoder[0].decode(self.latent)
        return {"image": clamp_through(image) if self.through else image.clamp(0, 1), "latent": self.latent}

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "p 3 h w"]) -> None:
        check_fit(images, len(self.latent), self.size)
        self.latent.copy_(self.autoencoder[0].encode(images))


def drawn_latents(
    autoencoder: Autoencoder, size: tuple[int, int], generators: Sequence[Generator], device: torch.device | str
) -> Float[Tensor, "p c h w"]:
    """Sample N(0,I) latents for pictures of `size`, one generator each. Raises UsageError if the size is not a multiple
    of the cell.
    """
    check_whole(size, autoencoder.factor, "cells")
    shape = (autoencoder.channels, *(side // autoencoder.factor for side in size))
    return torch.stack([torch.randn(shape, generator=one, device=one.device).to(device) for one in generators])


def check_whole(size: Sequence[int], factor: int, parts: str) -> None:
    """Raise UsageError unless height and width are multiples of the pixels of a latent's cell, or code."""
    if any(side % factor or not side for side in size):
        fit = "x".join(str(max(1, round(side / factor)) * factor) for side in size)
        message = f"a picture of {size[0]}x{size[1]} is not whole in {parts} of {factor}x{factor} pixels: make it {fit}"
        raise UsageError(message, "size_not_divisible", size=tuple(size), factor=factor, fit=fit)


class Decoder(Protocol):
    """Interface of code generators; see `robustclip.diffusion.vqgan.VQGAN`."""

    factor: int
    channels: int
    codebook: Float[Tensor, "k c"]
    low: Float[Tensor, " c"]
    high: Float[Tensor, " c"]

    def encode(self, images: Float[Tensor, "p 3 H W"], /) -> Float[Tensor, "p c h w"]: ...
    def quantise(self, latents: Float[Tensor, "p c h w"], /) -> Float[Tensor, "p c h w"]: ...
    def decode(self, codes: Float[Tensor, "p c h w"], /) -> Float[Tensor, "p 3 H W"]: ...


@final
class Codes(Canvas):
    """VQGAN latents of P pictures of `size` (height, width); the nearest codes are decoded (straight-through gradient).

    They start as random codes, from one of `generators` per picture. After each step vectors are clamped to the range
    of the codebook's channels (VQGAN-CLIP's generate.py, like the gradients).

    Raises UsageError for a size that is not a multiple of a code's pixels.
    """

    def __init__(self, decoder: Decoder, size: tuple[int, int], generators: Sequence[Generator]) -> None:
        super().__init__()
        check_whole(size, decoder.factor, "codes")
        self.decoder = [decoder]  # in a list, so that its weights are not parameters of the canvas
        self.size = size
        rows, columns = (side // decoder.factor for side in size)
        codebook = decoder.codebook
        drawn = [
            torch.randint(len(codebook), (rows, columns), generator=one, device=one.device).to(codebook.device)
            for one in generators
        ]
        self.latent = nn.Parameter(codebook[torch.stack(drawn)].permute(0, 3, 1, 2).contiguous())

    def render(self) -> dict[str, Tensor]:
        decoder = self.decoder[0]
        image = clamp_through(decoder.decode(decoder.quantise(self.latent)))
        return {"image": image, "latent": self.latent}

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "p 3 h w"]) -> None:
        check_fit(images, len(self.latent), self.size)
        self.latent.copy_(self.decoder[0].encode(images))

    @torch.no_grad()
    def project(self) -> None:
        decoder = self.decoder[0]
        low, high = (end.view(1, -1, 1, 1) for end in (decoder.low, decoder.high))
        self.latent.copy_(self.latent.clamp(low, high))


class Chain(Protocol):
    """Interface of a sampler with its inverse; see `robustclip.diffusion.reversible.Chain`."""

    pictures: list[int]

    def sample(self, start: Float[Tensor, "2 p c h w"], /, *conditioning: Tensor) -> Float[Tensor, "2 p c h w"]: ...
    def invert(self, end: Float[Tensor, "2 p c h w"], /, *conditioning: Tensor) -> Float[Tensor, "2 p c h w"]: ...
    def ending(self, latents: Float[Tensor, "p c h w"], /, *conditioning: Tensor) -> Float[Tensor, "2 p c h w"]: ...


@final
class ChainStart(Canvas):
    """Initial latents x_T of P pictures of `size` (height, width), N(0,I) by one of `generators` per picture. Renders
    the chain's samples; `conditioning` are tensors for the denoiser.

    Renders "image" and, for samplers whose latents are both pictures (EDICT), "other".

    tied: the pair starts from one latent, (P,c,h,w); otherwise from two, (P,2,c,h,w). renormalise: restore the initial
    norm of each picture's noise after each step. through: gradients pass pixels that were clamped to [0,1].

    Latents are float64, or float32 on devices without it (MPS): see `robustclip.diffusion.reversible`.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        chain: Chain,
        conditioning: Sequence[Tensor],
        size: tuple[int, int],
        generators: Sequence[Generator],
        *,
        device: torch.device | str = "cpu",
        tied: bool = True,
        renormalise: bool = True,
        through: bool = True,
    ) -> None:
        super().__init__()
        self.autoencoder, self.chain = [autoencoder], chain
        self.conditioning = [one.detach() for one in conditioning]
        self.size, self.tied, self.renormalise, self.through = size, tied, renormalise, through
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        noise = drawn_latents(autoencoder, size, generators, device).to(dtype)
        self.latent = nn.Parameter(noise if tied else torch.stack([noise, noise], 1))
        self.norms = self._norms()

    def render(self) -> dict[str, Tensor]:
        start = self.latent.expand(2, *self.latent.shape) if self.tied else self.latent.transpose(0, 1)
        end = self.chain.sample(start, *self.conditioning)[self.chain.pictures].float()
        images = [self.autoencoder[0].decode(one) for one in end]
        images = [clamp_through(one) if self.through else one.clamp(0, 1) for one in images]
        return dict(zip(("image", "other"), images, strict=False)) | {"latent": self.latent}

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "p 3 h w"]) -> None:
        """Invert the chain from these images: exact if untied, else the mean of the pair."""
        check_fit(images, len(self.latent), self.size)
        latents = self.autoencoder[0].encode(images).to(self.latent.dtype)
        start = self.chain.invert(self.chain.ending(latents, *self.conditioning), *self.conditioning)
        self.latent.copy_(start.mean(0) if self.tied else start.transpose(0, 1))
        self.norms = self._norms()

    @torch.no_grad()
    def project(self) -> None:
        if self.renormalise:
            self.latent.mul_(self.norms / self._norms())

    def _norms(self) -> Tensor:
        """Norm of each picture's noise."""
        return self.latent.detach().flatten(1).norm(dim=1).view(-1, *[1] * (self.latent.ndim - 1))
