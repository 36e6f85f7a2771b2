"""The embedded generator: its card holds, it is small, and its codes keep what a drawing shows."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from robustclip import load_referee
from robustclip.data.embedded import path
from robustclip.data.emoji import load_emoji
from robustclip.diffusion.vqgan import CARD, VQGAN, WEIGHTS, embedded_names, load_vqgan
from robustclip.runs.files import sha256

FOLDER = path("generators", "emoji-vqgan")


@pytest.fixture(scope="module")
def model() -> VQGAN:
    return load_vqgan("emoji-vqgan")


@pytest.fixture(scope="module")
def drawings() -> torch.Tensor:
    """That judges are measured on; half of them in styles that the generator never saw."""
    return load_emoji("judge-heldback").images[::8]


def test_the_weights_are_those_on_the_card_and_small() -> None:
    assert embedded_names() == ["emoji-vqgan"]
    card = json.loads((FOLDER / CARD).read_text())
    assert card["weights_sha256"] == sha256(FOLDER / WEIGHTS)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8e6
    assert {"recipe", "arguments", "steps", "licence", "measured"} <= card.keys()
    for numbers in card["measured"]:
        for judge in numbers["recognised"]:
            for share in ("originals", "reconstructions"):
                assert judge[share]["low"] <= judge[share]["value"] <= judge[share]["high"]


def test_a_code_stands_for_4x4_pixels(model: VQGAN) -> None:
    assert (model.factor, tuple(model.codebook.shape)) == (4, (512, 8))


@torch.no_grad()
def test_reconstructions_show_more_than_a_blur_to_as_few_places(model: VQGAN, drawings: torch.Tensor) -> None:
    """To judges, that is: colours in squares of 4x4 pixels, enlarged, are a blur that is nearer pixel by pixel, since
    the generator's whites and colours are off."""
    blurred = F.interpolate(F.avg_pool2d(drawings, model.factor), 64, mode="bicubic").clamp(0, 1)
    made = model.decode(model.quantise(model.encode(drawings))).clamp(0, 1)
    for judge in map(load_referee, ["emoji-judge", "emoji-judge-disjoint"]):
        wanted, found, rival = (judge.embed_images(one) for one in (drawings, made, blurred))
        assert (wanted * found).sum(1).mean() > (wanted * rival).sum(1).mean() + 0.02
    assert (-10 * (made - drawings).square().flatten(1).mean(1).log10()).mean() > 17


@torch.no_grad()
def test_most_codes_are_used(model: VQGAN, drawings: torch.Tensor) -> None:
    codes = model.quantise(model.encode(drawings)).movedim(1, 3).flatten(0, 2)
    assert len(torch.cdist(codes, model.codebook).argmin(1).unique()) > 0.8 * len(model.codebook)
