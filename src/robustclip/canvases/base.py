"""The canvas interface: parameters, and their rendering as pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from robustclip.errors import UsageError
from robustclip.referees.base import check_images


class Canvas(ABC, nn.Module):
    """Base class: parameters of P independent pictures.

    The first axis of every parameter is the picture, so that gradients and pictures are independent.
    """

    @abstractmethod
    def render(self) -> dict[str, Tensor]:
        """Render by name, differentiably: "image" (P,3,H,W) in [0,1], and other tensors that terms may read, with
        pictures first.
        """

    @abstractmethod
    def encode(self, images: Float[Tensor, "p 3 H W"]) -> None:
        """Initialise from images in [0,1]. Raises UsageError for another number or size."""

    def project(self) -> None:
        """Project the parameters to their valid set after a step; a no-op by default."""

    def picture(self, image: Float[Tensor, "p 3 H W"]) -> Float[Tensor, "p 3 h w"]:
        """The final picture from a rendered image: without margins."""
        return image

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Named parameter groups for the optimiser."""
        return {"all": list(self.parameters())}


def check_fit(images: Float[Tensor, "p 3 H W"], count: int, size: tuple[int, int]) -> None:
    """Raise UsageError unless `images` are `count` pictures in [0,1] of `size` (height, width)."""
    check_images(images)
    if images.shape != (count, 3, *size):
        message = f"the canvas holds {(count, 3, *size)}, the images are {tuple(images.shape)}"
        raise UsageError(message, "does_not_fit", shape=tuple(images.shape), expected=(count, 3, *size))
