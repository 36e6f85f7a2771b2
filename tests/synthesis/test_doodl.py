"""DOODL's Algorithm 1 beside its lines, written out; what stands beside it; and the uses' losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustclip.canvases.latents import ChainStart
from robustclip.data.images import save_image
from robustclip.diffusion.denoiser import SCHEDULE
from robustclip.diffusion.reversible import Chain, Predicted, guided, pair
from robustclip.diffusion.samplers import SAMPLERS, Levels, SamplerName
from robustclip.errors import UsageError, coded
from robustclip.losses.scores import OfClass, OfFunction, Scored, asymmetry
from robustclip.referees.image_judges import Aesthetics, AestheticsLinear, Classifier
from robustclip.referees.toy import toy_referee
from robustclip.synthesis import doodl
from robustclip.synthesis.doodl import TASKS, VARIANTS, Doodl, StopBy, check_crops, exemplars, use_of
from robustclip.synthesis.inversion import Mode
from robustclip.synthesis.loop import optimise
from robustclip.synthesis.terms import Lowest

WANTED = torch.linspace(0, 1, 48).view(3, 4, 4)
CPU = torch.device("cpu")


class Decoder:
    """Latents of 3 channels as pictures of the same size."""

    factor, channels = 1, 3

    def decode(self, latents: Tensor) -> Tensor:
        return 0.5 + 0.05 * latents

    def encode(self, images: Tensor) -> Tensor:
        return (images - 0.5) / 0.05


def denoise(latents: Tensor, time: int, *_: Tensor) -> Tensor:
    return (latents * (1 + time / 1000)).tanh()


def chain_of(name: SamplerName = "edict", steps: int = 5) -> Chain:
    levels = Levels.of(SCHEDULE, steps)
    gradient: Any = "checkpointed" if name == "ddim" else "reversed"
    return Chain(denoise, SAMPLERS[name](levels), levels, name=name, gradient=gradient)


def far(images: Tensor) -> Tensor:
    """A loss of pictures."""
    return (images - WANTED).square().sum((1, 2, 3))


def dim(images: Tensor, _: Any) -> Tensor:
    """Two views of a picture, the second of which is far darker."""
    return torch.stack([images, 0.3 * images], 1)


def seeded(number: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number + row) for row in range(2)]


def canvas_of(doodl: Doodl, chain: Any) -> ChainStart:
    return doodl.canvas(Decoder(), chain, (), (4, 4), seeded(0), device=CPU)


@pytest.mark.parametrize("mode", ["faithful", "released"])
def test_the_algorithm_line_by_line(mode: Mode) -> None:
    steps = 3
    doodl = Doodl.of("exemplar", mode=mode, noise=1e-2, clip=1e-2)
    canvas = canvas_of(doodl, chain := chain_of())
    stream = doodl.stream(canvas, [(OfFunction(far), 1.0)], dim)
    optimise(*(canvas, [stream]), steps=steps, generators=lambda *_: seeded(0), callbacks=doodl.callbacks(seeded(7)))

    draws, buffer, scale = seeded(7), torch.zeros(2, 3, 4, 4), TASKS["exemplar"].scale
    start = torch.stack([torch.randn(3, 4, 4, generator=one) for one in seeded(0)]).double()
    first = start.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    for _ in range(steps):
        x, y = start.clone().requires_grad_(), start.clone().requires_grad_()  # x_T = y_T
        losses = []
        for latent in chain.run(torch.stack([x, y]), ()):
            views = dim(Decoder().decode(latent.float()).clamp(0, 1), None)
            by_view = torch.stack([far(views[:, row]) for row in (0, 1)], 1)
            losses.append(by_view.mean(1) if mode == "faithful" else by_view.min(1).values)
        loss = scale * sum(losses).sum()  # type: ignore[union-attr]
        g = -0.5 * torch.stack(torch.autograd.grad(loss, [x, y])).mean(0)
        g = g.clamp(-1e-2, 1e-2)
        buffer = 0.9 * buffer + g
        drawn = torch.stack([torch.randn(3, 4, 4, generator=one, dtype=torch.float64) for one in draws])
        start = start + buffer + 1e-2 * drawn
        start = start / start.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * first
    torch.testing.assert_close(canvas.latent.detach(), start, rtol=0, atol=1e-6)


def test_modes_and_uses_have_their_constants() -> None:
    assert isinstance(VARIANTS["released"].reduce, Lowest)
    assert (VARIANTS["faithful"].entropy, VARIANTS["released"].entropy) == ("binary", "cross")
    for mode in ("faithful", "released"):
        assert (VARIANTS[mode].sampler, VARIANTS[mode].chain_steps, VARIANTS[mode].guidance) == ("edict", 50, 7.5)
    text, fine = Doodl.of("text", mode="faithful"), Doodl.of("class", mode="released")
    assert (text.task.scale, text.task.clip, text.task.noise, text.task.steps) == (1, 1e-3, 1e-4, 50)
    assert (fine.task.scale, fine.task.clip, fine.task.noise, fine.task.steps) == (0.05, 1e-2, 1e-3, 50)
    assert not TASKS["aesthetics"].tied
    ours = Doodl.of("class", mode="fixed")
    assert (ours.task.scale, ours.task.clip) == (VARIANTS["fixed"].gain * 0.05, VARIANTS["fixed"].clip)
    assert Doodl.of("class", mode="fixed", scale=2.0).task.scale == 2
    given = Doodl.of("text", mode="fixed", clip=0.5, sampler="o-belm", steps=3, momentum=0.1)
    assert (given.task.clip, given.variant.sampler, given.task.steps, given.momentum) == (0.5, "o-belm", 3, 0.1)


def test_a_given_image_starts_exactly_where_it_is_not_tied() -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    for name in ("edict", "bdia", "o-belm"):
        canvas = canvas_of(Doodl.of("aesthetics", mode="fixed"), chain_of(name, 10))  # type: ignore[arg-type]
        canvas.encode(images)
        assert canvas.latent.shape == (2, 2, 3, 4, 4)
        with torch.no_grad():
            torch.testing.assert_close(canvas.render()["image"], images, rtol=0, atol=1e-6)
        before = canvas.latent.detach().clone()
        canvas.latent.data.mul_(2)
        canvas.project()
        assert torch.equal(canvas.latent, 2 * before)  # not renormalised
    tied = canvas_of(Doodl.of("text", mode="fixed"), chain_of("bdia", 10))
    norms = tied.latent.detach().flatten(1).norm(dim=1)
    tied.latent.data.mul_(3)
    tied.project()
    torch.testing.assert_close(tied.latent.detach().flatten(1).norm(dim=1), norms)
    with pytest.raises(UsageError, check=coded("does_not_fit")):
        tied.encode(images[:1])


def test_the_loss_falls_by_every_sampler_and_by_one_step_noise() -> None:
    for name in ("edict", "bdia", "o-belm", "ddim"):
        for wrap in (lambda chain: chain, Predicted):
            doodl = Doodl.of("function", mode="fixed", clip=1.0, sampler=name)
            canvas = canvas_of(doodl, wrap(chain_of(name)))  # type: ignore[arg-type]
            stream = doodl.stream(canvas, [(OfFunction(far), 1.0)], None)
            _, trace = optimise(canvas, [stream], steps=5, generators=lambda *_: seeded(0))
            assert (trace["loss"][-1] < trace["loss"][0]).all()


def test_one_step_guidance_is_ddim_where_it_has_no_scale_and_lowers_the_loss_where_it_has() -> None:
    chain = chain_of("ddim", 10)
    start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(latents: Tensor) -> Tensor:
        return far(Decoder().decode(latents.float()))

    plain = chain.sample(pair(start))[chain.pictures[0]]
    torch.testing.assert_close(guided(chain, start, (), loss, 0.0), plain)
    assert (loss(guided(chain, start, (), loss, 1.0)) < loss(plain)).all()
    predicted = Predicted(chain)
    with torch.no_grad():
        torch.testing.assert_close(predicted.sample(pair(start))[0], plain)
    levels = chain.levels
    wanted = (start - levels.sigmas[0] * denoise(start, levels.times[0])) / levels.alphas[0]
    torch.testing.assert_close(predicted.sample(pair(start))[0], wanted)


def test_losses_of_classes_heads_and_functions() -> None:
    views = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 5))
    judge = Classifier("five", linear, (8, 8), [], 5, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    logits = linear((views.flatten(0, 1) - 0.5) / 0.25)
    targets = torch.tensor([1, 1, 1, 4, 4, 4])
    cross = torch.nn.functional.cross_entropy(logits, targets, reduction="none").view(2, 3)
    torch.testing.assert_close(OfClass(judge, [1, 4])(views), cross)
    binary = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.nn.functional.one_hot(targets, 5).float(), reduction="none"
    )
    torch.testing.assert_close(OfClass(judge, [1, 4], entropy="binary")(views), binary.mean(1).view(2, 3))

    referee = toy_referee()
    heads = [AestheticsLinear(referee.width), AestheticsLinear(referee.width)]
    named = [Aesthetics(str(row), "linear", "", referee.width, head) for row, head in enumerate(heads)]
    weighted: Any = [(referee, named[0], 0.5), (referee, named[1], 1.5)]
    seen = referee.embed_images(views.flatten(0, 1))
    scores = [head(seen).view(2, 3) for head in heads]
    mean = (0.5 * scores[0] + 1.5 * scores[1]) / 2
    torch.testing.assert_close(Scored(weighted, "up")(views), -mean)
    torch.testing.assert_close(Scored(weighted, "down")(views), mean)
    apart = [(10 - one).abs() for one in scores]
    torch.testing.assert_close(Scored(weighted, 10.0)(views), (0.5 * apart[0] + 1.5 * apart[1]) / 2)
    with pytest.raises(UsageError, check=coded("other_width", head=3, referee=referee.width)):
        Scored([(referee, Aesthetics("odd", "linear", "", 3, AestheticsLinear(3)), 1.0)], "up")

    torch.testing.assert_close(OfFunction(asymmetry)(views)[1, 2], (views[1, 2] - views[1, 2].flip(-1)).square().mean())
    with pytest.raises(UsageError, check=coded("wrong_shape", shape=())):
        OfFunction(torch.mean)(views)


def test_uses_are_one_and_exemplars_that_cannot_be_read_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert use_of(None, [], [], None) == "text"
    with pytest.raises(UsageError, check=coded("clash", flags=["--classifier", "--exemplar"])):
        use_of("resnet18", ["a.png"], [], None)
    save_image(torch.rand(3, 8, 8), tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    prompt = exemplars([str(tmp_path / "a.png"), str(tmp_path / "b.png"), str(tmp_path / "c.png")])
    assert [(part.kind, part.weight) for part in prompt.parts] == [("image", 1.0)]
    assert "b.png is not a readable picture" in caplog.text
    assert "no image at" in caplog.text
    with pytest.raises(UsageError, check=coded("no_pictures")):
        exemplars([str(tmp_path / "b.png")])


def test_crops_that_do_not_fit_are_told_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(64, 1000)

    def loss(views: Tensor) -> Tensor:
        return layer(views.mean(2).flatten(2)).exp().sum(-1)  # keeps 1000 numbers a view

    check_crops(loss, 16, 2, (8, 8), CPU)
    monkeypatch.setattr(doodl, "free_memory", lambda _: 30_000.0)
    with pytest.raises(UsageError, check=coded("too_little_memory", crops=16)) as told:
        check_crops(loss, 16, 2, (8, 8), CPU)
    fit = told.value.values["fit"]
    check_crops(loss, fit, 2, (8, 8), CPU)
    with pytest.raises(UsageError):
        check_crops(loss, fit + 1, 2, (8, 8), CPU)


def test_a_judge_keeps_its_best_step() -> None:
    class Judge:
        answers = iter([torch.tensor([0.1, 0.5]), torch.tensor([0.3, 0.2]), torch.tensor([0.2, 0.4])])

        def similarity(self, *_: Any) -> Tensor:
            return next(self.answers)

    one = StopBy(Judge(), [])  # type: ignore[arg-type]
    for step in range(3):
        images = one.update(torch.full((2, 3, 1, 1), float(step)), step)
    assert images[:, 0, 0, 0].tolist() == [1, 0]
    assert one.steps is not None
    assert one.steps.tolist() == [1, 0]


def test_a_judge_ends_the_loop_when_no_picture_gets_better() -> None:
    class Judge:
        seen = 0

        def similarity(self, images: Tensor, _: Any) -> Tensor:
            self.seen += 1
            return torch.tensor([-abs(self.seen - 2.0), -abs(self.seen - 4.0)])  # best at steps 1 and 3

    doodl = Doodl.of("function", noise=0.0)
    canvas = canvas_of(doodl, chain_of())
    stream = doodl.stream(canvas, [(OfFunction(far), 1.0)], None)
    judge = StopBy(Judge(), [], patience=2)  # type: ignore[arg-type]
    _, trace = optimise(canvas, [stream], steps=50, generators=lambda *_: seeded(0), callbacks=[judge])
    assert len(trace["loss"]) == 6  # 3 is the last best step, and 5 comes two later
    assert judge.steps is not None
    assert judge.steps.tolist() == [1, 3]
