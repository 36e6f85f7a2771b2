"""LPIPS with a backbone from a file is torchmetrics' with that backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from robustclip.data.images import load_image, save_image
from robustclip.errors import UsageError
from robustclip.evaluation.perceptual import SMALLEST, distance, load_lpips

pytest.importorskip("torchmetrics")
lpip: Any = pytest.importorskip("torchmetrics.functional.image.lpips")
MODELS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


def random_model(network: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = getattr(torchvision.models, MODELS[network])(weights=None)
    model.classifier = nn.Sequential(nn.Linear(2, 3))  # which is not read
    model = model.to_empty(device="cpu")
    stream = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 100
        nn.init.normal_(parameter, std=fan**-0.5, generator=stream)
    return model


def pictures(side: int) -> list[Tensor]:
    return list(torch.rand(2, 2, 3, side, side, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("network", list(MODELS))
def test_it_is_torchmetrics(network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(network)
    if network == "alex":  # as torchvision's older files
        torch.save(model.state_dict(), tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    elif network == "vgg":
        torch.save(model.state_dict(), tmp_path / "net.pth")
    else:
        save_file(model.state_dict(), tmp_path / "net.safetensors")
    found, compare = load_lpips(next(tmp_path.iterdir()))
    assert found == network

    monkeypatch.setattr(lpip, "_get_tv_model_features", lambda *_: model.features)  # in place of the download
    for side in (SMALLEST[network], 40):
        images = pictures(side)
        theirs = lpip.learned_perceptual_image_patch_similarity(*images, network, reduction="none", normalize=True)
        assert torch.equal(compare(*images), theirs)
        assert (theirs > 0).all()
    with pytest.raises(UsageError, check=lambda error: error.code == "too_small"):
        compare(*pictures(SMALLEST[network] - 1))
    with pytest.raises(UsageError, check=lambda error: error.code == "unequal_sizes"):
        compare(pictures(40)[0], pictures(50)[0])


def test_the_command_prints_it_beside_the_referees(tmp_path: Path) -> None:
    torch.save(random_model("alex").state_dict(), tmp_path / "net.pth")
    for name, images in zip("ab", pictures(40), strict=True):
        save_image(images[0], tmp_path / f"{name}.png")
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    found = distance(a, b, lpips=tmp_path / "net.pth")
    _, compare = load_lpips(tmp_path / "net.pth")
    expected = {"lpips": compare(load_image(a)[None], load_image(b)[None]).item(), "lpips_network": "alex"}
    assert found == distance(a, b) | expected


@pytest.mark.parametrize("architecture", ["vgg19", "vgg16_bn", "squeezenet1_0", "resnet18"])
def test_other_networks_are_refused(architecture: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = getattr(torchvision.models, architecture)(weights=None)
    shapes = {name: value.shape for name, value in model.state_dict().items() if not name.startswith("classifier")}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "net.safetensors")
    with pytest.raises(UsageError, check=lambda error: error.code in ("not_a_backbone", "does_not_fit")):
        load_lpips(tmp_path / "net.safetensors")
