"""Reversible samplers: their pictures beside diffusers', their inverses, and gradients beside autograd's."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from alive import Alive
from torch import Tensor, nn

from robustclip.diffusion.denoiser import SCHEDULE
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.diffusion.reversible import Chain, Gradient, chain_of, pair
from robustclip.diffusion.samplers import SAMPLERS, Levels, SamplerName, bdia, edict
from robustclip.errors import RunError, UsageError, coded

from .tiny import tiny_pipeline

REVERSIBLE: list[SamplerName] = ["edict", "bdia", "o-belm"]


class Small(nn.Module):
    """A denoiser of latents (P,2,4,4) that also reads a conditioning (P,6), in float64."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.text, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Linear(6, 8), nn.Conv2d(8, 2, 3, 1, 1)
        self.double()
        self.calls = 0

    def forward(self, latents: Tensor, time: int, text: Tensor) -> Tensor:
        self.calls += 1
        hidden = self.first(latents.to(self.first.weight.dtype)) + self.text(text)[..., None, None] + time / 1000
        return self.last(hidden.tanh())


@cache
def levels(steps: int) -> Levels:
    return Levels.of(SCHEDULE, steps)


def chain(name: SamplerName, steps: int, gradient: Gradient = "reversed", model: Any = None) -> Chain:
    return Chain(model or Small(), SAMPLERS[name](levels(steps)), levels(steps), name=name, gradient=gradient)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def slopes(one: Chain) -> list[Tensor]:
    """Gradients at the noise and at the conditioning, of a loss that reads all pictures."""
    noise, text = drawn(2, 2, 4, 4).requires_grad_(), (0.1 * drawn(2, 6)).requires_grad_()
    found = one.sample(pair(noise), text)[one.pictures]
    return list(torch.autograd.grad((found * found.detach().cos()).sum(), [noise, text]))


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("name", REVERSIBLE)
def test_the_gradient_is_autograds(name: SamplerName, steps: int) -> None:
    stored, one = slopes(chain(name, steps, "stored")), chain(name, steps)
    for found, wanted in zip(slopes(one), stored, strict=True):
        assert (found - wanted).norm() <= 1e-8 * wanted.norm()
        assert wanted.norm() > 0
    assert one.error is not None
    assert one.error < 1e-8
    for found, wanted in zip(slopes(chain(name, steps, "checkpointed")), stored, strict=True):
        assert (found - wanted).norm() <= 1e-12 * wanted.norm()


