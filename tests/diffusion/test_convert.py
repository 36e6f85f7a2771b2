"""`robustclip convert taming-vqgan`: the folder that it writes, and the config that it holds a checkpoint against."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import VQModel

from robustclip.cli import main
from robustclip.diffusion.convert import Layout, check_config, convert, from_weights
from robustclip.diffusion.vqgan import load_vqgan
from robustclip.errors import UsageError, coded

from .taming_layout import TamingVQGAN

CONFIG = """
model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 6
    n_embed: 10
    ddconfig:
      double_z: false
      z_channels: 8
      resolution: 128
      in_channels: 3
      out_ch: 3
      ch: 32
      ch_mult: [1, 2, 2]
      num_res_blocks: 1
      attn_resolutions: [64, 32]
      dropout: 0.0
    lossconfig:
      target: taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator
"""
"""Of the tiny network of `TamingVQGAN()`, in the form of the published ones."""


@pytest.fixture
def net() -> TamingVQGAN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TamingVQGAN().eval()


@pytest.fixture
def checkpoint(net: TamingVQGAN, tmp_path: Path) -> Path:
    torch.save({"state_dict": net.state_dict() | {"loss.a": torch.ones(1)}, "epoch": 3}, tmp_path / "last.ckpt")
    (tmp_path / "model.yaml").write_text(CONFIG)
    return tmp_path / "last.ckpt"


@pytest.fixture
def layout(net: TamingVQGAN) -> Layout:
    return from_weights(net.state_dict(), "x").layout


def test_the_folder_is_loaded_here_and_by_diffusers(net: TamingVQGAN, checkpoint: Path, tmp_path: Path) -> None:
    made = convert(checkpoint, model_yaml=tmp_path / "model.yaml", out=tmp_path / "tiny")
    assert (made.folder, made.tensors) == (tmp_path / "tiny", len(net.state_dict()))
    assert "10 codes of 6 channels, each for 4x4 pixels; dropped: 1 tensors of the training loss" in str(made)
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    here = load_vqgan(str(tmp_path / "tiny"), torch.device("cpu"))
    there = VQModel.from_pretrained(tmp_path / "tiny", low_cpu_mem_usage=False)
    assert there.config.sample_size == 128
    with torch.no_grad():
        latents = net.encode(images * 2 - 1)
        assert torch.allclose(here.encode(images), latents, atol=1e-5)
        assert torch.allclose(here.decode(latents), (net.decode(latents) + 1) / 2, atol=1e-5)
        assert torch.allclose(there.encode(images * 2 - 1).latents, latents, atol=1e-5)
    assert not [path.name for path in tmp_path.iterdir() if "partial" in path.name]


def test_the_command(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["convert", "taming-vqgan", str(checkpoint), "--out", str(tmp_path / "tiny")]
    with pytest.raises(SystemExit) as ending:
        main([*call, "--json", str(tmp_path / "numbers.json")])
    assert not ending.value.code
    told = capsys.readouterr().out
    assert "10 codes of 6 channels" in told
    assert f"next: robustclip synthesize vqgan 'a cat' --model {tmp_path / 'tiny'}" in told
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["layout"]["channels"] == [32, 64, 64]
    assert numbers["dropped"] == {"of the training loss: LPIPS and the discriminator": 1}
    with pytest.raises(SystemExit) as ending:
        main(call)
    assert ending.value.code == 2
    assert "tiny exists: write elsewhere" in capsys.readouterr().err


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    torch.save({"visual.proj": torch.ones(2, 2)}, tmp_path / "clip.ckpt")
    with pytest.raises(UsageError, check=coded("not_a_vqgan")):
        convert(tmp_path / "clip.ckpt", out=tmp_path / "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.ckpt"]


def test_a_config_says_the_resolution(layout: Layout, tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(CONFIG)
    assert check_config(layout, path) == 128
    path.write_text("model: {params: {first_stage_config: {params: {embed_dim: 6, ddconfig: {ch: 32}}}}}")
    assert check_config(layout, path) == 256, "of a transformer; nothing is said, and 256 is usual"


@pytest.mark.parametrize(
    ("old", "new", "check"),
    [
        ("n_embed: 10", "n_embed: 16384", coded("other_config", differences={"n_embed": (16384, 10)})),
        ("embed_dim: 6", "embed_dim: '6'", coded("other_config", differences={"embed_dim": ("6", 6)})),
        ("ch: 32", "ch: 128", coded("other_config", differences={"ch": (128, 32)})),
        ("[1, 2, 2]", "[1, 1, 2, 2, 4]", coded("other_config", differences={"ch_mult": ([1, 1, 2, 2, 4], [1, 2, 2])})),
        ("[1, 2, 2]", "{a: 1}", coded("other_config", differences={"ch_mult": ({"a": 1}, [1, 2, 2])})),
        ("num_res_blocks: 1", "num_res_blocks: 2", coded("other_config", differences={"num_res_blocks": (2, 1)})),
        ("[64, 32]", "[16]", coded("other_config", differences={"attn_resolutions": ([16], [64, 32])})),
        ("z_channels: 8", "z_channels: 256", coded("other_config", differences={"z_channels": (256, 8)})),
        ("double_z: false", "double_z: true", coded("other_config", differences={"double_z": (True, False)})),
        ("resolution: 128", "resolution: many", coded("not_a_size", resolution="many")),
        ("ddconfig", "config", coded("not_a_config")),
        (CONFIG, "", coded("not_a_config")),
        (CONFIG, "[1, 2", coded("not_yaml")),
        (CONFIG, "model: !!python/object/apply:os.system [touch pwned]", coded("not_yaml")),
        (CONFIG, "[" * 1500, coded("not_yaml")),
        (CONFIG, "model: " + "9" * 70_000, coded("too_large", limit=65536)),
    ],
)
def test_a_config_of_another_network_is_refused(old: str, new: str, check, layout: Layout, tmp_path: Path) -> None:
    assert old in CONFIG
    (tmp_path / "model.yaml").write_text(CONFIG.replace(old, new, 1))
    with pytest.raises(UsageError, check=check):
        check_config(layout, tmp_path / "model.yaml")


def test_yamls_references_do_not_fill_the_memory(layout: Layout, tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    (tmp_path / "model.yaml").write_text("\n".join(lines) + "\nmodel: {params: {ddconfig: {ch_mult: *a19}}}")
    with pytest.raises(UsageError, match="alias", check=coded("not_yaml")):
        check_config(layout, tmp_path / "model.yaml")
