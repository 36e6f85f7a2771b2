"""Canvas of CLIPStyler: one small U-Net per picture, applied to its content."""

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
            raise UsageError(f"a content of {height}x{size} pixels is too small: give at least {SMALLEST} per side")
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