def test_ddim_has_gradients_by_checkpointing_alone() -> None:
    for found, wanted in zip(
        slopes(chain("ddim", 10, "checkpointed")), slopes(chain("ddim", 10, "stored")), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    with pytest.raises(UsageError, check=coded("no_inverse", sampler="ddim")):
        chain("ddim", 10)
    with pytest.raises(UsageError, check=coded("no_inverse", sampler="ddim")):
        chain("ddim", 10, "stored").invert(pair(drawn(2, 2, 4, 4)), drawn(2, 6))


@pytest.mark.parametrize("name", REVERSIBLE)
def test_inverses_are_exact_both_ways(name: SamplerName) -> None:
    one, start, text = chain(name, 50), pair(drawn(2, 2, 4, 4)), 0.1 * drawn(2, 6)
    end = one.sample(start, text)
    torch.testing.assert_close(one.invert(end, text), start, rtol=0, atol=1e-8)
    given = drawn(2, 2, 4, 4)  # a picture's, that no chain made
    ending = one.ending(given, text)
    again = one.sample(one.invert(ending, text), text)[one.pictures]
    torch.testing.assert_close(again, given.expand_as(again), rtol=0, atol=1e-8)


def test_the_denoiser_is_asked_once_a_step_and_twice_by_edict_and_its_weights_get_no_gradient() -> None:
    for name, calls in (("edict", 2), ("bdia", 1), ("o-belm", 1)):
        model = Small()
        one = chain(name, 10, model=model)  # type: ignore[arg-type]
        noise = drawn(1, 2, 4, 4).requires_grad_()
        found = one.sample(pair(noise), drawn(1, 6))
        assert model.calls == one.evaluations == 10 * calls
        found.sum().backward()
        assert model.calls == 2 * 10 * calls
        assert noise.grad is not None
        assert all(weight.grad is None for weight in model.parameters())


def peak(name: SamplerName, steps: int, gradient: Gradient) -> int:
    model = Small()
    with Alive() as alive:
        noise = torch.ones(4, 2, 16, 16, dtype=torch.float64, requires_grad=True)
        one = chain(name, steps, gradient, model)
        one.sample(pair(noise), torch.zeros(4, 6, dtype=torch.float64)).square().sum().backward()
    return alive.peak


@pytest.mark.parametrize("name", REVERSIBLE)
def test_memory_does_not_grow_with_the_steps(name: SamplerName) -> None:
    few, many = (peak(name, steps, "reversed") for steps in (10, 50))
    assert many <= 1.1 * few
    assert peak(name, 50, "checkpointed") > 2 * many
    assert peak(name, 50, "stored") > peak(name, 50, "checkpointed")


def test_an_inverse_that_rounding_spoils_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    steps = 50
    one = Chain(Small(), bdia(levels(steps), 0.3), levels(steps), name="bdia")
    slopes(one)
    assert one.error is not None
    assert not one.error < 1e-3
    slopes(one)
    assert caplog.text.count("bdia over 50 steps reconstructs its start") == 1
    caplog.clear()
    slopes(chain("bdia", steps))
    assert not caplog.messages


def test_a_latent_that_is_not_finite_names_sampler_and_step() -> None:
    def denoise(latents: Tensor, time: int, *_: Tensor) -> Tensor:
        return latents * (float("nan") if time < 500 else 0)

    with pytest.raises(RunError, check=coded("not_finite", step=5)):
        chain("edict", 10, model=denoise).sample(pair(drawn(1, 2, 4, 4)))


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (lambda: edict(levels(10), 0.5), coded("out_of_range", argument="p", given=0.5)),
        (lambda: edict(levels(10), 1.1), coded("out_of_range", argument="p", given=1.1)),
        (lambda: bdia(levels(10), 0), coded("out_of_range", argument="gamma", given=0)),
        (lambda: Levels.of(SCHEDULE, 30), coded("not_divisible", argument="steps", given=30, near=[25, 20])),
        (lambda: Levels.of(SCHEDULE, 0), coded("not_divisible", argument="steps", given=0, near=[1, 2])),
        (
            lambda: Levels.of(SCHEDULE | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 10),
            coded("no_signal"),
        ),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, check) -> None:
    with pytest.raises(UsageError, check=check):
        make()


def test_a_chain_can_have_all_steps_of_its_schedule() -> None:
    """SCHEDULE's offset of 1, which fits all coarser chains, leads beyond its last step."""
    assert Levels.of(SCHEDULE, 1000).times == tuple(range(999, -1, -1))
    assert Levels.of(SCHEDULE, 500).times == tuple(range(999, 0, -2))


def test_edict_steps_as_its_equations_say() -> None:
    """Wallace et al. 2023, Eqs. 15: with the order of the two alternating (their released code, and diffusers' )."""
    model, text, p = Small(), drawn(1, 6), 0.93
    x = y = drawn(1, 2, 4, 4)
    for step, time in enumerate(levels(10).times):
        a, b = levels(10).ddim(step)
        if step % 2:
            y = a * y + b * model(x, time, text)
            x = a * x + b * model(y, time, text)
        else:
            x = a * x + b * model(y, time, text)
            y = a * y + b * model(x, time, text)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
    found = chain("edict", 10).sample(pair(drawn(1, 2, 4, 4)), text)
    torch.testing.assert_close(found, torch.stack([x, y]))


