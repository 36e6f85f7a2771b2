"""CLIPStyler's losses against values by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from robustclip.errors import UsageError, coded
from robustclip.losses.content import FeatureMatch, tower_features, vgg19
from robustclip.losses.similarity import Directional, Move, NeighbourNorms, ensembled, moves
from robustclip.referees.openclip import imagenet_templates
from robustclip.referees.registry import load_referee
from robustclip.referees.smoothed import smoothed
from robustclip.referees.toy import toy_referee
from robustclip.synthesis.terms import ZeroBelow


def pictures(count: int = 2, side: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_the_directional_loss_by_hand() -> None:
    referee, contents, made = toy_referee(), pictures(), pictures().flip(0)
    found = moves([referee], [1.0], contents, ["a cat", "a dog"], "a photo")
    loss = Directional(found)(made[:, None])
    texts = referee.embed_texts(["a photo", "a cat", "a dog"])
    for row in range(2):
        moved = referee.embed_images(made)[row] - referee.embed_images(contents)[row]
        wanted = texts[row + 1] - texts[0]
        assert loss[row, 0] == pytest.approx(1 - F.cosine_similarity(moved, wanted, dim=0).item(), abs=1e-5)


def test_several_referees_count_by_their_shares() -> None:
    first, second = toy_referee(), toy_referee()
    contents, made = pictures(), pictures().flip(0)[:, None]
    one, other = (
        moves([referee], [1.0], contents, [text] * 2, "x")[0] for referee, text in ((first, "a"), (second, "b"))
    )
    both = Directional([Move(one.referee, one.origins, one.directions, 3.0), other])(made)
    assert torch.allclose(both, 0.75 * Directional([one])(made) + 0.25 * Directional([other])(made), atol=1e-6)
    with pytest.raises(UsageError, check=coded("no_positive_weight", referees=0)):
        Directional([])


def test_a_picture_that_did_not_move_has_a_gradient_that_is_a_number() -> None:
    contents = pictures()
    views = contents[:, None].clone().requires_grad_()
    loss = Directional(moves([toy_referee()], [1.0], contents, ["a cat"] * 2, "a photo"))(views)
    assert torch.allclose(loss, torch.ones_like(loss), atol=0.05), "no direction is neither right nor wrong"
    loss.sum().backward()
    assert views.grad is not None
    assert views.grad.isfinite().all()
    assert views.grad.abs().max() < 1e4


def test_texts_are_averaged_before_they_have_unit_length() -> None:
    referee, templates = toy_referee(), ("a {}.", "the {} of {{}}".replace("{{}}", "it"))
    raw = referee.embed_texts(["a cat.", "the cat of it"], normalize=False).mean(0)
    assert torch.allclose(ensembled(referee, ["cat"], templates)[0], F.normalize(raw, dim=0), atol=1e-6)
    assert len(imagenet_templates()) == 80
    assert all(template.count("{}") == 1 for template in imagenet_templates())


def test_a_style_that_is_the_source_has_no_direction() -> None:
    with pytest.raises(UsageError, check=coded("same_texts", texts=("a photo", "a photo"))):
        moves([toy_referee()], [1.0], pictures(), ["a photo"] * 2, "a photo")


def test_patches_below_the_threshold_count_as_zero_and_are_not_dropped() -> None:
    losses = torch.tensor([[0.6, 0.8, 1.0, 0.2]])
    assert ZeroBelow(0.7)(losses).item() == pytest.approx((0.8 + 1.0) / 4)


def test_neighbour_norms_by_hand() -> None:
    picture = torch.zeros(1, 1, 3, 2, 2)
    picture[0, 0, 0] = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
    across, down = (1 + 4) ** 0.5, (4 + 9) ** 0.5  # (0-1, 2-4), (0-2, 1-4)
    assert NeighbourNorms()(picture).item() == pytest.approx(across + down + abs(2 - 1) + abs(0 - 4))


def test_content_is_a_mean_square_of_features() -> None:
    contents, made = pictures(), pictures().flip(0)

    def halves(images: torch.Tensor) -> list[torch.Tensor]:
        return [images, 3 * images[:, :1]]

    loss = FeatureMatch(halves, contents)(made[:, None])
    squares = (made - contents).square()
    expected = squares.flatten(1).mean(1) + 9 * squares[:, 0].flatten(1).mean(1)
    assert torch.allclose(loss[:, 0], expected, atol=1e-6)
    assert FeatureMatch(halves, contents)(contents[:, None]).max() == 0
    relative = FeatureMatch(halves, contents, relative=True)(made[:, None])
    scaled = FeatureMatch(lambda images: [5 * images, 3 * images[:, :1]], contents, relative=True)(made[:, None])
    assert torch.allclose(relative, scaled, rtol=1e-5), "whatever the network's scale"


def test_a_towers_features_are_maps_with_gradients() -> None:
    referee = load_referee("emoji-vanilla").eval().requires_grad_(False)
    features = tower_features(referee)
    images = pictures(1, 64).requires_grad_()
    found = features(images)
    assert [tuple(one.shape[-2:]) for one in found] == [(8, 8), (4, 4)]
    sum(one.sum() for one in found).backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
    assert not any(module._forward_hooks for module in referee.image_tower.modules())
    with pytest.raises(UsageError, check=coded("no_feature_maps", referee="emoji-vit-vanilla")):
        tower_features(load_referee("emoji-vit-vanilla"))
    with pytest.raises(UsageError, check=coded("wrapped", kind="smoothed")):
        tower_features(smoothed(referee, sigma=0.25, samples=4))


def test_vgg_sees_what_torchvisions_own_sees_after_its_relus(tmp_path: Path) -> None:
    from torchvision.models import vgg19 as build

    with torch.device("meta"):
        drawn = build(weights=None)
    draw = torch.Generator().manual_seed(0)
    weights = {
        name: 0.02 * torch.randn(one.shape, generator=draw)
        for name, one in drawn.state_dict().items()
        if name.startswith("features")
    }
    save_file(weights, tmp_path / "vgg19.safetensors")
    own = drawn.features
    own.load_state_dict({name.removeprefix("features."): one for name, one in weights.items()}, assign=True)
    images = pictures(1, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        x = ((images.permute(0, 2, 3, 1) - mean) / std).permute(0, 3, 1, 2)
        first = own[:23](x)
        found = vgg19(tmp_path / "vgg19.safetensors", torch.device("cpu"))(images)
    assert torch.allclose(found[0], first, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(found[1], own[23:32](first), atol=1e-6)
    assert found[0].min() >= 0
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="vgg19"):
        vgg19(tmp_path / "other.safetensors", torch.device("cpu"))
