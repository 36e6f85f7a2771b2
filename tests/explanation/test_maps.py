"""Maps of a referee: their frame, their scale, and what is said of those that show nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from towers import VIT, referee_of

from robustclip import load_referee
from robustclip.errors import UsageError, coded
from robustclip.explanation.gradients import input_gradients, smooth_gradients, strength
from robustclip.explanation.maps import METHODS, Mapper
from robustclip.referees.base import TwoTower
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.toy import toy_referee

IDS = ["a", "b"]


@pytest.fixture(scope="module")
def referee() -> TwoTower:
    return referee_of(VIT, 32)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 40, 60, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", METHODS)
def test_maps_have_the_images_size_and_reach_one(method: str, referee: TwoTower, images: Tensor) -> None:
    found = Mapper(referee, method)(images, referee.embed_texts(IDS), IDS)
    assert found.maps.shape == (2, 40, 60)
    assert found.maps.dtype == torch.float32
    for heat, empty in zip(found.maps, found.empty, strict=True):
        assert 0 <= heat.min() <= heat.max() == (0 if empty else 1)


@pytest.mark.parametrize("method", METHODS)
def test_maps_do_not_depend_on_the_batch(method: str, referee: TwoTower, images: Tensor) -> None:
    texts = referee.embed_texts(IDS)
    together = Mapper(referee, method)(images, texts, IDS)
    apart = Mapper(referee, method, batch_size=1)(images, texts, IDS)
    torch.testing.assert_close(together.maps, apart.maps, atol=1e-4, rtol=0)


def test_an_empty_map_is_said_to_be_empty(referee: TwoTower, images: Tensor) -> None:
    mapper = Mapper(referee, "gradcam", "transformer.resblocks.1")
    found = mapper(images, referee.embed_texts(IDS), IDS)
    assert found.empty.all()
    assert not found.maps.any()
    assert "only the class token" in mapper.why_empty()
    assert "gradcam-cls" in mapper.why_empty()
    assert "nothing at transformer.resblocks.1.ln_1 supports the text" in Mapper(referee, "gradcam++").why_empty()


def test_a_map_that_is_not_finite_is_empty(images: Tensor) -> None:
    referee = toy_referee()
    referee.image_tower[0].weight.data[0, 0, 0, 0] = torch.nan
    found = Mapper(referee, "gradient")(images, referee.embed_texts(IDS), IDS)
    assert found.empty.all()
    assert not found.maps.any()


def test_the_gradients_map_is_its_length_over_channels(referee: TwoTower, images: Tensor) -> None:
    texts = referee.embed_texts(IDS)
    lengths = input_gradients(referee, images, texts).square().sum(1).sqrt()
    expected = lengths / lengths.amax((1, 2), keepdim=True)
    torch.testing.assert_close(Mapper(referee, "gradient")(images, texts, IDS).maps, expected)


def test_smoothgrad_of_a_linear_score_is_its_gradient() -> None:
    """There noise changes nothing: cosines are linear in the pixels up to their embedding's length."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 3 * 16 * 16, generator=torch.Generator().manual_seed(0)))

        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.flatten(1) @ self.weight.T

    referee = toy_referee()
    referee.image_tower = Linear()
    images, texts = torch.full((2, 3, 16, 16), 0.5), referee.embed_texts(IDS)
    exact = input_gradients(referee, images, texts)
    smooth = smooth_gradients(referee, images, texts, IDS, seed=0, sigma=1e-4)
    torch.testing.assert_close(smooth, exact, atol=1e-3 * float(exact.abs().max()), rtol=0)
    rough = smooth_gradients(referee, images, texts, IDS, seed=0, samples=2)
    assert (rough - exact).abs().max() > (smooth - exact).abs().max()


def test_smoothgrad_is_keyed_by_seed_and_id(referee: TwoTower, images: Tensor) -> None:
    texts = referee.embed_texts(IDS)
    first, again, other = (
        smooth_gradients(referee, images, texts, ids, seed=0, samples=2) for ids in (IDS, IDS, ["a", "c"])
    )
    assert torch.equal(first, again)
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_strength_cancels_no_signs() -> None:
    gradients = torch.tensor([3.0, -4.0, 0.0]).view(1, 3, 1, 1)
    assert strength(gradients).item() == 5


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (32, 32), (20, 90), (31, 47)])
@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
def test_a_map_lies_where_the_tower_looked(mode: str, size: tuple[int, int]) -> None:
    """A bright spot of an image, preprocessed, is found at its own place."""
    preprocess = Preprocess(32, resize_mode=mode, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    height, width = size
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    top, left = round(0.45 * height), round(0.55 * width)  # inside the square that "shortest" sees
    spot = torch.exp(-((rows - top) ** 2 + (columns - left) ** 2) / 18.0)
    back = preprocess.placed_back(preprocess(spot.expand(1, 3, -1, -1))[:, 0], size)[0]
    assert back.shape == size
    place = back.flatten().argmax().item()
    assert abs(place // width - top) <= 2
    assert abs(place % width - left) <= 2
    if mode == "shortest" and size == (20, 90):
        assert not back[:, :30].any()  # what was cut off was not looked at


def test_odd_padding_is_taken_off_where_it_was_put_on() -> None:
    preprocess = Preprocess(32, resize_mode="longest", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    image = torch.rand(1, 3, 29, 32)
    assert torch.equal(preprocess.placed_back(preprocess(image)[:, 0], (29, 32)), image[:, 0])


def test_what_a_referee_has_not_is_refused(referee: TwoTower) -> None:
    with pytest.raises(UsageError, check=coded("unknown_method", given="gradcamm")):
        Mapper(referee, "gradcamm")
    with pytest.raises(UsageError, check=coded("unneeded_layer", layer="ln_pre")):
        Mapper(referee, "gradient", "ln_pre")
    with pytest.raises(UsageError, check=coded("no_class_token", layer="trunk.layer2.0")):
        Mapper(load_referee("emoji-robust"), "gradcam-cls")


def test_scores_are_cosines(referee: TwoTower, images: Tensor) -> None:
    texts = referee.embed_texts(IDS)
    expected = (referee.embed_images(images) * texts).sum(1)
    torch.testing.assert_close(Mapper(referee, batch_size=1).scores(images, texts), expected)