def test_the_two_step_samplers_are_as_published() -> None:
    """BDIA's and O-BELM's recurrences, written out over a list of all latents."""
    model, text, sizes = Small(), drawn(1, 6), levels(10)
    ratio = [s / a for s, a in zip(sizes.sigmas, sizes.alphas, strict=True)]

    def noise(x: Tensor, place: int) -> Tensor:
        return model(x, sizes.times[place], text)

    for name, gamma in (("bdia", 0.9), ("o-belm", None)):
        a, b = sizes.ddim(0)
        row = [drawn(1, 2, 4, 4)]
        row.append(a * row[0] + b * noise(row[0], 0))
        for place in range(1, 10):
            alpha = sizes.alphas[place - 1 : place + 2]
            eps = noise(row[-1], place)
            if gamma is not None:  # x_s = g x_p + DDIM from t to s - g (DDIM from t to p)
                forth = [alpha[i] * (row[-1] / alpha[1] + (ratio[place - 1 + i] - ratio[place]) * eps) for i in (0, 2)]
                row.append(gamma * row[-2] + forth[1] - gamma * forth[0])
            else:
                h1, h2 = ratio[place] - ratio[place - 1], ratio[place + 1] - ratio[place]
                scaled = (h2 / h1) ** 2 * row[-2] / alpha[0] + (h1**2 - h2**2) / h1**2 * row[-1] / alpha[1]
                row.append(alpha[2] * (scaled + h2 * (h1 + h2) / h1 * eps))
        one = chain(name, 10)  # type: ignore[arg-type]
        torch.testing.assert_close(one.sample(pair(row[0]), text)[one.pictures[0]], row[-1])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_chain_of_stable_diffusion(prediction: str, tmp_path: Any) -> None:
    """DDIM as diffusers samples; reversed gradients through a float32 UNet, at the noise and at both conditionings."""
    theirs = tiny_pipeline(tmp_path / "sd", prediction=prediction)
    model = load_diffusion(tmp_path / "sd")
    told, empty = model.embed_prompts(["a cat", "a dog"]), model.embed_prompts([""])
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = theirs(
        ["a cat", "a dog"], latents=noise, num_inference_steps=10, guidance_scale=3.0, output_type="latent"
    ).images
    one, given = chain_of(model, told, empty, sampler="ddim", steps=10, guidance=3.0)
    with torch.no_grad():
        torch.testing.assert_close(one.sample(pair(noise), *given)[one.pictures[0]], wanted, atol=1e-4, rtol=1e-5)
    answers = []
    for gradient in ("reversed", "stored"):
        one, given = chain_of(model, told, empty, steps=10, guidance=3.0, gradient=gradient)  # type: ignore[arg-type]
        leaves = [noise.double().requires_grad_(), *(one.clone().requires_grad_() for one in given)]
        loss = one.sample(pair(leaves[0]), *leaves[1:]).square().mean()
        answers.append(torch.autograd.grad(loss, leaves))
    for found, wanted in zip(*answers, strict=True):
        assert (found - wanted).norm() <= 1e-4 * wanted.norm()
        assert wanted.norm() > 0


def test_half_precision_denoisers_keep_exact_states(tmp_path: Any) -> None:
    tiny_pipeline(tmp_path / "sd")
    model = load_diffusion(tmp_path / "sd", dtype=torch.bfloat16)
    model.unet.to(torch.bfloat16)
    one, given = chain_of(model, model.embed_prompts(["a cat"]), model.embed_prompts([""]), steps=10, guidance=3.0)
    start = pair(drawn(1, 4, 8, 8))
    end = one.sample(start, *given)
    assert end.dtype == torch.float64
    torch.testing.assert_close(one.invert(end, *given), start, rtol=0, atol=1e-6)


def test_guidance_below_zero_is_refused(tmp_path: Any) -> None:
    tiny_pipeline(tmp_path / "sd")
    model = load_diffusion(tmp_path / "sd")
    with pytest.raises(UsageError, check=coded("out_of_range", argument="guidance", given=-1)):
        chain_of(model, model.embed_prompts(["a"]), model.embed_prompts([""]), steps=10, guidance=-1)
