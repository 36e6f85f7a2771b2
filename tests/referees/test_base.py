from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustclip.errors import UsageError, coded
from robustclip.referees.base import TwoTower
from robustclip.referees.toy import ToyText, toy_referee


@pytest.fixture
def toy() -> TwoTower:
    return toy_referee(size=32)


def test_embeddings_are_unit_vectors_of_one_space(toy: TwoTower, images: Tensor) -> None:
    image_embeddings, text_embeddings = toy.embed_images(images), toy.embed_texts(["cat", "dog"])
    assert image_embeddings.shape == (3, 16)
    assert text_embeddings.shape == (2, 16)
    torch.testing.assert_close(image_embeddings.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(text_embeddings.norm(dim=-1), torch.ones(2))


def test_unnormalised_embeddings_are_the_towers_own(toy: TwoTower, images: Tensor) -> None:
    torch.testing.assert_close(toy.embed_images(images, normalize=False), toy.image_tower(toy.preprocess(images)))
    assert not torch.allclose(toy.embed_images(images, normalize=False).norm(dim=-1), torch.ones(3))


def test_pixels_of_any_size_get_gradients(toy: TwoTower) -> None:
    images = torch.rand(2, 3, 50, 40, requires_grad=True)
    toy.embed_images(images).square()[:, 0].sum().backward()
    assert images.grad is not None
    assert (images.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_texts_are_embedded_without_gradients_and_none_gives_none(toy: TwoTower) -> None:
    assert not toy.embed_texts(["cat"]).requires_grad
    assert toy.embed_texts([]).shape == (0, 16)


def test_embeddings_are_float32_under_autocast(toy: TwoTower, images: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert toy.embed_images(images).dtype == torch.float32


def test_training_mode_leaves_the_text_tower_frozen(toy: TwoTower) -> None:
    toy.train()
    assert toy.image_tower.training
    assert not toy.text_tower.training
    assert not any(parameter.requires_grad for parameter in toy.text_tower.parameters())


@pytest.mark.parametrize(
    ("bad", "check"),
    [
        (torch.rand(3, 32, 32), coded("wrong_shape", shape=(3, 32, 32))),
        (torch.rand(2, 1, 32, 32), coded("wrong_shape", shape=(2, 1, 32, 32))),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), coded("wrong_type", given=torch.uint8)),
        (torch.rand(1, 3, 32, 32) * 255, coded("pixels_out_of_range")),
        (torch.rand(1, 3, 32, 32) - 1, coded("pixels_out_of_range")),
        (torch.full((1, 3, 32, 32), torch.nan), coded("pixels_out_of_range")),
    ],
)
def test_what_is_not_an_image_is_refused(toy: TwoTower, bad: Tensor, check: Any) -> None:
    with pytest.raises(UsageError, check=check):
        toy.embed_images(bad)


def test_rounding_beyond_the_range_is_forgiven(toy: TwoTower, images: Tensor) -> None:
    toy.embed_images(images.clamp(0.0005, 1) - 0.0005)


def test_a_bare_text_is_refused(toy: TwoTower) -> None:
    with pytest.raises(UsageError, match=r"write embed_texts\(\['cat'\]\)"):
        toy.embed_texts("cat")  # type: ignore[arg-type]


def test_towers_of_different_width_are_refused() -> None:
    toy = toy_referee(width=16)
    tower = nn.Sequential(toy.image_tower, nn.BatchNorm1d(16), nn.Dropout()).train()
    with pytest.raises(UsageError, check=coded("unequal_widths", image=(1, 16), text=(1, 8))):
        TwoTower(tower, ToyText(8), toy.preprocess, card=toy.card)
    assert tower.training


def test_a_toy_is_the_same_everywhere() -> None:
    first, second = toy_referee(seed=2), toy_referee(seed=2)
    images = torch.full((1, 3, 16, 16), 0.5)
    assert torch.equal(first.embed_images(images), second.embed_images(images))
    assert torch.equal(first.embed_texts(["cat"]), second.embed_texts(["cat"]))
    assert not torch.equal(first.embed_images(images), toy_referee(seed=3).embed_images(images))


def test_a_tower_without_a_context_does_not_count() -> None:
    tower = toy_referee().text_tower
    assert tower.context is None
    with pytest.raises(NotImplementedError, match="ToyText does not count tokens"):
        tower.count_tokens(["a cat"])
