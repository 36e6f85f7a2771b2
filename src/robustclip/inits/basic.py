"""Basic inits: noise, grey, or a given image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.data.images import resize
from robustclip.errors import UsageError
from robustclip.referees.base import check_images

Init = Callable[[int, int, Sequence[torch.Generator], torch.device], Float[Tensor, "p 3 h w"]]
"""`init(height, width, generators, device)` -> images in [0,1], one a generator: each picture draws from its own, so
that none depends on which others share its batch."""

GREY = 0.5


def noise(
    height: int, width: int, generators: Sequence[torch.Generator], device: torch.device
) -> Float[Tensor, "p 3 h w"]:
    """Every pixel and channel uniform in [0, 1)."""
    drawn = [torch.rand(3, height, width, generator=one, device=one.device).to(device) for one in generators]
    return torch.stack(drawn) if drawn else torch.empty(0, 3, height, width, device=device)


def grey(
    height: int, width: int, generators: Sequence[torch.Generator], device: torch.device
) -> Float[Tensor, "p 3 h w"]:
    """Every pixel at 0.5, the start of Direct Ascent Synthesis; nothing is drawn."""
    return torch.full((len(generators), 3, height, width), GREY, device=device)


def gradient(
    height: int, width: int, generators: Sequence[torch.Generator], device: torch.device
) -> Float[Tensor, "p 3 h w"]:
    """Red grows from 0 across, green from 0 and blue from anywhere downwards, each to a level of U(0, 1).

    One of VQGAN-CLIP's starts (592d555 generate.py), whose blue ends in the darker half.
    """
    drawn = [torch.rand(4, generator=one, device=one.device).to(device) for one in generators]
    levels = torch.stack(drawn) if drawn else torch.empty(0, 4, device=device)
    red, green, first, last = levels[:, :, None, None].unbind(1)
    across, down = torch.linspace(0, 1, width, device=device), torch.linspace(0, 1, height, device=device)[:, None]
    shape = (len(levels), height, width)
    return torch.stack(
        [one.expand(shape) for one in (red * across, green * down, first + (last - first) * down)], dim=1
    )


def from_image(image: Float[Tensor, "3 h w"], strength: float = 1.0) -> Init:
    """Every picture starts from `strength * image + (1 - strength) * noise`, with its own noise.

    `image` is in [0,1], of any size, and is resized (bicubic, antialiased) without regard to its aspect ratio; strength
    1 is the image itself, 0 noise alone. Raises UsageError for an image that is none and a strength outside [0, 1].
    """
    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3:
        shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise UsageError(f"the image to start from is {shape}: give one of shape (3,H,W), as images.load_image does")
    check_images(image[None])
    if not 0 <= strength <= 1:
        raise UsageError(f"strength {strength}: give a number from 0 (noise) to 1 (the image itself)")

    def start(
        height: int, width: int, generators: Sequence[torch.Generator], device: torch.device
    ) -> Float[Tensor, "p 3 h w"]:
        whole = resize(image[None].float().to(device), (height, width)).clamp(0, 1)
        if strength == 1:
            return whole.expand(len(generators), -1, -1, -1).clone()
        return strength * whole + (1 - strength) * noise(height, width, generators, device)

    return start
