"""Visualise each stream's gradient in pixel space (Referee-Can-Play, Fig. 33)."""

from __future__ import annotations

from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.data.images import titled_grid
from robustclip.synthesis.loop import Moment

STEP: Final = 0.5  # root mean square of the change of a latent that is shown
SHOWN: Final = 3.0  # standard deviations of the change that reach from grey to black or white


@final
class GradientPictures:
    """Of evenly spread steps, and of each stream: the difference between the picture and the one a small step down the
    stream's gradient further, around grey, scaled to its own deviation."""

    def __init__(self, steps: int, count: int) -> None:
        self.wanted = sorted({round(index * steps / max(count, 1)) for index in range(count)})
        self.steps: list[int] = []
        self.pictures: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def __call__(self, moment: Moment) -> None:
        if moment.step not in self.wanted:
            return
        self.steps.append(moment.step)
        before = moment.canvas.render()["image"].clone()
        for name, gradients in moment.gradients.items():
            parameters = list(moment.canvas.parameters())
            kept = [parameter.clone() for parameter in parameters]
            for parameter, gradient in zip(parameters, gradients, strict=True):
                length = gradient.flatten(1).square().mean(1).sqrt().clamp(min=1e-20)
                parameter.sub_(STEP * gradient / length.view(-1, *[1] * (gradient.ndim - 1)))
            change = moment.canvas.picture(moment.canvas.render()["image"] - before)
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
            spread = change.flatten(1).std(1).clamp(min=1e-6).view(-1, 1, 1, 1)
            shown = (0.5 + change / (2 * SHOWN * spread)).clamp(0, 1).cpu()
            self.pictures.setdefault(name, []).append(shown)

    def of(self, picture: int) -> dict[str, Float[Tensor, "f 3 h w"]]:
        """For each stream the pictures of its steps; a stream that rests at some has fewer."""
        return {name: torch.stack([frame[picture] for frame in frames]) for name, frames in self.pictures.items()}


def strip(pictures: dict[str, Float[Tensor, "f 3 h w"]], steps: list[int]) -> Float[Tensor, "3 h2 w2"]:
    """A row for each stream, a column for each step; grey where a stream rested."""
    frames = []
    for found in pictures.values():
        grey = torch.full_like(found[:1], 0.5).expand(len(steps) - len(found), -1, -1, -1)
        frames.append(torch.cat([found, grey]))
    titles = [f"step {step}" for step in steps]
    return titled_grid(list(pictures), titles, torch.cat(frames))
