"""A VQGAN's folder: one that diffusers wrote, one that is written here, and what is none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import load_file, save_file

from robustclip.canvases import Codes
from robustclip.diffusion import vqgan
from robustclip.diffusion.vqgan import CARD, CONFIG, VQGAN, WEIGHTS, load_vqgan, save_vqgan
from robustclip.errors import RunError, UsageError, coded
from robustclip.runs.files import sha256
from robustclip.runs.rng import generator, seeded


def tiny(**changes: object) -> VQModel:
    """A VQModel of milliseconds, 4 pixels a code, whose latents have other channels than its codes."""
    shape = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 8, 16),
        "latent_channels": 6,
        "vq_embed_dim": 4,
        "num_vq_embeddings": 16,
        "norm_num_groups": 4,
    }
    with seeded(0, "tiny"):
        model = VQModel(**{**shape, **changes})
        with torch.no_grad():
            model.quantize.embedding.weight.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def model() -> VQModel:
    return tiny()


@pytest.fixture
def folder(model: VQModel, tmp_path: Path) -> Path:
    """As diffusers itself writes it."""
    model.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def pictures(height: int = 8, width: int = 12) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_a_folder_of_diffusers_is_the_same_function(model: VQModel, folder: Path) -> None:
    made = load_vqgan(folder)
    assert (made.factor, made.channels) == (4, 4)
    assert torch.equal(made.codebook, model.quantize.embedding.weight)
    with torch.no_grad():
        latents = model.encode(pictures() * 2 - 1).latents
        assert latents.shape == (2, 4, 2, 3)
        assert torch.allclose(made.encode(pictures()), latents, atol=1e-6)
        codes = model.quantize(latents)[0]
        assert torch.allclose(made.quantise(latents), codes, atol=1e-6)
        theirs = model.decode(latents).sample  # which takes the nearest codes itself
        assert torch.allclose(made.decode(made.quantise(latents)), (theirs + 1) / 2, atol=1e-5)
    assert not made.training
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_decoded_pictures_are_not_cut(model: VQModel) -> None:
    louder = tiny()
    with torch.no_grad():
        louder.decoder.conv_out.weight.mul_(50)
        made = VQGAN(louder).decode(torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0)))
    assert made.min() < 0
    assert made.max() > 1


def test_the_nearest_code_by_hand_with_the_gradient_passing_through() -> None:
    inner = tiny(vq_embed_dim=2, num_vq_embeddings=3)
    with torch.no_grad():
        inner.quantize.embedding.weight.copy_(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, -4.0]]))
    made = VQGAN(inner)
    assert (made.low.tolist(), made.high.tolist()) == ([0.0, -4.0], [2.0, 0.0])
    latents = torch.tensor([[0.9, 0.1], [1.2, 0.3], [0.1, -2.1]]).T.reshape(1, 2, 1, 3).requires_grad_()
    codes = made.quantise(latents)
    wanted = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, -4.0]]).T.reshape(1, 2, 1, 3)
    assert torch.allclose(codes, wanted, atol=1e-6)
    weights = torch.arange(6.0).reshape(1, 2, 1, 3)
    (codes * weights).sum().backward()
    assert latents.grad is not None
    assert torch.equal(latents.grad, weights)


def test_distances_in_parts_are_those_of_the_whole(model: VQModel, monkeypatch: pytest.MonkeyPatch) -> None:
    made, latents = VQGAN(model), torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(1))
    whole = made.quantise(latents)
    monkeypatch.setattr(vqgan, "AT_ONCE", 40)  # two vectors at a time
    assert torch.equal(made.quantise(latents), whole)


def test_sides_that_are_not_whole_in_codes_are_refused_with_those_that_are(model: VQModel) -> None:
    with pytest.raises(UsageError, check=coded("size_not_divisible", size=(10, 12), fit="8x12")):
        VQGAN(model).encode(pictures(10, 12))
    with pytest.raises(UsageError, check=coded("size_not_divisible", size=(1, 3), fit="4x4")):
        VQGAN(model).encode(pictures(1, 3))


def test_it_is_the_decoder_of_the_canvas(model: VQModel) -> None:
    made = VQGAN(model)
    canvas = Codes(made, (8, 12), [generator(0, "start")])
    canvas.render()["image"].sum().backward()
    assert canvas.latent.grad is not None
    assert canvas.latent.grad.abs().max() > 0
    assert made.model.decoder.conv_out.weight.grad is None


@pytest.mark.parametrize("half", [False, True])
def test_a_folder_written_here_is_loaded_here_and_by_diffusers(model: VQModel, tmp_path: Path, half: bool) -> None:
    save_vqgan(VQGAN(model), tmp_path / "made", {"name": "tiny"}, half=half)
    card = json.loads((tmp_path / "made" / CARD).read_text())
    assert card == {"name": "tiny", "weights_sha256": sha256(tmp_path / "made" / WEIGHTS)}
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["made", CARD, CONFIG, WEIGHTS]), "and no draft"
    ours = load_vqgan(tmp_path / "made")
    theirs = VQModel.from_pretrained(tmp_path / "made", low_cpu_mem_usage=False, torch_dtype=torch.float32)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], value)
        assert torch.allclose(model.state_dict()[name], value, atol=2e-3 if half else 0)
    with pytest.raises(UsageError, check=coded("exists", path=tmp_path / "made")):
        save_vqgan(model, tmp_path / "made", {})


def test_a_write_that_fails_leaves_nothing(model: VQModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_vqgan(model, tmp_path / "made", {"psnr": float("nan")})
    assert not list(tmp_path.iterdir())


def changed(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text()) | values
        (folder / CONFIG).write_text(json.dumps(config))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return rewrite


@pytest.mark.parametrize(
    ("damage", "kind", "check"),
    [
        (lambda folder: (folder / CONFIG).unlink(), UsageError, coded("unknown_generator")),
        (lambda folder: (folder / WEIGHTS).unlink(), UsageError, coded("no_weights")),
        (lambda folder: (folder / WEIGHTS).rename(folder / "a.bin"), UsageError, coded("no_weights")),
        (lambda folder: (folder / CONFIG).write_text("{"), UsageError, coded("not_json")),
        (lambda folder: (folder / CONFIG).write_text("[]"), UsageError, coded("other_class", found=None)),
        (lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe"), UsageError, coded("not_utf8")),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 100), RunError, coded("damaged")),
        (changed(_class_name="AutoencoderKL"), UsageError, coded("other_class", found="AutoencoderKL")),
        (changed(lookup_from_codebook=True), UsageError, coded("movq")),
        (changed(block_out_channels=[]), UsageError, coded("not_a_config")),
        (changed(block_out_channels="8"), UsageError, coded("not_a_config")),
        (changed(block_out_channels=[-8, 8, 16]), UsageError, coded("not_a_config")),
        (changed(norm_num_groups=0), UsageError, coded("not_a_config")),
        (changed(norm_num_groups=3), UsageError, coded("not_a_config")),
        (changed(layers_per_block="many"), UsageError, coded("not_a_config")),
        (changed(act_fn="unheard of"), UsageError, coded("not_a_config")),
        (changed(down_block_types=["NoBlock"] * 3), UsageError, coded("not_a_config")),
        (
            changed(num_vq_embeddings=10**12),
            UsageError,
            coded("does_not_fit", shapes=["quantize.embedding.weight (16, 4) for (1000000000000, 4)"]),
        ),  # takes no memory first
        (changed(block_out_channels=[8, 8, 32]), UsageError, coded("does_not_fit")),
        (weights(lambda w: w.pop("quant_conv.bias")), UsageError, coded("does_not_fit", missing=["quant_conv.bias"])),
        (weights(lambda w: w.update(extra=torch.ones(1))), UsageError, coded("does_not_fit", unexpected=["extra"])),
        (
            weights(lambda w: w.update({"quant_conv.bias": torch.ones(9)})),
            UsageError,
            coded("does_not_fit", shapes=["quant_conv.bias (9,) for (4,)"]),
        ),
        (
            weights(lambda w: w.update({"quant_conv.bias": torch.full((4,), torch.nan)})),
            RunError,
            coded("not_finite", names=["quant_conv.bias"]),
        ),
    ],
)
def test_what_is_no_generator_is_told(
    damage: Callable[[Path], object], kind: type[Exception], check, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(kind, check=check):
        load_vqgan(folder)


def test_pictures_have_three_channels() -> None:
    with pytest.raises(UsageError, check=coded("other_channels", channels=(1, 3))):
        VQGAN(tiny(in_channels=1))


def test_another_model_of_diffusers_is_refused(tmp_path: Path) -> None:
    AutoencoderKL(block_out_channels=(32,)).save_pretrained(tmp_path / "kl")
    with pytest.raises(UsageError, match="holds a AutoencoderKL"):
        load_vqgan(tmp_path / "kl")


@pytest.mark.parametrize("name", ["nowhere", "", "a\0b", "x" * 5000, "emoji-vqgann"])
def test_a_name_of_nothing_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(UsageError, check=coded("unknown_generator", given=name)):
        load_vqgan(name)


def test_importing_robustclip_does_not_import_diffusers() -> None:
    code = "import sys, robustclip, robustclip.diffusion; print('diffusers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_without_diffusers_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "robustclip.diffusion.vqgan")
    with pytest.raises(UsageError, match=r"pip install 'robustclip\[synthesis\]'"):
        import robustclip.diffusion.vqgan  # noqa: F401
