"""Pictures and random streams for tests of views, always the same."""

from __future__ import annotations

from collections.abc import Callable

import torch

from robustclip.runs import rng
from robustclip.views import Draws


def pictures(count: int = 2, height: int = 16, width: int = 20) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def streams(count: int = 2, first: int = 0) -> list[torch.Generator]:
    """A generator for each picture, always the same."""
    return [rng.generator(0, "views", index) for index in range(first, first + count)]


def seen(view: Callable[[torch.Tensor, Draws], torch.Tensor], images: torch.Tensor, views: int = 1) -> torch.Tensor:
    """(P*V, 3, h, w), always from the same streams."""
    return view(images.repeat_interleave(views, 0), Draws(streams(len(images)), views))
