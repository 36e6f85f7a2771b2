"""Canvas of Referee-Can-Play: the latents of an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, final

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from robustclip.canvases.base import Canvas
from robustclip.data.images import clamp_through
from robustclip.errors import UsageError
from robustclip.referees.base import check_images


class Autoencoder(Protocol):
    """What a generator of latents can do, and says of itself; see `robustclip.diffusion.stable.LatentDiffusion`."""

    factor: int
    channels: int

    def encode(self, images: Float[Tensor, "p 3 H W"], /) -> Float[Tensor, "p c h w"]: ...
    def decode(self, latents: Float[Tensor, "p c h w"], /) -> Float[Tensor, "p 3 H W"]: ...


@final
class Latents(Canvas):
    """Scaled latents of P pictures of `size` (height, width), which start as N(0,I), each picture's from its own of
    `generators`.

    through: gradients pass pixels that were cut to [0,1]; without it they stop there, as in the release of
    Referee-Can-Play (VLMinv). Raises UsageError for a size that is not whole in cells.
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
        self.autoencoder = [autoencoder]  # in a list: its weights are none of the canvas's parameters
        self.size = size
        self.through = through
        self.latent = nn.Parameter(drawn_latents(autoencoder, size, generators, device))

    def render(self) -> dict[str, Tensor]:
        image = self.autoencoder[0].decode(self.latent)
        return {"image": clamp_through(image) if self.through else image.clamp(0, 1), "latent": self.latent}

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "p 3 h w"]) -> None:
        check_images(images)
        held = (len(self.latent), 3, *self.size)
        if images.shape != held:
            raise UsageError(f"the canvas holds {held}, the images are {tuple(images.shape)}")
        self.latent.copy_(self.autoencoder[0].encode(images))


def drawn_latents(
    autoencoder: Autoencoder, size: tuple[int, int], generators: Sequence[Generator], device: torch.device | str
) -> Float[Tensor, "p c h w"]:
    """N(0,I) for pictures of `size`, each from its generator. Raises UsageError for a size that is not whole in
    cells."""
    factor = autoencoder.factor
    if any(side % factor or not side for side in size):
        fit = "x".join(str(max(1, round(side / factor)) * factor) for side in size)
        raise UsageError(
            f"a picture of {size[0]}x{size[1]} is not whole in cells of {factor}x{factor} pixels: give --size {fit}"
        )
    shape = (autoencoder.channels, *(side // factor for side in size))
    return torch.stack([torch.randn(shape, generator=one, device=one.device).to(device) for one in generators])
