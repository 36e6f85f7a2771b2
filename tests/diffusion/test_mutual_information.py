"""Estimators of mutual information where the truth is known: jointly Gaussian signal and text."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from robustclip.diffusion.mutual_information import (
    Form,
    MutualInformation,
    evaluations_needed,
    information_matrix,
    pointwise_mi,
    sample_with_mi,
    widths,
)
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.errors import RunError, UsageError, coded

from .tiny import tiny_pipeline

DRAWS = 1000


def schedule(steps: int = 1000) -> Float[Tensor, " t"]:
    """Stable Diffusion's betas, scaled linear from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


@dataclass
class Texts:
    """What the toy's texts say: y, a row each."""

    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, index: Tensor) -> Texts:
        return Texts(self.y[index])


@dataclass
class GaussianToy:
    """x ~ N(0, covariance) and the text y = x + noise of standard deviation `blur`, in the basis where the covariance
    is diagonal with these `variances`; the optimal denoiser in closed form. Conditioning is y; None is no text."""

    variances: Float[Tensor, " d"]
    blur: float

    def __post_init__(self) -> None:
        self.alphas_cumprod = schedule()

    @property
    def posterior(self) -> Float[Tensor, " d"]:
        """Variances of x given y."""
        return 1 / (1 / self.variances + 1 / self.blur**2)

    @property
    def truth(self) -> float:
        """I(x; y) in nats."""
        return float((self.variances / self.posterior).log().sum() / 2)

    def pointwise(self, x: Tensor, texts: Texts) -> Float[Tensor, " n"]:
        """log p(x | y) / p(x)."""
        mean = self.posterior / self.blur**2 * texts.y
        likelihood = torch.distributions.Normal(mean, self.posterior.sqrt()).log_prob(x).sum(1)
        return likelihood - torch.distributions.Normal(0.0, self.variances.sqrt()).log_prob(x).sum(1)

    def draw(self, count: int, seed: int = 0) -> tuple[Tensor, Texts]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, len(self.variances), generator=generator, dtype=torch.float64) * self.variances.sqrt()
        return x, Texts(x + self.blur * torch.randn(x.shape, generator=generator, dtype=torch.float64))

    def predict_both(self, noisy: Tensor, times: Tensor, conditioning: Texts, _: object) -> tuple[Tensor, Tensor]:
        kept = self.alphas_cumprod[times].unsqueeze(1)

        def noise(mean: Tensor | float, variance: Tensor) -> Tensor:
            gain = kept.sqrt() * variance / (kept * variance + 1 - kept)
            signal = mean + gain * (noisy - kept.sqrt() * mean)
            return (noisy - kept.sqrt() * signal) / (1 - kept).sqrt()

        return noise(self.posterior / self.blur**2 * conditioning.y, self.posterior), noise(0.0, self.variances)


TOYS = {
    "1-D": GaussianToy(torch.ones(1, dtype=torch.float64), blur=0.75),
    "16-D": GaussianToy(torch.linspace(0.1, 3.0, 16, dtype=torch.float64), blur=2.0),
}


def standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values)))


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("form", ["gap", "difference"])
def test_the_mean_over_the_joint_is_the_mutual_information(name: str, form: Form) -> None:
    toy = TOYS[name]
    x, y = toy.draw(DRAWS)
    found = pointwise_mi(toy, x, y, None, form=form, levels=24, draws=2, common=False).nats
    assert abs(float(found.mean()) - toy.truth) < 2 * standard_error(found)
    assert standard_error(found) < 0.1 * toy.truth


