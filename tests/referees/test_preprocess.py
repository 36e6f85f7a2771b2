from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms.functional import to_pil_image, to_tensor

from robustclip.errors import UsageError, coded
from robustclip.referees.preprocess import Preprocess


def smooth(height: int, width: int) -> Image.Image:
    """A picture without edges, where bicubic resizing does not overshoot."""
    coarse = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    return to_pil_image(torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0])


@pytest.mark.parametrize("size", [(64, 64), (48, 90), (90, 48), (20, 31), (32, 32)])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_agrees_with_open_clips_transform(size: tuple[int, int], resize_mode: str, interpolation: str) -> None:
    picture = smooth(*size)
    expected = image_transform_v2(
        PreprocessCfg(size=32, interpolation=interpolation, resize_mode=resize_mode), is_train=False
    )(picture)
    found = Preprocess(32, interpolation=interpolation, resize_mode=resize_mode)(to_tensor(picture)[None])[0]
    assert found.shape == (3, 32, 32)
    assert (found - expected).abs().max() < 1.2 / 255 / 0.26  # PIL rounds to 8 bits between the passes


@pytest.mark.parametrize("size", [(1, 300), (300, 1)])
def test_a_strip_keeps_one_pixel_of_its_shorter_side(size: tuple[int, int]) -> None:
    preprocess = Preprocess(32, resize_mode="longest", mean=(0.0,) * 3, std=(1.0,) * 3)
    found = preprocess(torch.ones(1, 3, *size))[0, 0]
    assert found.shape == (32, 32)
    assert found.sum().item() == pytest.approx(32)
    assert preprocess.placed_back(found[None], size).shape == (1, *size)


def test_a_target_that_is_not_square_agrees_too() -> None:
    picture = smooth(50, 40)
    expected = image_transform_v2(PreprocessCfg(size=(16, 32)), is_train=False)(picture)
    found = Preprocess((16, 32))(to_tensor(picture)[None])[0]
    assert (found - expected).abs().max() < 1.2 / 255 / 0.26


@pytest.mark.parametrize("size", [(48, 90), (91, 48), (20, 31), (32, 32), (33, 65)])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_exact_equals_pillow_on_noise(size: tuple[int, int], resize_mode: str, interpolation: str) -> None:
    """Noise overshoots; without `exact`, values differ by up to 29/255 here."""
    picture = to_pil_image(torch.rand(3, *size, generator=torch.Generator().manual_seed(1)))
    config = PreprocessCfg(size=32, interpolation=interpolation, resize_mode=resize_mode)
    expected = image_transform_v2(config, is_train=False)(picture)
    preprocess = Preprocess(32, interpolation=interpolation, resize_mode=resize_mode)
    preprocess.exact = True
    off = ((preprocess(to_tensor(picture)[None])[0] - expected) * preprocess.std[0] * 255).abs()
    assert off.max() < 1e-3


def test_the_gradient_of_exact_is_that_of_no_rounding() -> None:
    images = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0)).round().requires_grad_()  # saturated
    weights = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    gradients = []
    for exact in (False, True):
        preprocess = Preprocess(16)
        preprocess.exact = exact
        gradients.append(torch.autograd.grad(preprocess(images).mul(weights).sum(), images)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("size", [(40, 32), (47, 32), (32, 65)])
@pytest.mark.parametrize("options", [{"resize_to": 40}, {"resize_to": (36, 40), "resize_mode": "squash"}])
def test_maps_are_placed_back_where_a_crop_was_cut(size: tuple[int, int], options: dict[str, Any]) -> None:
    preprocess = Preprocess(32, crop="floor", **options)
    spot = torch.zeros(1, 3, *size)
    top, left = size[0] // 2 - 4, size[1] // 2 - 4
    spot[..., top : top + 4, left : left + 4] = 1
    back = preprocess.placed_back(preprocess.resize(spot)[:, 0], size)[0]
    assert back.shape == size
    place = divmod(int(back.argmax()), size[1])
    assert abs(place[0] - top - 2) <= 2
    assert abs(place[1] - left - 2) <= 2


def test_native_size_is_only_normalised() -> None:
    images = torch.rand(2, 3, 16, 16)
    preprocess = Preprocess(16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    assert torch.equal(preprocess(images), (images - preprocess.mean) / preprocess.std)
    assert torch.equal(preprocess.resize(images), images)


def test_shrinking_is_antialiased() -> None:
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    assert (Preprocess(16).resize(stripes) - 0.5).abs().max() < 0.05


def test_gradients_pass_saturated_pixels_when_enlarging() -> None:
    images = torch.ones(1, 3, 16, 16)
    images[..., 4:8, 4:8] = 0
    images.requires_grad_()
    Preprocess(32).resize(images).sum().backward()
    assert images.grad is not None
    assert (images.grad > 0).all()


def test_config_round_trips() -> None:
    preprocess = Preprocess((8, 16), mean=(0.1, 0.2, 0.3), interpolation="bilinear", resize_mode="squash", fill_color=7)
    beyond = Preprocess(8, resize_to=10, crop="floor", resize_mode="none")
    assert Preprocess.from_config(beyond.config()).config() == beyond.config()
    again = Preprocess.from_config(preprocess.config())
    assert again.config() == preprocess.config()
    assert torch.equal(again.mean, preprocess.mean)
    assert PreprocessCfg(**preprocess.config()).resize_mode == "squash"


@pytest.mark.parametrize(
    ("config", "check"),
    [
        ({"size": 8, "interpolation": "lanczos"}, coded("unknown_choice", argument="interpolation", given="lanczos")),
        ({"size": 8, "crop": "left"}, coded("unknown_choice", argument="crop", given="left")),
        ({"size": 8, "resize_to": 0}, coded("not_a_size", argument="resize_to", size=0)),
        ({"size": 8, "resize_mode": "crop"}, coded("unknown_choice", argument="resize_mode", given="crop")),
        ({"mean": (0, 0, 0)}, coded("wrong_entries", missing=["size"])),
        ({"size": 8, "means": 0}, coded("wrong_entries", unknown=["means"])),
        ({"size": 8, "mode": "L"}, coded("not_rgb", mode="L")),
    ],
)
def test_wrong_configs_are_refused(config: dict[str, object], check: Any) -> None:
    with pytest.raises(UsageError, check=check):
        Preprocess.from_config(config)
