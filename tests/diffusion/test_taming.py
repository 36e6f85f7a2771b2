"""Checkpoints of taming-transformers as models of diffusers, and what is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustclip.diffusion.convert import Taming, from_weights, read_taming
from robustclip.errors import RunError, UsageError, coded

from .taming_layout import TamingVQGAN

LOSS = {"loss.perceptual_loss.lin0.weight": torch.ones(1), "loss.discriminator.main.0.weight": torch.ones(2)}


def lively(**shape: object) -> TamingVQGAN:
    """A tiny network whose every weight matters: none near 0 or 1."""
    made = TamingVQGAN(**shape).eval()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 * fan**-0.5)
            if parameter.ndim == 1:
                parameter.add_(0.5)
    return made


@pytest.fixture(scope="module")
def net() -> TamingVQGAN:
    return lively()


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"channels": (32, 32, 64), "attention": (2,), "blocks": 2},
        {"channels": (32, 64), "attention": (), "blocks": 1},
        {"channels": (32, 64), "attention": (0, 1), "blocks": 2},
    ],
    ids=str,
)
def test_the_converted_network_is_the_same_function(shape: dict[str, object]) -> None:
    net = lively(**shape)
    taming = from_weights(net.state_dict() | LOSS, "x.ckpt")
    assert taming.dropped == {"of the training loss: LPIPS and the discriminator": 2}
    net, model = net.double(), taming.model().double()  # so that rounding hides nothing
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    with torch.no_grad():
        latent, theirs = net.encode(images), model.encode(images).latents
        assert latent.shape[2:] == (16 // taming.layout.factor, 24 // taming.layout.factor)
        assert latent.std() > 0.1
        torch.testing.assert_close(theirs, latent, rtol=0, atol=1e-9)
        decoded = net.decode(latent)
        assert decoded.shape == images.shape
        assert decoded.std() > 0.1
        torch.testing.assert_close(model.decode(latent, force_not_quantize=True).sample, decoded, rtol=0, atol=1e-9)
        torch.testing.assert_close(model.quantize.embedding.weight, net.quantize.embedding.weight, rtol=0, atol=0)


@pytest.mark.parametrize("codes", [1024, 16384])
def test_the_published_layouts_are_mapped_whole(codes: int) -> None:
    """vqgan_imagenet_f16_1024 and _16384: ch 128, ch_mult 1,1,2,2,4, 2 blocks, attention at 16 of 256 pixels."""
    with torch.device("meta"):
        net = TamingVQGAN((128, 128, 256, 256, 512), 2, (4,), 256, 256, codes)
    taming = from_weights(net.state_dict(), "last.ckpt")
    assert taming.layout.factor == 16
    assert taming.layout.codes == codes
    assert sum(map(Tensor.numel, taming.weights.values())) == sum(map(Tensor.numel, net.state_dict().values()))
    config = taming.layout.config()
    assert config["down_block_types"] == ("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",)
    assert config["up_block_types"] == ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4
    assert (config["latent_channels"], config["vq_embed_dim"], config["layers_per_block"]) == (256, 256, 2)


def lightning(weights: dict[str, Tensor]) -> dict[str, object]:
    """What Lightning writes: weights among the loop's own things."""
    return {
        "epoch": 3,
        "global_step": 100,
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(1.0), "best_model_path": "a.ckpt"}},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.5, 0.9)}]}],
        "state_dict": weights,
    }


def test_a_checkpoint_of_lightning_is_read(net: TamingVQGAN, tmp_path: Path) -> None:
    torch.save(lightning(net.state_dict() | LOSS), tmp_path / "last.ckpt")
    taming = read_taming(tmp_path / "last.ckpt")
    assert taming.weights.keys() == from_weights(net.state_dict(), "x").weights.keys()
    found = taming.weights["decoder.up_blocks.0.attentions.1.to_out.0.weight"]
    assert torch.equal(found, net.state_dict()["decoder.up.2.attn.1.proj_out.weight"][:, :, 0, 0])


