"""Canvases that are networks, one per picture: CLIPStyler's small U-Net, applied to the picture's content, and the
implicit neural representations of CLIP^-1, a sine network from coordinates to colours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.func import functional_call, vmap

from robustclip.canvases.base import Canvas, check_fit
from robustclip.errors import UsageError
from robustclip.referees.base import check_images

STRIDE: Final = 8  # three halvings; sides are padded to multiples of it
SMALLEST: Final = 16  # pixels of a side, for two positions at the coarsest level, as instance norm needs


class Block(nn.Module):
    """Two 3x3 convolutions, each with instance norm (without parameters) and ReLU, plus a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        inner = F.relu(instance_norm(self.first(x)))
        return F.relu(instance_norm(self.second(inner))) + self.skip(x)


class StyleNet(nn.Module):
    """The U-Net of CLIPstyler (StyleNet.py, 4843cec): three 4x4 convolutions of stride 2 down, bilinear up, a block at
    each level on the concatenated skip connection; sigmoid. (B,3,h,w) in [0,1] to the same, sides multiples of 8."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 1)
        self.begin = Block(width, width)
        widths = [width, width, 2 * width, 4 * width]
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(Block(a, b) for a, b in pairs)
        self.halve = nn.ModuleList(nn.Conv2d(b, b, 4, 2, 1) for _, b in pairs)
        self.middle = Block(widths[-1], 2 * widths[-1])
        self.up = nn.ModuleList(Block(2 * b + b, b) for b in widths[:0:-1])
        self.end = Block(2 * width, width)
        self.colours = nn.Conv2d(width, 3, 1)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        x = first = self.begin(self.stem(images))
        kept = []
        for block, halve in zip(self.down, self.halve, strict=True):
            kept.append(block(x))
            x = halve(kept[-1])
        x = self.middle(x)
        for block in self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = block(torch.cat([x, kept.pop()], 1))
        return torch.sigmoid(self.colours(self.end(torch.cat([x, first], 1))))


def instance_norm(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Instance normalisation without affine parameters."""
    variance, mean = torch.var_mean(x, (-2, -1), correction=0, keepdim=True)
    return (x - mean) * (variance + 1e-5).rsqrt()


@final
class StyleNetwork(Canvas):
    """One style network per content image (P,3,H,W) in [0,1], of any size.

    Weights have torch's default initialisation, from one of `generators` per picture. Sides that are no multiples of 8
    are padded by reflection and cropped. Raises UsageError below 16 pixels.
    """

    content: Float[Tensor, "p 3 h w"]

    def __init__(self, content: Float[Tensor, "p 3 h w"], generators: Sequence[Generator], width: int = 16) -> None:
        super().__init__()
        check_images(content)
        if min(content.shape[-2:]) < SMALLEST:
            height, size = content.shape[-2:]
            message = f"a content of {height}x{size} pixels is too small: give at least {SMALLEST} per side"
            raise UsageError(message, "too_small", size=(height, size), least=SMALLEST)
        self.register_buffer("content", content.detach().float().clone())
        with torch.device("meta"):
            self.network = [StyleNet(width)]  # in a list, so that its meta weights are not parameters of the canvas
        drawn = [_drawn(self.network[0], generator) for generator in generators]
        self.names = list(drawn[0])
        self.weights = nn.ParameterList(
            torch.stack([one[name] for one in drawn]).to(content.device) for name in self.names
        )

    def render(self) -> dict[str, Tensor]:
        height, width = self.content.shape[-2:]
        below, right = -height % STRIDE, -width % STRIDE
        padded = F.pad(self.content, (0, right, 0, below), mode="reflect")
        weights = dict(zip(self.names, self.weights, strict=True))
        image = vmap(self._painted)(weights, padded)[..., :height, :width]
        return {"image": image}

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "p 3 h w"]) -> None:
        """Replace the content images; the networks are kept."""
        height, width = self.content.shape[-2:]
        check_fit(images, len(self.content), (height, width))
        self.content.copy_(images)

    def _painted(self, weights: dict[str, Tensor], content: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        return functional_call(self.network[0], weights, (content[None],))[0]


def _drawn(network: nn.Module, generator: Generator) -> dict[str, Tensor]:
    """Default initialisation of convolutions: U(-1, 1) / sqrt(inputs)."""
    found: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            for kind, shape in (("weight", module.weight.shape), ("bias", (len(module.weight),))):
                values = torch.rand(shape, generator=generator, device=generator.device)
                found[f"{name}.{kind}"] = (2 * values - 1) * bound
    return found


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
        drawn = [_sine_layers(sides, omega, one) for one in generators]
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


def _sine_layers(sides: Sequence[int], omega: float, generator: Generator) -> list[Float[Tensor, "i o"]]:
    """One network's layers (n + 1, outputs): the weights of n inputs, and below them the biases."""
    layers = []
    for index, (inputs, outputs) in enumerate(pairwise(sides)):
        bound = 1 / inputs if index == 0 else (6 / inputs) ** 0.5 / omega
        values = 2 * torch.rand(inputs + 1, outputs, generator=generator, device=generator.device) - 1
        values[:-1] *= bound
        values[-1] *= inputs**-0.5
        layers.append(values)
    return layers
