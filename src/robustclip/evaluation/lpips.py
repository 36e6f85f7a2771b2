"""LPIPS by torchmetrics with a backbone from a file; torchmetrics brings the linear heads and downloads backbones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from robustclip.errors import UsageError, require
from robustclip.referees.weights import load_strictly, read_weights

DECIDING: Final = {"squeeze": "features.3.squeeze.weight", "vgg": "features.28.weight", "alex": "features.10.weight"}
"""A tensor of each of torchvision's squeezenet1_1, vgg16 and alexnet that those before it lack."""
SMALLEST: Final = {"squeeze": 17, "vgg": 16, "alex": 31}  # side in pixels that leaves its last layer one


def network_of(names: Iterable[str]) -> str | None:
    """LPIPS's name of the backbone that has these tensors; None for another network."""
    there = set(names)
    return next((network for network, name in DECIDING.items() if name in there), None)


def load_lpips(path: Path) -> tuple[str, Callable[[Tensor, Tensor], Tensor]]:
    """LPIPS's name of the backbone in a file (alex, vgg or squeeze), and the distance of images (B,3,H,W) in [0,1].

    The file is torchvision's state dict of alexnet, vgg16 or squeezenet1_1 (ImageNet weights), which all layers of the
    backbone must come from. Raises UsageError for another network and, of the distance, for images of two sizes or too
    small.
    """
    require("torchmetrics", "evaluation", "LPIPS")
    from torchmetrics.functional.image.lpips import _NoTrainLpips  # the public class would download its backbone

    weights = {name: value for name, value in read_weights(path).items() if not name.startswith("classifier.")}
    network: Any = network_of(weights)
    if network is None:
        message = f"{path} is no backbone of LPIPS: give torchvision's state dict of alexnet, vgg16 or squeezenet1_1"
        raise UsageError(message, "not_a_backbone", path=str(path))
    metric: Any = _NoTrainLpips(net=network, pnet_rand=True)
    # torchmetrics' slice1.0.weight or slices.0.0.weight is torchvision's features.0.weight
    skipped = 2 if network == "squeeze" else 1
    names = {"features." + name.split(".", skipped)[-1]: name for name in metric.net.state_dict()}
    load_strictly(metric.net, {names.get(name, name): value for name, value in weights.items()}, source=str(path))

    def distance(images: Tensor, others: Tensor) -> Tensor:
        sides = images.shape[-2:], others.shape[-2:]
        if sides[0] != sides[1]:
            raise UsageError(
                f"LPIPS compares pictures of one size, these are {tuple(sides[0])} and {tuple(sides[1])}: resize one",
                "unequal_sizes",
            )
        if min(sides[0]) < SMALLEST[network]:
            raise UsageError(
                f"LPIPS by {network} takes pictures of at least {SMALLEST[network]} pixels a side, not {min(sides[0])}",
                "too_small",
            )
        with torch.no_grad():
            return metric(images, others, normalize=True).flatten()

    return network, distance
