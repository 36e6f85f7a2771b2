"""Content loss of CLIPStyler: distance of VGG features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower
from robustclip.referees.smoothed import refuse_wrapped
from robustclip.referees.weights import check_finite, check_fit, read_weights

Features = Callable[[Float[Tensor, "b 3 h w"]], Sequence[Tensor]]
"""Pictures in [0,1] -> feature maps (B,C,h,w) per layer."""
VGG_LAYERS = (22, 31)
"""conv4_2 and conv5_2 in CLIPstyler (utils.py, 4843cec), in effect after their ReLUs: index 31 is one, and the one
after conv4_2 is in place."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


@final
class FeatureMatch:
    """Content loss: mean squared difference of features to P contents, summed over layers: (P,V,3,h,w) -> (P,V).

    With `relative` each layer is divided by the mean square of the content's features (ours), so that weights do not
    depend on the network; otherwise as in CLIPstyler.
    """

    def __init__(self, features: Features, contents: Float[Tensor, "p 3 h w"], *, relative: bool = False) -> None:
        self.features = features
        with torch.no_grad():
            self.targets = [layer.float() for layer in features(contents)]
        self.scales = [
            1 / layer.square().flatten(1).mean(1).clamp(min=1e-6) if relative else torch.ones_like(layer[:, 0, 0, 0])
            for layer in self.targets
        ]

    def __call__(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        layers = self.features(views.flatten(0, 1))
        total = torch.zeros(views.shape[:2], device=views.device)
        for layer, target, scale in zip(layers, self.targets, self.scales, strict=True):
            difference = layer.float().unflatten(0, views.shape[:2]) - target[:, None]
            total = total + scale[:, None] * difference.square().flatten(2).mean(2)
        return total

    def __str__(self) -> str:
        return "content"


def vgg19(weights: Path, device: torch.device) -> Features:
    """VGG-19 features of CLIPstyler's content loss, with torchvision weights from a file (.safetensors, or a
    weights-only .pth). Raises UsageError for a file that does not fit.
    """
    from torchvision.models import vgg19 as build

    with torch.device("meta"):
        whole: Any = build(weights=None).features
    given = {name: one for name, one in read_weights(weights).items() if not name.startswith("classifier.")}
    fitting = {name.removeprefix("features."): one for name, one in given.items()}
    check_fit(whole, fitting, source=str(weights), hint="give torchvision's vgg19, e.g. vgg19-dcbb9e9d.pth")
    whole.load_state_dict(fitting, assign=True)
    check_finite(whole, source=str(weights))
    layers: nn.Sequential = whole[: max(VGG_LAYERS) + 1].to(device).eval().requires_grad_(False)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))

    def features(images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        x, found = (images - mean) / std, []
        for number, layer in enumerate(layers):
            x = layer(x)
            if number in VGG_LAYERS:
                found.append(x)
        return found

    return features


def tower_features(referee: TwoTower) -> Features:
    """Features of a convolutional image tower instead of VGG (ours): the deepest maps at its last two resolutions
    except the final one.

    Raises UsageError for a tower without such maps, and for a smoothed or defended one, whose maps are of other images.
    """
    refuse_wrapped(referee.image_tower, "has no feature maps of the picture itself", "take its base's")
    deepest: dict[tuple[int, int], str] = {}

    def probe(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[-2:]) > 1:
                deepest[tuple(output.shape[-2:])] = name  # type: ignore[index]

        return hook

    handles = [
        module.register_forward_hook(probe(name)) for name, module in referee.image_tower.named_modules() if name
    ]
    with torch.no_grad():
        referee.embed_views(torch.zeros(1, 3, *referee.image_size, device=referee.device))
    for handle in handles:
        handle.remove()
    names = [deepest[size] for size in sorted(deepest, reverse=True)][:-1][-2:]
    if len(names) < 2:
        raise UsageError(
            f"{referee.card.name} has no maps at two resolutions to compare contents by: give a convolutional "
            "referee, e.g. emoji-vanilla, or a file with VGG-19's weights",
            "no_feature_maps",
            referee=referee.card.name,
        )

    def features(images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        found: dict[str, Tensor] = {}
        modules = dict(referee.image_tower.named_modules())
        taken = [
            modules[name].register_forward_hook(lambda _, __, output, name=name: found.update({name: output}))
            for name in names
        ]
        try:
            referee.embed_views(images)
        finally:
            for handle in taken:
                handle.remove()
        return [found[name] for name in names]

    return features


@final
class LatentPrior:
    """Latent prior: mean squared difference to `towards` (P,...), or zero: (P,V,...) -> (P,V).

    VQGAN-CLIP's `init_weight` has target zero, with a weight of init_weight / (2(2i+1)) in step i; its name implies the
    start.
    """

    def __init__(self, towards: Float[Tensor, "p ..."] | None = None) -> None:
        self.towards = None if towards is None else towards.detach().clone()

    def __call__(self, latents: Float[Tensor, "p v ..."]) -> Float[Tensor, "p v"]:
        moved = latents if self.towards is None else latents - self.towards[:, None]
        return moved.float().square().flatten(2).mean(2)

    def __str__(self) -> str:
        return "latent prior"


@final
class TotalVariation:
    """Total variation: mean absolute difference of neighbouring pixels: (P,V,3,h,w) -> (P,V)."""

    def __call__(self, views: Float[Tensor, "p v 3 h w"]) -> Float[Tensor, "p v"]:
        down = (views[..., 1:, :] - views[..., :-1, :]).abs().mean((-3, -2, -1))
        across = (views[..., 1:] - views[..., :-1]).abs().mean((-3, -2, -1))
        return down + across

    def __str__(self) -> str:
        return "total variation"
