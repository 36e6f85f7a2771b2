"""timm loads the image tower from the folder, and embeds as the referee does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from robustclip.data.images import from_pil, to_pil
from robustclip.errors import UsageError, coded
from robustclip.referees.base import TwoTower, unit
from robustclip.referees.openclip import new_referee
from robustclip.referees.timm_tower import save_timm, timm_model
from robustclip.referees.toy import ToyText, toy_referee

PREPROCESS: dict[str, Any] = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}


def untrained(vision: Any, width: int = 12, **others: Any) -> TwoTower:
    """A referee of open_clip's with random weights that are not small, beside a text tower without meaning."""
    model_cfg: dict[str, Any] = {"embed_dim": width, "vision_cfg": {"image_size": 32} | vision, "text_cfg": {}} | others
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"size": model_cfg["vision_cfg"]["image_size"]}
        referee = new_referee(model_cfg, PREPROCESS | size, ToyText(width), 10.0, "untrained")
        for parameter in referee.image_tower.parameters():
            if parameter.ndim > 1 and not (parameter.ndim == 4 and "timm_model_name" in vision):
                torch.nn.init.normal_(parameter, std=0.3)
    return referee


VIT = {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "mlp_ratio": 3.0}
TOWERS: dict[str, Any] = {
    "open_clip's ViT": {"vision": VIT},
    "with QuickGELU": {"vision": VIT, "quick_gelu": True},
    "timm's classifier": {"vision": {"timm_model_name": "test_convnext", "timm_proj": ""}},
    "a projection": {"vision": {"timm_model_name": "test_convnext", "timm_proj": "linear"}},
    "a projection with a bias": {
        "vision": {"timm_model_name": "test_resnet", "timm_proj": "linear", "timm_proj_bias": True}
    },
    "no projection": {"vision": {"timm_model_name": "test_resnet", "timm_proj": "none"}, "width": 96},
    "timm's ViT": {"vision": {"timm_model_name": "test_vit", "timm_pool": "", "image_size": 160}},
}


@pytest.mark.parametrize("case", TOWERS.values(), ids=TOWERS.keys())
def test_timm_embeds_alike(case: Any, images: Tensor, tmp_path: Path) -> None:
    referee = untrained(**case)
    assert save_timm(referee, tmp_path) == ["model.safetensors"]
    tower = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pixels = torch.nn.functional.interpolate(images, referee.preprocess.size)
    with torch.no_grad():
        found = tower(referee.preprocess(pixels))
    torch.testing.assert_close(unit(found), referee.embed_images(pixels), atol=1e-5, rtol=0)
    assert tower.num_classes == (0 if case.get("width") == 96 else 12)


def test_timms_transform_gives_the_pixels(tmp_path: Path) -> None:
    referee = untrained(VIT)
    save_timm(referee, tmp_path)
    tower = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(tower))
    for size, tolerance in ((32, 1e-3), (64, 1.05)):  # in steps of 255: where it resizes, it rounds to 8 bits
        picture = to_pil(torch.rand(3, size, size, generator=torch.Generator().manual_seed(0)))
        steps = (transform(picture)[None] - referee.preprocess(from_pil(picture)[None])) * referee.preprocess.std * 255
        assert steps.abs().max() < tolerance


def test_the_config_claims_nothing_of_other_weights(tmp_path: Path) -> None:
    save_timm(untrained(TOWERS["open_clip's ViT"]["vision"]), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"license", "origin_url", "tag", "hf_hub_id", "url"} & set(config["pretrained_cfg"])
    assert config["pretrained_cfg"]["mean"] == PREPROCESS["mean"]
    assert config["model_args"]["embed_dim"] == 16


def test_half_precision(images: Tensor, tmp_path: Path) -> None:
    referee = untrained(VIT)
    save_timm(referee, tmp_path / "full")
    save_timm(referee, tmp_path / "half", half=True)
    sizes = [(tmp_path / kind / "model.safetensors").stat().st_size for kind in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    tower = timm.create_model(f"local-dir:{tmp_path / 'half'}", pretrained=True).eval()
    with torch.no_grad():
        found = unit(tower(referee.preprocess(images)))
    assert 1e-6 < (found - referee.embed_images(images)).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("vision", "fault"),
    [
        ({"timm_model_name": "test_resnet", "timm_proj": "mlp"}, "timm_proj='mlp'"),
        ({"timm_model_name": "resnet10t", "timm_proj": "", "timm_pool": "abs_attn"}, "timm_pool='abs_attn'"),
        ({"layers": [1, 1, 1, 1], "width": 8, "head_width": 8}, "a ResNet"),
        (VIT | {"ls_init_value": 0.1}, "ls_init_value=0.1"),
    ],
)
def test_what_timm_has_not(vision: Any, fault: str) -> None:
    size = {"image_size": 64} if "timm_model_name" in vision else {}
    with pytest.raises(UsageError, check=coded("unsupported"), match=fault):
        timm_model(untrained(vision | size))


def test_a_toy_is_no_model_of_timm() -> None:
    with pytest.raises(UsageError, check=coded("unsupported_family", family="toy")):
        timm_model(toy_referee())
