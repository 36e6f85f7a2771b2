"""Accuracy on damaged pictures: what robustness costs and buys where nobody attacks.

Kinds and strengths after ImageNet-C (Hendrycks & Dietterich 2019): noise, contrast and JPEG quality as published; the
blur's widths are published for 224 pixels and are scaled with the images' own side (ours). Their mean error relative to
AlexNet's needs AlexNet's; the mean here is the plain one over the five strengths.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from robustclip.evaluation.setting import Findings, Measurement, Setting
from robustclip.evaluation.similarity import batches, cosines
from robustclip.evaluation.templates import class_embeddings
from robustclip.evaluation.zeroshot import Candidates, ranks
from robustclip.referees.base import TwoTower
from robustclip.rng import generator

Picture = Float[Tensor, "3 h w"]
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
    return tv.gaussian_blur(picture, [reach, reach], [sigma, sigma])


def jpeg(picture: Picture, strength: int, _: torch.Generator) -> Picture:
    file = BytesIO()
    tv.to_pil_image(picture).save(file, "JPEG", quality=QUALITY[strength - 1])
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


def corrupted(images: Float[Tensor, "b 3 h w"], kind: str, strength: int, *, seed: int, ids: list[str]) -> Tensor:
    """Images (B,3,H,W) in [0,1] damaged at a strength of 1 to 5, on the CPU; what is drawn is a function of the seed
    and each image's id."""
    damaged = [
        CORRUPTIONS[kind](image, strength, generator(seed, f"{kind} {strength} of {one}"))
        for image, one in zip(images.cpu(), ids, strict=True)
    ]
    return torch.stack(damaged).clamp(0, 1)


def corruptions(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """Top-1 of each kind at each strength ("JPEG 3"), and each image's mean over the strengths ("JPEG")."""
    examples, found = setting.examples, Findings()
    among = Candidates.among(
        examples.label_names,
        examples.labels,
        present_only=setting.present_only,
        count=setting.count,
        seed=setting.seed,
    )
    classes = class_embeddings(referee, among.names, setting.templates)
    metric = f"top-1{setting.choice(len(among.names))}"

    def hits(kind: str | None, strength: int = 0) -> NDArray[np.bool_]:
        rows = []
        for batch in batches(
            torch.arange(len(examples)), setting.batch_size, f"{title} {kind} {strength}" if kind else f"{title} clean"
        ):
            images = examples.images[batch]
            if kind is not None:
                names = [examples.ids[int(index)] for index in batch]
                images = corrupted(images, kind, strength, seed=setting.seed, ids=names)
            with torch.no_grad():
                scores = cosines(referee, images.to(classes.device), classes, setting.dtype).cpu()
            rows.append(ranks(scores, among.targets[batch]) == 0)
        return np.asarray(torch.cat(rows).numpy(), dtype=bool)

    found.measurements.append(Measurement(metric, "clean", hits(None)))
    for kind in CORRUPTIONS:
        each = [hits(kind, strength) for strength in STRENGTHS]
        found.measurements += [
            Measurement(metric, f"{kind} {strength}", right) for strength, right in zip(STRENGTHS, each, strict=True)
        ]
        found.measurements.append(Measurement(metric, kind, np.mean(each, axis=0)))
    return found
