"""`--mode released` against VLMinv's loop, restated in tests/golden/vlminv.py, and at the released settings."""

from __future__ import annotations

import json
import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from robustclip.canvases.latents import Latents
from robustclip.losses.distillation import Distillation
from robustclip.runs.rng import generator
from robustclip.synthesis.inversion import VARIANTS, Algorithm1
from robustclip.synthesis.loop import MovingAverage, optimise
from robustclip.views import GaussianNoise, Views
from robustclip.views.policies import inverted

GOLDEN = Path(__file__).parents[1] / "golden" / "vlminv"
STORED: dict[str, Any] = json.loads(GOLDEN.with_suffix(".json").read_text())
TOYS: dict[str, Any] = STORED["toys"]
SHAPE = (4, 2, 2)


def number(name: str) -> Tensor:
    return torch.tensor(TOYS[name], dtype=torch.float64)


class Decoder:
    factor, channels = 2, 4

    def encode(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        return ((number("decoder") @ (latents / 0.18215).flatten()) / 2 + 0.5).view(1, 3, 4, 4)


class Denoiser:
    steps = 1000
    alphas_cumprod = 0.99 - 0.98 * torch.arange(1000, dtype=torch.float64) / 999

    def predict_noise(self, noisy: Tensor, times: Tensor, given: Any, empty: Any, guidance: float) -> Tensor:
        found = number("denoiser") @ noisy.double().flatten()
        without, told = found + number("without text"), found + number("with text")
        return (without + guidance * (told - without)).view(1, *SHAPE)


def miss(views: Tensor) -> Tensor:
    return ((views.flatten(2) - number("target")) ** 2).sum(2) / 2


class Handed:
    """Hands out the stored draws where torch would draw, by what a generator is for and how often it was asked."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.purposes: dict[int, tuple[list[Any], list[Tensor]]] = {}
        for name in ("randn", "rand", "randint"):
            patch.setattr(torch, name, self.draw)

    def generator(self, *draws: Tensor | Sequence[Any]) -> Generator:
        made = Generator()
        self.purposes[id(made)] = ([made], [torch.as_tensor(draw) for draw in draws])
        return made

    def draw(self, *_: object, generator: Generator, **__: object) -> Tensor:
        return self.purposes[id(generator)][1].pop(0).clone()


def test_twelve_iterations_are_the_released_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = replace(VARIANTS["released"], warm_up=3, copies=2)
    algorithm = Algorithm1(variant, 12, 2, w2=(0.8, 0.4), decay=0.5, start=4, period=3)
    canvas = Latents(Decoder(), (4, 4), [generator(0, "start")], through=variant.through)
    canvas.latent.data = number("start").view(1, *SHAPE).clone()
    handed = Handed(monkeypatch)
    copies = inverted(0.1, variant.added_noise)
    look = Views(variant.copies, copies[4:])  # the noises; what comes before moves pixels and colours

    def drawn(purpose: str, step: int) -> list[Generator]:
        if purpose.startswith("sds draws"):
            noise = number("noise of SDS")[step].view(SHAPE)
            return [handed.generator(torch.tensor(TOYS["times"][step]), noise)]
        noises = [number(name)[step].view(2, 3, 4, 4) for name in ("noise of copies", "added noise")]
        strength = number("strength of copies")[step].view(2, 1, 1, 1)
        # A noise of one strength for all draws that strength too.
        return [handed.generator(strength, noises[0], torch.ones(2, 1, 1, 1, dtype=torch.float64), noises[1])]

    def rows(name: str, steps: range) -> list[Generator]:
        return [handed.generator(*(number(name)[step].view(SHAPE) for step in steps))]

    streams = algorithm.streams(
        canvas,
        Distillation(Denoiser(), None, None, guidance=variant.guidance, times=variant.times),
        [(miss, 1.0, "referee")],
        look,
        generators=rows("noise of the gradient", range(10)),
    )
    shaken = [rows("noise of the latents", range(10)), rows("noise of the latents", range(12))]
    handed.purposes[id(shaken[1][0])][1][:10] = [torch.zeros(SHAPE, dtype=torch.float64)] * 10
    callbacks = algorithm.callbacks(canvas, shaken)
    average = next(one for one in callbacks if isinstance(one, MovingAverage))
    path: dict[str, list[Any]] = {"latents": [], "average": []}

    def note(_: object) -> None:
        assert average.average is not None
        path["latents"].append(canvas.latent.flatten().tolist())
        path["average"].append(average.average[0].flatten().tolist())

    optimise(canvas, streams, steps=12, generators=drawn, callbacks=[*callbacks, note])
    for name, found in path.items():
        torch.testing.assert_close(torch.tensor(found), torch.tensor(STORED[name]), atol=2e-6, rtol=2e-6)


def test_the_stored_numbers_are_the_scripts() -> None:
    script = runpy.run_path(str(GOLDEN.with_suffix(".py")))
    assert script["toys"]() == TOYS
    for name, found in script["run"](TOYS).items():
        torch.testing.assert_close(torch.tensor(found), torch.tensor(STORED[name]))


@pytest.mark.parametrize(("steps", "sds_only"), [(160, 10), (60, 10), (100, 0)])
def test_rates_and_restarts_at_the_released_settings(steps: int, sds_only: int) -> None:
    script = runpy.run_path(str(GOLDEN.with_suffix(".py")))
    algorithm = Algorithm1(VARIANTS["released"], steps, sds_only)
    for step in range(steps):
        assert algorithm.rate(step) == pytest.approx(script["rate_of"](step, 10, steps))
    canvas = Latents(Decoder(), (4, 4), [generator(0, "start")])
    callbacks = algorithm.callbacks(canvas, [[], []])
    average = next(one for one in callbacks if isinstance(one, MovingAverage))
    calm = steps - sds_only
    assert sorted(average.restarts) == [step for step in range(steps) if script["restarts_at"](step, 40, 60, calm)]


def test_the_released_copies() -> None:
    """Ten of them; noise of 0.2 for all beside each one's own below 0.1; shifts as kornia reads a translate of 0.1."""
    variant = VARIANTS["released"]
    assert (variant.copies, variant.added_noise, variant.times, variant.guidance) == (10, 0.2, (50, 949), 30)
    noises = Views(400, inverted(0.1, variant.added_noise)[4:])
    seen = noises(torch.full((1, 3, 16, 16), 0.5), [generator(0, "copies")])[0] - 0.5
    spread = seen.flatten(1).std(1)
    own = (spread**2 - 0.2**2).clamp(min=0).sqrt()
    assert pytest.approx(float(spread.min()), abs=0.015) == 0.2
    assert pytest.approx(float(own.max()), abs=0.02) == 0.1
    assert float(own.mean()) == pytest.approx(0.05, abs=0.01)
    assert not [one for one in inverted(0.1) if isinstance(one, GaussianNoise) and one.std == 0.2]


def test_kornia_reads_a_scalar_translate_as_down_only() -> None:
    import kornia

    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = kornia.augmentation.RandomAffine(degrees=30, translate=0.1, p=1.0).generate_parameters((64, 3, 50, 50))
    across, down = made["translations"].unbind(1)
    assert bool((across == 0).all())
    assert 3 < float(down.abs().max()) <= 5