def test_old_lightnings_keys_are_classes_and_are_not_run(
    net: TamingVQGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    torch.save({"callbacks": {callback: {"best": 1.0}}, "state_dict": net.state_dict()}, tmp_path / "last.ckpt")
    monkeypatch.undo()
    assert isinstance(read_taming(tmp_path / "last.ckpt"), Taming)


def test_the_first_stage_of_a_transformer_is_taken(net: TamingVQGAN) -> None:
    inside = {f"first_stage_model.{name}": value for name, value in (net.state_dict() | LOSS).items()}
    taming = from_weights(inside | {"transformer.head.weight": torch.ones(2)}, "x.ckpt")
    assert taming.dropped == {
        "of the training loss: LPIPS and the discriminator": 2,
        "of the transformer that draws codes": 1,
    }
    assert taming.weights.keys() == from_weights(net.state_dict(), "x").weights.keys()


Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (
            lambda w: w.update({"encoder.extra.weight": torch.ones(1)}),
            coded("does_not_fit", unexpected=["encoder.extra.weight"]),
        ),
        (lambda w: w.update({"quantize.beta": torch.ones(1)}), coded("does_not_fit", unexpected=["quantize.beta"])),
        (lambda w: w.update({"scheduler": torch.ones(1)}), coded("does_not_fit", unexpected=["scheduler"])),
        (
            lambda w: w.update({"decoder.up.7.block.0.norm1.bias": torch.ones(1)}),
            coded("does_not_fit", unexpected=["decoder.up.7.block.0.norm1.bias"]),
        ),
        (
            lambda w: w.pop("decoder.mid.attn_1.q.bias"),
            coded("does_not_fit", missing=["decoder.mid_block.attentions.0.to_q.bias"]),
        ),
        (lambda w: w.pop("quant_conv.weight"), coded("does_not_fit", missing=["quant_conv.weight"])),
        (lambda w: w.update({"quant_conv.bias": torch.ones(3)}), coded("does_not_fit", other=["quant_conv.bias"])),
        (
            lambda w: w.update({"quant_conv.bias": torch.ones(6, dtype=torch.int64)}),
            coded("does_not_fit", other=["quant_conv.bias"]),
        ),
        (lambda w: w.pop("encoder.conv_in.weight"), coded("not_a_vqgan", tensor="encoder.conv_in.weight")),
        (lambda w: w.pop("quantize.embedding.weight"), coded("not_a_vqgan", tensor="quantize.embedding.weight")),
        (lambda w: w.update({"quantize.embed.weight": torch.ones(2, 2)}), coded("gumbel")),
        (
            lambda w: w.update({"encoder.conv_in.weight": torch.ones(32, 1, 3, 3)}),
            coded("other_channels", channels=(1, 32, 32)),
        ),
        (
            lambda w: w.update({"encoder.conv_in.weight": torch.ones(64, 3, 3, 3)}),
            coded("other_channels", channels=(3, 64, 32)),
        ),
        (
            lambda w: w.update({"encoder.down.1.block.0.conv1.weight": torch.ones(40, 32, 3, 3)}),
            coded("other_channels", channels=40),
        ),
    ],
)
def test_what_is_another_network_is_named(change: Change, check, net: TamingVQGAN) -> None:
    weights = dict(net.state_dict())
    change(weights)
    with pytest.raises(UsageError, check=check):
        from_weights(weights, "x.ckpt")


def test_of_nothing_there_is_no_layout() -> None:
    with pytest.raises(UsageError, check=coded("not_a_vqgan")):
        from_weights({"visual.proj": torch.ones(2, 2)}, "x.ckpt")


class Payload:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (Path("pwned"),)


def test_files_that_are_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, check=coded("missing_file", path="nowhere.ckpt")):
        read_taming(Path("nowhere.ckpt"))
    Path("cut.ckpt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(RunError, check=coded("damaged", path="cut.ckpt")):
        read_taming(Path("cut.ckpt"))
    torch.save({"a": torch.ones(1).expand(10**12)}, "stretched.ckpt")
    with pytest.raises(UsageError, check=coded("stretched", names=["a"])):
        read_taming(Path("stretched.ckpt"))
    torch.save({"a": torch.tensor([1.0, torch.nan])}, "nan.ckpt")
    with pytest.raises(RunError, check=coded("not_finite", names=["a"])):
        read_taming(Path("nan.ckpt"))
    torch.save({"state_dict": {"a": torch.ones(1)}, "hyper": Payload()}, "evil.ckpt")
    with pytest.raises(UsageError, check=coded("unsafe_pickle", path="evil.ckpt")):
        read_taming(Path("evil.ckpt"))
    assert not Path("pwned").exists()
