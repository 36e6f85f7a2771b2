"""What a chain's gradient takes, counted on meta tensors, beside what is really kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import UNet2DConditionModel

from robustclip.cli import app
from robustclip.diffusion import budget as module
from robustclip.diffusion.budget import CONFIGS, budget, counted, plan_doodl, plan_tuning, report_budget
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.errors import UsageError

from .tiny import tiny_pipeline

UNET = {  # runwayml/stable-diffusion-v1-5/unet/config.json
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE = {
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


@pytest.mark.slow
def test_stable_diffusion_at_512_is_of_its_published_size() -> None:
    """859.52 million weights of the denoiser, 83.65 of the autoencoder; 0.4 TMACs an evaluation, two with guidance."""
    found = budget(UNET, VAE, (512, 512))
    assert found.weights == 2 * (859_520_964 + 83_653_863)
    assert 1.5e12 < found.flops < 1.7e12
    assert 4e9 < found.evaluation < 12e9
    assert found.peak(2, 2) == found.weights + 2 * max(found.evaluation, 2 * found.decoding)
    assert "TFLOP" in found.describe(1, 100, 2)


def test_what_is_counted_is_what_is_kept_and_told_of_large_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_pipeline(tmp_path / "sd")
    model = load_diffusion(tmp_path / "sd")
    found = budget(model.unet.config, model.vae.config, (16, 16), dtype=torch.float32)
    latents, text = torch.zeros(2, 4, 8, 8, requires_grad=True), torch.zeros(2, 77, 16)
    kept, flops = counted(model.unet, lambda: model.unet(latents, torch.zeros(2), text).sample)
    assert kept <= found.evaluation < 2 * kept
    assert flops <= found.flops < 1.5 * flops
    large = "a step takes about"
    setting = {"pictures": 2, "evaluations": 8}
    caplog.set_level("INFO", "robustclip")
    report_budget(model, (16, 16), **setting)
    assert large not in caplog.text
    monkeypatch.setattr(module, "LARGE", 1000)
    report_budget(model, (16, 16), **setting)
    assert large in caplog.text
    monkeypatch.setattr(module, "free_memory", lambda _: 1e6)
    with pytest.raises(UsageError, match="--batch-size 1"):
        report_budget(model, (16, 16), **setting)


def test_the_plan_of_mi_tune_counts_evaluations_of_the_denoiser(tmp_path: Path) -> None:
    """On SD 2.1-base's published configs: its 866 million weights, and about 0.8 TFLOP an evaluation."""
    with torch.device("meta"):
        weights = sum(one.numel() for one in UNet2DConditionModel.from_config(CONFIGS["unet"]).parameters())
    assert round(weights / 1e6) == 866
    found = plan_tuning()
    assert found["samples"] == 35_000
    assert found["sampling EFLOP"] == pytest.approx(7e6 * 0.8e-6, rel=0.1)
    assert found["training EFLOP"] == pytest.approx(3 * 0.12e6 * 0.8e-6, rel=0.1)
    assert plan_tuning(rounds=2, by="gap")["sampling EFLOP"] == pytest.approx(
        2 * found["sampling EFLOP"] * (200 + 64) / 200
    )
    tiny_pipeline(tmp_path / "sd")
    assert 0 < plan_tuning(model=str(tmp_path / "sd"), size=16)["sampling EFLOP"] < 1e-3
    done = CliRunner().invoke(app, ["plan", "mi-tune", "--count", "10"])
    assert done.exit_code == 0
    assert "GPU hours" in done.output
    with pytest.raises(UsageError):
        plan_tuning(model=str(tmp_path / "nowhere"))


def test_a_plan_of_doodl_tells_memory_and_time_before_anything_is_loaded(tmp_path: Path) -> None:
    tiny_pipeline(tmp_path / "sd")
    setting: dict[str, Any] = {"model": str(tmp_path / "sd"), "size": 16, "steps": 10}
    ours, paper = plan_doodl(**setting), plan_doodl(**setting, sampler="edict", chain_steps=50)
    assert (ours["evaluations a sample"], paper["evaluations a sample"]) == (20, 100)
    assert 4.5 < paper["seconds a step"] / ours["seconds a step"] < 5.5
    two = plan_doodl(**setting, batch_size=2)
    assert two["TFLOP a step"] == pytest.approx(2 * ours["TFLOP a step"])
    assert two["peak GB"] - ours["peak GB"] == pytest.approx(ours["peak GB"] - ours["weights GB"])
    assert ours["minutes"] == pytest.approx(10 * ours["seconds a step"] / 60)
    for wrong in ({"size": 17}, {"chain_steps": 30}, {"model": str(tmp_path)}):
        with pytest.raises(UsageError):
            plan_doodl(**setting | wrong)


@pytest.mark.slow
def test_doodl_with_stable_diffusion_fits_one_gpu_of_24_gb() -> None:
    """EDICT at 50 steps and 512 pixels, as in the paper; the release ran out of 40 GB with several guides."""
    found = plan_doodl(sampler="edict", chain_steps=50)
    assert 8 < found["peak GB"] < 16
    assert 300 < found["TFLOP a step"] < 600
