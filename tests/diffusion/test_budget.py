"""What a chain's gradient takes, counted on meta tensors, beside what is really kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustclip.diffusion import budget as module
from robustclip.diffusion.budget import budget, counted, tell_budget
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
    assert "TFLOP" in found.told(1, 100, 2)


def test_what_is_counted_is_what_is_kept_and_told_of_large_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    tell_budget(model, (16, 16), **setting)
    assert large not in capsys.readouterr().err
    monkeypatch.setattr(module, "LARGE", 1000)
    tell_budget(model, (16, 16), **setting)
    assert large in capsys.readouterr().err
    monkeypatch.setattr(module, "free_memory", lambda _: 1e6)
    with pytest.raises(UsageError, match="--batch-size 1"):
        tell_budget(model, (16, 16), **setting)