@pytest.mark.parametrize("name", TOYS)
def test_on_the_trajectory_the_mean_is_the_mutual_information(name: str) -> None:
    toy = TOYS[name]
    _, y = toy.draw(DRAWS)
    generators = [torch.Generator().manual_seed(seed) for seed in range(DRAWS)]
    start = torch.randn(y.y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made, found = sample_with_mi(toy, start, y, None, generators=generators, steps=250, guidance=1.0)
    assert abs(float(found.mean()) - toy.truth) < 2 * standard_error(found)
    assert torch.allclose(made.var(0), toy.variances, rtol=0.2)  # samples of p(x | y) over all y are those of p(x)


def test_steps_that_do_not_divide_the_schedule_are_spread_over_all_of_it() -> None:
    seen: list[int] = []

    class Seen:
        alphas_cumprod = TOYS[next(iter(TOYS))].alphas_cumprod

        def predict_both(self, noisy: Tensor, times: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
            seen.append(int(times[0]))
            return torch.zeros_like(noisy), torch.zeros_like(noisy)

    for steps, gaps in ((600, {1, 2}), (300, {3, 4}), (100, {10})):
        seen.clear()
        sample_with_mi(Seen(), torch.zeros(1, 2), None, None, generators=[torch.Generator()], steps=steps)
        assert (len(seen), seen[0]) == (steps, 999)
        assert {a - b for a, b in pairwise([*seen, -1])} == gaps


@pytest.mark.parametrize("name", TOYS)
def test_the_gap_is_the_log_ratio_of_each_given_picture(name: str) -> None:
    toy = TOYS[name]
    x, y = toy.draw(64)
    found = pointwise_mi(toy, x, y, None, levels=64, draws=32)
    error = found.nats - toy.pointwise(x, y)
    assert (error.abs() < 4 * found.standard_error + 0.02).all()
    assert float((error / found.standard_error).square().mean()) < 2


def test_the_difference_does_not_fall_for_a_wrong_text_where_the_gap_does() -> None:
    toy = TOYS["16-D"]
    x, y = toy.draw(200)
    wrong = Texts(y.y.roll(1, 0))
    gap, difference = (
        pointwise_mi(toy, x, wrong, None, form=form, draws=2).nats.mean() for form in ("gap", "difference")
    )
    assert gap < 0
    assert difference > toy.truth


@pytest.mark.parametrize("form", ["gap", "difference"])
def test_independent_pairs_have_none(form: Form) -> None:
    toy = GaussianToy(torch.ones(1, dtype=torch.float64), blur=1e6)
    x, y = toy.draw(DRAWS)
    found = pointwise_mi(toy, x, y, None, form=form, levels=8, draws=2).nats
    assert abs(float(found.mean())) < 1e-4


def test_a_rescaled_latent_has_the_same() -> None:
    """Where the denoiser knows of the scale: mutual information does not change with the unit of x."""
    toy, scaled = TOYS["1-D"], GaussianToy(TOYS["1-D"].variances * 4, blur=1.5)
    x, y = toy.draw(DRAWS)
    found = [pointwise_mi(one, s * x, Texts(s * y.y), None, common=False).nats for one, s in ((toy, 1), (scaled, 2))]
    difference = found[0] - found[1]
    assert abs(float(difference.mean())) < 2 * standard_error(difference)
    assert toy.truth == pytest.approx(scaled.truth)


def test_the_standard_error_falls_with_the_root_of_the_draws() -> None:
    toy = TOYS["16-D"]
    x, y = toy.draw(400)
    few, many = (pointwise_mi(toy, x, y, None, levels=4, draws=n, common=False).standard_error.mean() for n in (8, 128))
    assert float(few / many) == pytest.approx(4, rel=0.1)


def test_terms_and_maps_add_up_and_bits_are_nats_in_another_unit() -> None:
    toy = TOYS["16-D"]
    x, y = toy.draw(5)
    found = pointwise_mi(toy, x, y, None, levels=6, draws=3, at_once=7)
    assert isinstance(found, MutualInformation)
    assert found.terms.shape == found.times.shape == (5, 18)
    assert torch.allclose(found.terms.sum(1), found.nats)
    assert torch.allclose(found.maps.sum(1), found.nats)
    assert torch.allclose(found.bits * math.log(2), found.nats)
    assert torch.isnan(pointwise_mi(toy, x, y, None, draws=1).standard_error).all()


def test_common_draws_are_those_of_all_pictures_and_a_seed_is_repeatable() -> None:
    toy = TOYS["16-D"]
    x, y = toy.draw(3)
    together = pointwise_mi(toy, x, y, None, seed=3)
    assert (together.times == together.times[:1]).all()
    alone = pointwise_mi(toy, x[1:2], y.rows(torch.tensor([1])), None, seed=3)
    assert torch.allclose(alone.nats, together.nats[1:2])
    assert not torch.allclose(pointwise_mi(toy, x, y, None, seed=4).nats, together.nats)


def test_a_matrix_holds_what_each_pair_has_alone() -> None:
    toy = TOYS["16-D"]
    x, y = toy.draw(3)
    nats, error = information_matrix(toy, x, Texts(y.y[:2]), None, draws=2, seed=5)
    assert nats.shape == error.shape == (3, 2)
    for picture in range(3):
        for prompt in range(2):
            alone = pointwise_mi(toy, x[[picture]], Texts(y.y[[prompt]]), None, draws=2, seed=5)
            assert torch.allclose(nats[picture, prompt], alone.nats[0])
            assert torch.allclose(error[picture, prompt], alone.standard_error[0])
    many = information_matrix(toy, *toy.draw(40), None)[0]
    assert (many.argmax(1) == torch.arange(40)).double().mean() > 0.5  # by chance 1/40


@pytest.mark.parametrize("form", ["gap", "difference"])
def test_the_evaluations_needed_reach_the_error_asked_for(form: Form) -> None:
    toy = TOYS["16-D"]
    x, y = toy.draw(200)
    few = pointwise_mi(toy, x, y, None, form=form, levels=4, draws=64, common=False)
    needed = evaluations_needed(few, share=0.1)
    draws = round(needed / (2 * 4))
    found = pointwise_mi(toy, x, y, None, form=form, levels=4, draws=draws, common=False, seed=1)
    reached = float(found.standard_error.square().mean().sqrt() / found.nats.std())
    assert reached == pytest.approx(0.1, rel=0.15)
    same = pointwise_mi(toy, x[:1].repeat(50, 1), y.rows(torch.zeros(50, dtype=torch.long)), None, form=form)
    assert evaluations_needed(same) == math.inf  # pictures that do not differ


def test_gradients_reach_the_latents() -> None:
    toy = TOYS["16-D"]
    x, y = toy.draw(2)
    x.requires_grad_()
    pointwise_mi(toy, x, y, None, levels=64, draws=16).nats.sum().backward()
    at = x.detach().clone().requires_grad_()
    toy.pointwise(at, y).sum().backward()
    assert x.grad is not None
    assert at.grad is not None
    assert torch.cosine_similarity(x.grad.flatten(), at.grad.flatten(), dim=0) > 0.9


def test_the_weights_of_the_levels_cover_the_range_of_log_snr() -> None:
    kept = schedule()
    assert float(widths(kept).sum()) == pytest.approx(float(torch.logit(kept[0]) - torch.logit(kept[-1])))
    assert (widths(kept) > 0).all()


def test_the_released_kappa_lacks_alpha_and_skips_the_last_steps() -> None:
    toy = TOYS["1-D"]
    _, y = toy.draw(4)
    start = torch.zeros_like(y.y)

    def run(**given: object) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
        return sample_with_mi(toy, start, y, None, generators=generators, steps=100, **given)[1]  # type: ignore[arg-type]

    exact, released = run(), run(kappa="released")
    assert ((0.988 * exact < released) & (released < exact)).all()  # alpha lies in [0.988, 1)
    assert not torch.allclose(run(skip=50), exact)


def test_impossible_settings_and_damaged_denoisers_are_refused() -> None:
    toy = TOYS["1-D"]
    x, y = toy.draw(2)
    for given in ({"levels": 0}, {"draws": 0}):
        with pytest.raises(UsageError, check=coded("out_of_range", **given)):
            pointwise_mi(toy, x, y, None, **given)  # type: ignore[arg-type]
    for steps, skip in ((0, 0), (1001, 0), (10, 1000)):
        with pytest.raises(UsageError, check=coded("out_of_range", steps=steps, skip=skip)):
            sample_with_mi(toy, x, y, None, generators=[], steps=steps, skip=skip)
    with pytest.raises(RunError, check=coded("not_finite", step=1)):
        pointwise_mi(toy, x, Texts(y.y * math.nan), None)


def test_pictures_and_prompts_come_in_pairs() -> None:
    toy = TOYS["1-D"]
    x, y = toy.draw(3)
    for latents, texts in ((x[:1], y), (x, Texts(y.y[:1]))):
        with pytest.raises(UsageError, check=lambda error: error.code == "not_pairs"):
            pointwise_mi(toy, latents, texts, None)
        assert information_matrix(toy, latents, texts, None, draws=1)[0].numel() == 3


def test_a_denoiser_that_reads_no_text_is_refused(tmp_path: Path) -> None:
    """One whose cross-attention writes nothing, and one that was distilled for a guidance, as LCM's UNets are."""
    tiny_pipeline(tmp_path / "sd")
    model = load_diffusion(tmp_path / "sd")
    for name, weights in model.unet.named_parameters():
        if "attn2.to_out" in name:
            weights.data.zero_()
    given = torch.zeros(1, 4, 8, 8), model.embed_prompts(["a cat"]), model.embed_prompts([""])
    with pytest.raises(RunError, check=lambda error: error.code == "text_not_read"):
        pointwise_mi(model, *given)
    config = tmp_path / "sd" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"time_cond_proj_dim": 16}))
    unet = UNet2DConditionModel.from_config(json.loads(config.read_text()))
    save_file(unet.state_dict(), tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UsageError, check=lambda error: error.code == "distilled_guidance"):
        load_diffusion(tmp_path / "sd")


def test_a_prompt_that_is_too_long_is_cut_and_that_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_pipeline(tmp_path / "sd")
    model = load_diffusion(tmp_path / "sd")
    long = "a cat " * model.texts.context
    given = torch.zeros(1, 4, 8, 8), model.embed_prompts([long]), model.embed_prompts([""])
    assert pointwise_mi(model, *given).nats.isfinite().all()
    assert f"reads {model.texts.context}" in caplog.text


def test_a_schedule_that_ends_without_signal_is_refused() -> None:
    toy = GaussianToy(torch.ones(1, dtype=torch.float64), 1.0)
    x, y = toy.draw(2)
    toy.alphas_cumprod = torch.cat([schedule()[:-1], torch.zeros(1, dtype=torch.float64)])
    with pytest.raises(UsageError, check=coded("no_signal")):
        pointwise_mi(toy, x, y, None)
    with pytest.raises(UsageError, check=coded("no_signal")):
        sample_with_mi(toy, x, y, None, generators=[], steps=10, skip=0)
