"""Canvas of VQGAN+CLIP: the latent codes of a VQGAN."""

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


class Decoder(Protocol):
    """What a generator of codes can do, and says of itself; see `robustclip.diffusion.vqgan.VQGAN`."""

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
    """Latent vectors of P pictures of `size` (height, width), of which the nearest codes are decoded.

    They start as random codes, each picture's drawn from its own of `generators`. After each step a vector is cut,
    channel by channel, to the range of the codebook (VQGAN-CLIP's generate.py, as are the gradients below).

    Raises UsageError for a size that is not whole in codes.
    """

    def __init__(self, decoder: Decoder, size: tuple[int, int], generators: Sequence[Generator]) -> None:
        super().__init__()
        if any(side % decoder.factor or not side for side in size):
            raise UsageError(
                f"a picture of {size[0]}x{size[1]} is not whole in codes of {decoder.factor}x{decoder.factor} pixels"
            )
        self.decoder = [decoder]  # in a list: its weights are none of the canvas's parameters
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
        check_images(images)
        held = (len(self.latent), 3, *self.size)
        if images.shape != held:
            raise UsageError(f"the canvas holds {held}, the images are {tuple(images.shape)}")
        self.latent.copy_(self.decoder[0].encode(images))

    @torch.no_grad()
    def project(self) -> None:
        decoder = self.decoder[0]
        low, high = (end.view(1, -1, 1, 1) for end in (decoder.low, decoder.high))
        self.latent.copy_(self.latent.clamp(low, high))
