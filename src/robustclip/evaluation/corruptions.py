"""Accuracy under common corruptions: noise, blur, JPEG, contrast (constants of ImageNet-C).

Kinds and strengths after ImageNet-C (Hendrycks & Dietterich 2019): noise, contrast and JPEG quality as published; the
blur's widths are published for 224 pixels and scaled with the image's side (ours). Instead of their mean corruption
error relative to AlexNet, the mean over the five strengths is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.evaluation.named import Setting
from robustclip.evaluation.report import CLEAN, Findings, Measurement
from robustclip.evaluation.zeroshot import ranks
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import batches, class_embeddings, cosines
from robustclip.runs.rng import each
from robustclip.signatures import unknown

Picture = Float[Tensor, "3 h w"]
DEPTHS: Final = (1, 5)  # k of top-k
STRENGTHS: Final = (1, 2, 3, 4, 5)
NOISE: Final = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation
BLUR: Final = (1, 2, 3, 4, 6)  # standard deviation in pixels of a side of 224
QUALITY: Final = (25, 18, 15, 10, 7)
CONTRAST: Final = (0.4, 0.3, 0.2, 0.1, 0.05)
PUBLISHED_SIDE: Final = 224


def gaussian_noise(picture: Picture, strength: int, stream: torch.Generator) -> Picture:
    return picture + NOISE[strength - 1] * torch.randn(picture.shape, generator=stream)


def gaussian_blur(picture: Picture, strength: int, _: torch.Generator) -> Picture:
    sigma = BLUR[strength - 1] * min(picture.shape[-2:]) / PUBLISHED_SIDE
    width = 2 * max(1, round(4 * sigma)) + 1  # four deviations to either side, as scipy's, which ImageNet-C blurs with
    reach = min(width, 2 * ((min(picture.shape[-2:]) - 1) // 2) + 1)  # a mirrored border is no wider than the picture
    from torchvision.transforms.v2 import functional as tv  # here, since its import takes a second

    return tv.gaussian_blur(picture, [reach, reach], [sigma, sigma])


def jpeg(picture: Picture, strength: int, _: torch.Generator) -> Picture:
    from torchvision.transforms.v2 import functional as tv

    file = BytesIO()
    levels = (255 * picture).round().to(torch.uint8)  # torchvision would truncate
    tv.to_pil_image(levels).save(file, "JPEG", quality=QUALITY[strength - 1])
    return tv.to_dtype(tv.pil_to_tensor(Image.open(file)), torch.float32, scale=True)


def contrast(picture: Picture, strength: int, _: torch.Generator) -> Picture:
    """Towards the mean of each channel."""
    middle = picture.mean((1, 2), keepdim=True)
    return middle + CONTRAST[strength - 1] * (picture - middle)


CORRUPTIONS: Final[dict[str, Callable[[Picture, int, torch.Generator], Picture]]] = {
    "gaussian noise": gaussian_noise,
    "gaussian blur": gaussian_blur,
    "JPEG": jpeg,
    "contrast": contrast,
}


def corrupted(
    images: Float[Tensor, "b 3 h w"], kind: str, strength: int, *, seed: int, ids: Sequence[str]
) -> Float[Tensor, "b 3 h w"]:
    """Apply a kind of `CORRUPTIONS` at a strength of 1 to 5 to images in [0,1]; float32 in [0,1] on the CPU. Random
    numbers are keyed by the seed and each image's id.

    Raises UsageError for another kind or strength.
    """
    if kind not in CORRUPTIONS:
        raise UsageError(
            unknown(kind, CORRUPTIONS, "corruption") + f" (there are {', '.join(CORRUPTIONS)})",
            "unknown_corruption",
            given=kind,
        )
    if strength not in STRENGTHS:
        message = f"a corruption's strength is one of 1 to 5, not {strength}: e.g. corrupted(..., {kind!r}, 3)"
        raise UsageError(message, "out_of_range", argument="strength", given=strength)
    streams = each(seed, f"{kind} {strength}", ids=ids)
    damaged = [
        CORRUPTIONS[kind](image, strength, stream) for image, stream in zip(images.cpu().float(), streams, strict=True)
    ]
    return torch.stack(damaged).clamp(0, 1)


def corruptions(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """Top-1 and top-5 of each kind at each strength ("JPEG 3"), and each image's mean over the strengths ("JPEG").

    Costs 21 forward passes an image.
    """
    among = setting.among()
    classes = class_embeddings(referee, among.names, setting.templates)
    depths = {k: f"top-{k}{setting.choice(len(among.names))}" for k in DEPTHS}
    findings = Findings()

    def note(attack: str, places: Int[NDArray[Any], "... n"]) -> None:
        for k, metric in depths.items():
            hits = places < k
            findings.measurements.append(Measurement(metric, attack, hits if hits.ndim == 1 else hits.mean(0)))

    def ranked(attack: str, kind: str | None = None, strength: int = 0) -> Int[NDArray[Any], " n"]:
        return ranks_under(referee, classes, among.targets, setting, kind, strength, f"{title} {attack}")

    note(CLEAN, ranked(CLEAN))
    for kind in CORRUPTIONS:
        places = {strength: ranked(f"{kind} {strength}", kind, strength) for strength in STRENGTHS}
        for strength, at_strength in places.items():
            note(f"{kind} {strength}", at_strength)
        note(kind, np.stack(list(places.values())))
    return findings


@torch.no_grad()
def ranks_under(
    referee: TwoTower,
    classes: Float[Tensor, "c d"],
    targets: Int[Tensor, " n"],
    setting: Setting,
    kind: str | None,
    strength: int,
    title: str,
) -> Int[NDArray[Any], " n"]:
    """The rank of each image's label (0: first) under a corruption; `kind` None: clean images."""
    examples, parts = setting.examples, []
    for batch in batches(torch.arange(len(examples)), setting.batch_size, title):
        images = examples.images[batch]
        if kind is not None:
            names = [examples.ids[int(index)] for index in batch]
            images = corrupted(images, kind, strength, seed=setting.seed, ids=names)
        scores = cosines(referee, images.to(classes.device), classes, setting.dtype).cpu()
        parts.append(ranks(scores, targets[batch]))
    return np.asarray(torch.cat(parts).numpy())
