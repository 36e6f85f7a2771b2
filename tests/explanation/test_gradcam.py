"""Class activation maps against the formulas by hand, and ROAD."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import ROADCombined
from torch import Tensor, nn
from torch.nn import functional as F
from towers import TIMM_RESNET, VIT, referee_of

from robustclip.errors import UsageError, coded
from robustclip.explanation.gradcam import CAMS, activation_maps, road
from robustclip.explanation.layers import Layer, choose_layer
from robustclip.explanation.maps import Mapper
from robustclip.referees.base import TwoTower


def by_hand(referee: TwoTower, layer: Layer, pixels: Tensor, texts: Tensor, *, class_token: bool = False) -> Tensor:
    """GradCAM as its paper has it, image by image: ReLU of activations weighted by pooled gradients, then 0 to 1."""
    maps = []
    for image, text in zip(pixels, texts, strict=True):
        kept: list[Tensor] = []
        handle = layer.module.register_forward_hook(lambda *seen, kept=kept: kept.append(seen[-1]))
        embedding = referee.image_tower(image[None].clone().requires_grad_())
        handle.remove()
        logit = 10 * (F.normalize(embedding, dim=-1) @ text).sum()
        (gradient,) = torch.autograd.grad(logit, kept[0])
        activations, gradients = layer.as_map(kept[0])[0], layer.as_map(gradient)[0]
        weights = gradient[0, 0] if class_token else gradients.mean((1, 2))
        heat = F.relu((weights[:, None, None] * activations).sum(0))
        heat = (heat - heat.min()) / heat.max()
        heat = F.interpolate(heat[None, None], pixels.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
        maps.append((heat - heat.min()) / (heat - heat.min()).max())
    return torch.stack(maps).detach()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["CNN", "ViT", "ViT by the class token"])
def test_gradcam_is_that_of_the_paper(kind: str, pixels: Tensor) -> None:
    class_token = kind.endswith("token")
    referee = referee_of(TIMM_RESNET if kind == "CNN" else VIT, 64)
    layer = choose_layer(referee, "trunk.layer2" if kind == "CNN" else None, at_output=class_token)
    texts = referee.embed_texts(["a", "b", "c"])
    method = "gradcam-cls" if class_token else "gradcam"
    maps = activation_maps(referee.image_tower, pixels, texts, layer, method, logit_scale=10)
    assert maps.amax((1, 2)).min() > 0.99
    expected = by_hand(referee, layer, pixels, texts, class_token=class_token)
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=0)


class Whole(nn.Module):
    """A tower without frozen weights, as the engine takes it by itself."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels.requires_grad_())


@pytest.mark.parametrize("target", ["cosine", "logit", "softmax"])
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "scorecam"])
def test_maps_are_the_engines_own_of_the_target(method: str, target: str, pixels: Tensor) -> None:
    referee = referee_of(TIMM_RESNET, 64)
    referee.logit_scale = 30.0
    layer = choose_layer(referee, "trunk.layer2")
    texts = referee.embed_texts(["a", "b", "c"])

    def value(row: int) -> Any:
        def of(embedding: Tensor) -> Tensor:
            cosines = F.normalize(embedding, dim=-1) @ texts.T
            found = {"cosine": cosines, "logit": 30 * cosines, "softmax": (30 * cosines).softmax(0)}
            return found[target][row]

        return of

    engine = CAMS[method](Whole(referee.image_tower), [layer.module])
    expected = torch.as_tensor(engine(pixels, targets=[value(row) for row in range(3)]))
    engine.activations_and_grads.release()
    mapper = Mapper(referee, method, "trunk.layer2", target=target)  # type: ignore[arg-type]
    maps = activation_maps(
        referee.image_tower,
        pixels,
        texts,
        layer,
        method,
        logit_scale=1.0 if target == "cosine" else 30.0,
        among=texts if target == "softmax" else None,
    )
    torch.testing.assert_close(maps, expected, atol=1e-4, rtol=0)
    told = {"cosine": "cosine", "logit": "logit (30 x cosine)", "softmax": "softmax of logits (30 x cosine)"}
    assert mapper.target_in_words == told[target]


def test_the_target_matters_to_gradcam_plus_plus_and_not_to_gradcam() -> None:
    referee = referee_of(TIMM_RESNET, 64)
    referee.logit_scale = 30.0
    images, texts = torch.rand(2, 3, 64, 64), referee.embed_texts(["a", "b"])
    for method, differs in (("gradcam", False), ("layercam", False), ("gradcam++", True)):
        maps = {
            target: Mapper(referee, method, "trunk.layer2", target=target)(images, texts, ["1", "2"]).maps
            for target in ("cosine", "logit", "softmax")
        }
        assert ((maps["cosine"] - maps["logit"]).abs().max() > 1e-3) == differs, method
        assert (maps["softmax"] - maps["logit"]).abs().max() > 1e-3, method
    assert torch.equal(Mapper(referee, "gradcam++", "trunk.layer2")(images, texts, ["1", "2"]).maps, maps["logit"])


