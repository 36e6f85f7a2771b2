"""Algorithm 1 against three iterations in plain numpy (tests/golden/algorithm1.py), and its parts."""

from __future__ import annotations

import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from robustclip.canvases.base import Canvas
from robustclip.errors import RunError, UsageError, coded
from robustclip.losses.distillation import Distillation
from robustclip.runs.rng import generator
from robustclip.synthesis.inversion import VARIANTS, Algorithm1
from robustclip.synthesis.loop import Moment, MovingAverage, optimise, restarts_of
from robustclip.synthesis.pictures import GradientPictures, strip
from robustclip.synthesis.terms import Stream, Term, Terms

GOLDEN = Path(__file__).parents[1] / "golden" / "algorithm1"
STORED: dict[str, Any] = json.loads(GOLDEN.with_suffix(".json").read_text())
TOYS: dict[str, Any] = STORED["toys"]


def number(name: str) -> Tensor:
    return torch.tensor(TOYS[name], dtype=torch.float64)


class Toy(Canvas):
    """z of 4 numbers as a latent of 2 x 2 cells; the picture is D z."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(number("start").view(1, 1, 2, 2).clone())

    def render(self) -> dict[str, Tensor]:
        return {"image": (number("decoder") @ self.z.flatten()).view(1, 3, 2, 2), "latent": self.z}

    def encode(self, images: Tensor) -> None:
        raise NotImplementedError


class Given:
    """SDS' draws and the noise on z, in their order: handed out where torch would draw."""

    def __init__(self) -> None:
        self.steps, self.step = 3, 0
        self.alphas_cumprod = number("kept")

    def predict_noise(self, noisy: Tensor, times: Tensor, *_: object) -> Tensor:
        return (number("predictor") @ noisy.flatten() + number("bias")).view(1, 1, 2, 2)


