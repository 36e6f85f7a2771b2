"""Canvas of CLIP^-1: implicit neural representations, a sine network from coordinates to colours per picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from robustclip.canvases.base import Canvas, check_fit
from robustclip.errors import UsageError


@final
class Implicit(Canvas):
    """Networks f: (x, y) -> RGB of P pictures of `size` (height, width), one per generator; rendered at any resolution.

    `layers` sine layers of `width` units, then a linear one: z <- sin(omega * a * (W z + b)), with a = |W z + b| + 1
    held constant in the backward pass (FINER, Liu et al. 2024, models.py 07a9a92), or a = 1 with `finer=False` (SIREN,
    Sitzmann et al. 2020). Both draw W from U(-1/n, 1/n) in the first layer and U(-c, c), c = sqrt(6/n) / omega, after
    it, with n inputs, and b from U(-1/sqrt(n), 1/sqrt(n)). Image = (tanh(output) + 1) / 2 as in `Pyramid`; ours, as
    are width, layers and omega (30 is usual, and too fine for 64 pixels): those of CLIP^-1 were not to be read. Raises
    UsageError for sizes that are not positive.
    """

    def __init__(
        self,
        size: tuple[int, int],
        generators: Sequence[Generator],
        *,
        width: int = 64,
        layers: int = 4,
        omega: float = 10.0,
        finer: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if min(width, layers, *size) < 1 or not omega > 0:
            raise UsageError(
                f"a network of {layers} layers of {width} units, omega {omega:g}, for {size[0]}x{size[1]} pixels: all "
                "are positive, as in Implicit((64, 64), generators, width=64, layers=4, omega=10)"
            )
        self.size, self.omega, self.finer = size, omega, finer
        sides = [2, *[width] * layers, 3]
        drawn = [_drawn(sides, omega, one) for one in generators]
        self.weights = nn.ParameterList(torch.stack(rows).to(device) for rows in zip(*drawn, strict=True))

    def render(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """The pictures at `size` (height, width), by default their own: the same functions at other coordinates."""
        z = coordinates(size or self.size).to(self.weights[0]).expand(len(self.weights[0]), -1, -1)
        for index, weight in enumerate(self.weights):
            z = torch.baddbmm(weight[:, -1:], z, weight[:, :-1])
            if index < len(self.weights) - 1:
                z = torch.sin(self.omega * (z * (z.detach().abs() + 1) if self.finer else z))
        height, width = size or self.size
        return {"image": (torch.tanh(z.transpose(1, 2).unflatten(2, (height, width))) + 1) / 2}

    @torch.enable_grad()
    def encode(self, images: Float[Tensor, "p 3 h w"], *, steps: int = 100, lr: float = 1e-3) -> None:
        """Fit the networks to images in [0,1] of any size by `steps` steps of Adam on the mean squared error.

        Raises UsageError for another number of images.
        """
        height, width = images.shape[-2:]
        check_fit(images, len(self.weights[0]), (height, width))
        optimiser = torch.optim.Adam(self.weights, lr=lr)
        for _ in range(steps):
            found = self.render((height, width))["image"]
            (found - images).square().flatten(1).mean(1).sum().backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """One group a layer, first to last: "layer 0", "layer 1", ..."""
        return {f"layer {index}": [weight] for index, weight in enumerate(self.weights)}


def coordinates(size: tuple[int, int]) -> Float[Tensor, "n 2"]:
    """(x, y) of pixel centres, row by row: the shorter side spans [-1, 1], the longer one more, in proportion."""
    short = min(size)
    y, x = ((2 * torch.arange(side) + 1 - side) / short for side in size)
    return torch.stack([x.expand(size), y[:, None].expand(size)], -1).flatten(0, 1)


def _drawn(sides: Sequence[int], omega: float, generator: Generator) -> list[Float[Tensor, "i o"]]:
    """One network's layers (n + 1, outputs): the weights of n inputs, and below them the biases."""
    layers = []
    for index, (inputs, outputs) in enumerate(pairwise(sides)):
        bound = 1 / inputs if index == 0 else (6 / inputs) ** 0.5 / omega
        values = 2 * torch.rand(inputs + 1, outputs, generator=generator, device=generator.device) - 1
        values[:-1] *= bound
        values[-1] *= inputs**-0.5
        layers.append(values)
    return layers
