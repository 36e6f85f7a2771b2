"""Small models with weights drawn from fixed seeds, and what they are given: images, texts, generators."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import torch
from torch import Generator, Tensor, nn

from robustclip.attacks.threat import ThreatModel
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card
from robustclip.referees.openclip import build_image_tower
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.similarity import cosines
from robustclip.referees.toy import ToyText
from robustclip.runs.rng import generator
from robustclip.selftest.settings import Setting

if TYPE_CHECKING:  # diffusers is an extra's
    from robustclip.diffusion.stable import Conditioning, LatentDiffusion

SIDE: Final = 40  # pixels of an image; the referees resize it, to 32 and 64
CELLS: Final = 16  # pixels of a diffusion model's picture, whose latents have half as many
BATCH: Final = 4
PICTURES: Final = 2
WIDTH: Final = 32
TEXTS: Final = ["a cat", "a dog", "a fish", "a green turtle", "a house", "a tree"]
THREAT: Final = ThreatModel("l2", 0.5, SIDE)
Build = Callable[[Setting], TwoTower]


def drawn(*shape: int, purpose: str) -> Tensor:
    """U[0, 1) numbers of the CPU, the same for every setting."""
    return torch.rand(shape, generator=generator(0, f"selftest {purpose}"))


def images(setting: Setting, count: int = BATCH) -> Tensor:
    return setting.put(drawn(count, 3, SIDE, SIDE, purpose="images"))


def vit(setting: Setting) -> TwoTower:
    """A CLIP with a ViT of two layers, at 32 pixels."""
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
    return referee(setting, build_image_tower({"embed_dim": WIDTH, "vision_cfg": vision}), 32)


def cnn(setting: Setting) -> TwoTower:
    """A CLIP with three strided convolutions and BatchNorm, at 64 pixels.

    GELU, for ReLU's gradient jumps: in a drawn ResNet a half-precision gradient is off by a third, and shows nothing.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((3, 16, 32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.GELU()]
    return referee(setting, nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, WIDTH)), 64)


def referee(setting: Setting, tower: nn.Module, size: int) -> TwoTower:
    """A CLIP of an image tower of drawn weights: matrices N(0, 1/inputs), gains 1, biases N(0, 0.02^2)."""
    stream = generator(0, "selftest weights")
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=weight[0].numel() ** -0.5, generator=stream)
            elif name.endswith("weight"):
                weight.fill_(1)
            else:
                weight.normal_(std=0.02, generator=stream)
    preprocess = Preprocess(size)
    card = Card(name="drawn", family="drawn", architecture={}, preprocess=preprocess.config(), logit_scale=10.0)
    made = TwoTower(tower, ToyText(WIDTH), preprocess, card=card, logit_scale=10.0).eval().requires_grad_(False)
    made = setting.placed(made)
    if setting.compiled:
        made.image_tower.compile()
    return made


def logits(judge: TwoTower, setting: Setting) -> Callable[[Tensor], Tensor]:
    texts = judge.embed_texts(TEXTS)
    return lambda pixels: judge.logit_scale * cosines(judge, pixels, texts, setting.autocast)


def streams(purpose: str) -> list[Generator]:
    """One generator of the CPU a picture."""
    return [generator(0, purpose, row) for row in range(PICTURES)]


def diffusion(setting: Setting) -> tuple[LatentDiffusion, Conditioning, Conditioning]:
    """A drawn model, and the states of two prompts and of none."""
    from robustclip.diffusion.drawn import drawn_diffusion
    from robustclip.diffusion.stable import Conditioning

    model = setting.placed(drawn_diffusion(setting.autocast))
    given, empty = (Conditioning(setting.put(model.texts.states(texts)[0])) for texts in (TEXTS[:PICTURES], [""]))
    return model, given, empty
