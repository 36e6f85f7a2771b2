"""SDS against its closed form where the noise is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from robustclip.errors import UsageError
from robustclip.losses.distillation import Distillation
from robustclip.runs.rng import generator
from robustclip.synthesis.terms import Term

STEPS = 100


class Gaussian:
    """Of latents around `mean` with variance `spread`, whose noise is known: for z_t of alpha-bar a it is
    sqrt(1 - a) (z_t - sqrt(a) mean) / (a spread + 1 - a). The unconditional mean is 0."""

    def __init__(self, mean: float, spread: float = 0.5) -> None:
        self.steps = STEPS
        self.alphas_cumprod = torch.linspace(0.99, 0.01, STEPS)
        self.mean, self.spread = mean, spread

    def predict_noise(
        self, noisy: Tensor, times: Tensor, conditioning: Any, unconditional: Any, guidance: float
    ) -> Tensor:
        kept = self.alphas_cumprod[times].view(-1, 1, 1, 1)
        found = [
            (1 - kept).sqrt() * (noisy - kept.sqrt() * mean) / (kept * self.spread + 1 - kept)
            for mean in (0.0, self.mean)
        ]
        return found[0] + guidance * (found[1] - found[0])


def streams(count: int, purpose: str = "sds", step: int = 0) -> list[torch.Generator]:
    return [generator(row, purpose, step) for row in range(count)]


def by_hand(latents: Tensor, mean: float, guidance: float, weighting: str, model: Gaussian) -> Tensor:
    rows = []
    for row, stream in enumerate(streams(len(latents))):
        time = int(torch.randint(5, 95, (), generator=stream))
        noise = torch.randn(latents.shape[1:], generator=stream)
        kept = model.alphas_cumprod[time]
        noisy = kept.sqrt() * latents[row] + (1 - kept).sqrt() * noise
        plain = (1 - kept).sqrt() / (kept * model.spread + 1 - kept)
        guess = plain * noisy - guidance * plain * kept.sqrt() * mean
        weight = 2.0 if weighting == "constant" else 1 - kept
        rows.append(weight * (guess - noise) / (latents.shape[2] * latents.shape[3]))
    return torch.stack(rows)


@pytest.mark.parametrize("weighting", ["constant", "one minus alpha"])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_the_gradient_is_the_closed_form_and_the_value_its_norm(weighting: Any, guidance: float) -> None:
    model = Gaussian(0.8)
    loss = Distillation(model, None, None, guidance=guidance, times=(5, 95), weighting=weighting)
    latents = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = loss(latents[:, None], streams(3))
    assert values.shape == (3, 1)
    (3.0 * values.sum()).backward()
    expected = by_hand(latents.detach(), 0.8, guidance, weighting, model)
    assert latents.grad is not None
    torch.testing.assert_close(latents.grad, 3.0 * expected)
    torch.testing.assert_close(values[:, 0], expected.flatten(1).norm(dim=1))


def test_a_picture_does_not_depend_on_its_batch() -> None:
    loss = Distillation(Gaussian(0.8), None, None, times=(5, 95))
    latents = torch.randn(3, 4, 6, 5)
    together = loss.gradient(latents, streams(3))
    torch.testing.assert_close(together[1:2], loss.gradient(latents[1:2], streams(3)[1:2]))


def test_descending_leads_to_the_models_mean() -> None:
    latents = torch.full((1, 1, 2, 2), -1.0)
    loss = Distillation(Gaussian(0.8), None, None, guidance=1.0, times=(5, 95))
    for step in range(600):
        latents = latents - 0.2 * loss.gradient(latents, streams(1, step=step))
    assert latents.mean().item() == pytest.approx(0.8, abs=0.35)


def test_as_a_term_it_draws_anew_in_each_step_and_reports_the_norm() -> None:
    term = Term(Distillation(Gaussian(0.8), None, None, times=(5, 95)), reads="latent", name="sds")
    latents = torch.randn(2, 4, 6, 5)

    def at(step: int) -> Tensor:
        return term({"latent": latents}, lambda purpose: streams(2, purpose, step))

    assert torch.equal(at(0), at(0))
    assert not torch.equal(at(0), at(1))
    assert str(term) == "1*sds guidance 30(latent)"


@pytest.mark.parametrize("times", [(50, 50), (-1, 10), (0, 101)])
def test_steps_outside_the_schedule_are_refused(times: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="the schedule has 100"):
        Distillation(Gaussian(0.8), None, None, times=times)
