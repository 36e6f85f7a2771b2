"""Views of a batch: the same sequence of transforms applied to several copies of each picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.views.draws import Draws

View = Callable[[Float[Tensor, "b 3 h w"], Draws], Float[Tensor, "b 3 h2 w2"]]
"""A transform of all views of all pictures at once, pictures major, differentiable in the images."""


@final
@dataclass(frozen=True)
class Views:
    """`count` views of each picture through `transforms`, in that order; none are `count` plain copies.

    It prints itself as "diffaug x32". Raises UsageError for a count below 1.
    """

    count: int
    transforms: tuple[View, ...] = ()
    name: str = "whole"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"{self.count} views of a picture show nothing of it: give one or more, as in Views(32)")

    def __call__(
        self, images: Float[Tensor, "p 3 h w"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "p v 3 h2 w2"]:
        """The views of P pictures, drawn from one generator a picture. Raises UsageError for another number of them."""
        if len(generators) != len(images):
            raise UsageError(
                f"{len(generators)} generators for {len(images)} pictures: each picture's views are drawn from its own"
            )
        views = images[:, None].expand(-1, self.count, -1, -1, -1).flatten(0, 1)
        draws = Draws(generators, self.count, images.device)
        for transform in self.transforms:
            views = transform(views, draws)
        return views.unflatten(0, (len(images), self.count))

    def __str__(self) -> str:
        return self.name if self.count == 1 else f"{self.name} x{self.count}"