def test_targets_that_cannot_be() -> None:
    referee = referee_of(TIMM_RESNET, 64)
    images, texts = torch.rand(2, 3, 64, 64), referee.embed_texts(["a"]).expand(2, -1)
    with pytest.raises(UsageError, check=coded("one_text")):
        Mapper(referee, target="softmax")(images, texts, ["1", "2"])
    for method in ("gradient", "smoothgrad", "eigencam"):
        with pytest.raises(UsageError, check=coded("unneeded_target", target="cosine")):
            Mapper(referee, method, target="cosine")
        assert Mapper(referee, method).target_in_words == ("" if method == "eigencam" else "cosine")
    with pytest.raises(UsageError, check=coded("unknown_target", given="loss")):
        Mapper(referee, target="loss")  # type: ignore[arg-type]


def test_plain_gradcam_behind_the_last_block_is_zero_and_the_class_token_is_not(pixels: Tensor) -> None:
    referee = referee_of(VIT, 64)
    layer = choose_layer(referee, at_output=True)
    texts = referee.embed_texts(["a", "b", "c"])
    assert activation_maps(referee.image_tower, pixels, texts, layer, "gradcam").eq(0).all()
    assert activation_maps(referee.image_tower, pixels, texts, layer, "gradcam-cls").amax((1, 2)).min() > 0.99


@pytest.mark.parametrize("method", CAMS)
def test_no_state_is_left_on_the_tower(method: str, pixels: Tensor) -> None:
    referee = referee_of(VIT, 64)
    tower = referee.image_tower.train()
    tower.conv1.weight.requires_grad_(True).grad = torch.ones_like(tower.conv1.weight)
    layer = choose_layer(referee, at_output=method == "gradcam-cls")
    texts = referee.embed_texts(["a", "b", "c"])
    seen = activation_maps(tower, pixels, texts, layer, method)
    assert seen.shape == (3, 64, 64)
    assert seen.isfinite().all()
    assert 0 <= seen.min() <= seen.max() <= 1
    assert tower.training
    assert tower.conv1.weight.requires_grad
    assert tower.conv1.weight.grad.eq(1).all()
    assert not any(module._forward_hooks or module._backward_hooks for module in tower.modules())


def test_hooks_are_removed_after_an_error(pixels: Tensor) -> None:
    referee = referee_of(VIT, 64)
    layer = choose_layer(referee)
    referee.image_tower.transformer.resblocks.append(nn.Linear(7, 7).requires_grad_(False))
    with pytest.raises((RuntimeError, TypeError)) as caught:  # kept: its frames hold what else would be collected
        activation_maps(referee.image_tower, pixels, torch.ones(3, 16), layer, "gradcam")
    assert caught
    assert not any(module._forward_hooks for module in referee.image_tower.modules())
    assert not any(parameter.requires_grad for parameter in referee.image_tower.parameters())


def test_half_precision_shows_nearly_the_same(pixels: Tensor) -> None:
    referee = referee_of(VIT, 64)
    layer = choose_layer(referee)
    texts = referee.embed_texts(["a", "b", "c"])
    exact, half = (
        activation_maps(referee.image_tower, pixels, texts, layer, "gradcam", dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.float32
    assert 0 < (exact - half).abs().mean() < 0.02


def test_a_text_changes_the_map_and_its_batch_does_not(pixels: Tensor) -> None:
    referee = referee_of(VIT, 64)
    layer = choose_layer(referee)
    texts = referee.embed_texts(["a", "b"])
    both = activation_maps(referee.image_tower, pixels[:1].expand(2, -1, -1, -1), texts, layer, "gradcam")
    alone = activation_maps(referee.image_tower, pixels[:1], texts[1:], layer, "gradcam")
    assert (both[0] - both[1]).abs().max() > 0.1
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)


def brightness(images: Tensor) -> Tensor:
    """A score whose faithful map is known: the mean of the upper left quarter."""
    return images[:, :, :8, :8].mean((1, 2, 3))


def test_road_prefers_the_map_that_is_true() -> None:
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.2
    images[:, :, :8, :8] += 0.8
    true = torch.zeros(1, 16, 16)
    true[:, :8, :8] = 1
    true += 1e-3 * torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(2))  # ranks without ties
    true /= true.max()
    found = [float(road(brightness, images, heat, ids=["a"], seed=0)) for heat in (true, 1 - true)]
    assert found[0] > 0.1
    assert found[1] < -0.1


def test_road_is_the_engines() -> None:
    """On a model that is a referee's cosine, with the same noise, where nothing leaves [0,1]."""
    images = 0.4 + 0.2 * torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    heat = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(4))

    class Model(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return brightness(pixels)[:, None]

    percentiles = [20, 60]
    theirs = ROADCombined([100 - percent for percent in percentiles])
    targets = [lambda output: output[0]] * 2
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it asks NumPy about tensors
        torch.manual_seed(0)
        expected = theirs(images, heat.numpy(), targets, Model())
    found = road(brightness, images, heat, ids=["a", "b"], seed=0, percentiles=percentiles)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)


def test_road_draws_from_its_seed_alone() -> None:
    images, heat = torch.rand(2, 3, 16, 16), torch.rand(2, 16, 16)
    before = torch.random.get_rng_state()
    first, again, other = (road(brightness, images, heat, ids=["a", "b"], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(road(brightness, images[1:], heat[1:], ids=["b"], seed=0), first[1:])
    assert torch.equal(before, torch.random.get_rng_state())