class Replayed(Distillation):  # type: ignore[misc]  # final: only the draws are replaced
    """With the golden script's times and noises in the place of drawn ones."""

    def gradient(self, latents: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        model = cast("Given", self.model)
        time, model.step = model.step, model.step + 1
        kept, noise = number("kept")[time], number("noises")[time].view(1, 1, 2, 2)
        noisy = kept.sqrt() * latents.double() + (1 - kept).sqrt() * noise
        found = model.predict_noise(noisy, torch.tensor([time]))
        return 2.0 * (found - noise) / (latents.shape[-2] * latents.shape[-1])


def miss(views: Tensor) -> Tensor:
    return ((views.flatten(2) - number("target")) ** 2).sum(2) / 2


def test_three_iterations_are_the_stored_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = Algorithm1(VARIANTS["faithful"], 3, 1, w2=(8.0, 4.0), decay=0.5, start=1, period=2)
    canvas = Toy()
    streams = algorithm.streams(canvas, Replayed(Given(), None, None, times=(0, 3)), [(miss, 1.0, "referee")])
    rows = [[generator(row, "z")] for row in range(2)]
    shaken = iter(number("shaken"))

    def drawn(shape: Any, generator: torch.Generator, **_: object) -> Tensor:
        return next(shaken).view(shape)

    monkeypatch.setattr("robustclip.synthesis.loop.torch.randn", drawn)
    path: list[list[float]] = []
    optimise(
        canvas,
        streams,
        steps=3,
        generators=lambda purpose, step: [generator(0, purpose, step)],
        callbacks=[*algorithm.callbacks(canvas, rows), lambda _: path.append(canvas.z.flatten().tolist())],
    )
    torch.testing.assert_close(torch.tensor(path), torch.tensor(STORED["faithful"]), atol=1e-6, rtol=1e-6)


def test_the_stored_numbers_are_the_scripts() -> None:
    script = runpy.run_path(str(GOLDEN.with_suffix(".py")))
    assert script["toys"]() == TOYS
    torch.testing.assert_close(torch.tensor(script["run"](TOYS)), torch.tensor(STORED["faithful"]))


def moment(canvas: Canvas, step: int, steps: int = 10, **gradients: list[Tensor]) -> Moment:
    return Moment(step, steps, canvas, canvas.render()["image"].detach(), torch.zeros(1), {}, gradients)


def test_restarts_are_the_papers() -> None:
    assert restarts_of(40, 60, 160) == [40, 100]


def test_a_restart_copies_so_that_the_next_step_moves_one_of_both() -> None:
    """VLMinv hands out the average's own memory, so that its referee's next step moves both (test_vlminv.py)."""
    canvas = Toy()
    average = MovingAverage([canvas.z], 0.5, [1])
    start = canvas.z.detach().clone()
    with torch.no_grad():
        canvas.z += 1
    average(moment(canvas, 0))
    assert average.average is not None
    torch.testing.assert_close(average.average[0], start + 0.5)
    torch.testing.assert_close(canvas.z.detach(), start + 1)
    average(moment(canvas, 1))
    torch.testing.assert_close(canvas.z.detach(), start + 0.75)
    with torch.no_grad():
        canvas.z += 10
    torch.testing.assert_close(average.average[0], start + 0.75)


def test_a_plain_average_is_the_last_picture() -> None:
    canvas = Toy()
    average = MovingAverage([canvas.z], 0.5, last=True)
    start = canvas.z.detach().clone()
    for step in range(10):
        with torch.no_grad():
            canvas.z += 1
        average(moment(canvas, step))
        assert average.average is not None
        assert torch.equal(canvas.z, average.average[0]) is (step == 9)
    assert (canvas.z < start + 10).all()


def test_the_referee_rests_in_the_last_steps() -> None:
    algorithm = Algorithm1(VARIANTS["fixed"], 6, 2)
    canvas = Toy()
    streams = algorithm.streams(canvas, Replayed(Given(), None, None, times=(0, 3)), [(miss, 1.0, "referee")])
    assert [bool(streams[1].terms(canvas.render(), lambda _: [], step)[1]) for step in range(6)] == [True] * 4 + [
        False
    ] * 2


def test_weights_and_rates_are_the_papers() -> None:
    algorithm = Algorithm1(VARIANTS["faithful"])
    assert (algorithm.weight(0), algorithm.weight(80), algorithm.weight(160)) == pytest.approx((800, 600, 400))
    assert (algorithm.rate(0), algorithm.rate(80), algorithm.rate(160)) == pytest.approx((1, 0.75, 0.5))
    assert Algorithm1(VARIANTS["fixed"]).rate(4) == pytest.approx(0.5 * algorithm.rate(4))


def test_each_of_several_referees_has_its_share_of_w1() -> None:
    algorithm = Algorithm1(VARIANTS["released"], 4, 1)
    canvas = Toy()
    streams = algorithm.streams(
        canvas,
        Replayed(Given(), None, None, times=(0, 3)),
        [(miss, 3.0, "one"), (lambda views: 1000 * miss(views), 1.0, "other")],
        generators=[generator(0, "gradient")],
    )
    followed: list[Moment] = []
    optimise(
        canvas,
        streams,
        steps=1,
        generators=lambda purpose, step: [generator(0, purpose, step)],
        callbacks=[followed.append],
    )
    norms = {name: float(found[0].norm()) for name, found in followed[0].gradients.items()}
    assert norms["one"] == pytest.approx(2 * 0.75 * norms["sds"], rel=1e-5)
    assert norms["other"] == pytest.approx(2 * 0.25 * norms["sds"], rel=1e-5)
    assert [stream.optimiser.param_groups[0]["lr"] for stream in streams[1:]] == [0.1, 0.1], "not the share once more"
    adam = Algorithm1(VARIANTS["fixed"]).streams(canvas, None, [(miss, 3.0, "one"), (miss, 1.0, "other")])
    assert [stream.optimiser.param_groups[0]["lr"] for stream in adam] == pytest.approx([0.225, 0.075])


def one_stream(loss: Any, canvas: Canvas, name: str = "referee") -> Stream:
    return Stream(Terms((Term(loss),)), torch.optim.SGD(canvas.parameters(), lr=0.1), name=name)


def run(stream: Stream, canvas: Canvas) -> None:
    optimise(canvas, [stream], steps=3, generators=lambda purpose, step: [generator(0, purpose, step)])


def test_a_gradient_that_is_no_number_is_told_with_stream_step_and_picture() -> None:
    canvas = Toy()
    calls: list[int] = []

    def breaks(views: Tensor) -> Tensor:
        calls.append(1)
        return miss(views) * (torch.nan if len(calls) == 2 else 1)

    with pytest.raises(RunError, check=coded("not_finite", stream="referee", step=1, rows=[0])):
        run(one_stream(breaks, canvas), canvas)


def test_a_referee_that_gives_no_gradient_is_named() -> None:
    canvas = Toy()
    with pytest.raises(UsageError, check=coded("no_gradient", stream="referee")):
        run(one_stream(lambda views: miss(views).detach(), canvas), canvas)


def test_pictures_of_gradients_leave_the_canvas_as_it_was() -> None:
    canvas = Toy()
    before = canvas.z.detach().clone()
    shown = GradientPictures(10, 2)
    gradient = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    for step in range(10):
        shown(moment(canvas, step, referee=[gradient], **({"sds": [-gradient]} if step < 5 else {})))
    assert torch.equal(canvas.z, before)
    assert shown.steps == [0, 5]
    found = shown.of(0)
    assert found["referee"].shape == (2, 3, 2, 2)
    assert found["sds"].shape == (1, 3, 2, 2)
    torch.testing.assert_close(found["referee"][0] + found["sds"][0], torch.ones(3, 2, 2, dtype=torch.float64))
    assert strip({name: one.float() for name, one in found.items()}, shown.steps).ndim == 3
