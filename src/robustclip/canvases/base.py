"""The canvas interface: parameters, and their rendering as pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn


class Canvas(ABC, nn.Module):
    """What is optimised: P pictures at once, none of which knows of the others.

    Every parameter's first axis is the picture, so that gradients can be clipped and pictures kept one by one.
    """

    @abstractmethod
    def render(self) -> dict[str, Tensor]:
        """What terms may read, by name, with gradients to the parameters: "image" (P,3,H,W) in [0,1], and whatever else
        the canvas is made of, with the picture as first axis."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "p 3 H W"]) -> None:
        """Start from these images, in [0,1]. Raises UsageError where they are not of the canvas's number and size."""

    def project(self) -> None:
        """Put the parameters back into their legal set after a step; nothing, where every value is legal."""

    def picture(self, image: Float[Tensor, "p 3 H W"]) -> Float[Tensor, "p 3 h w"]:
        """What is handed out of a rendered image: all of it, unless the canvas has margins that only views see."""
        return image

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by the names under which an optimiser may treat them differently."""
        return {"all": list(self.parameters())}
