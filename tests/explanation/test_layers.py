"""Which layer of a tower is looked at."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from towers import CONVNEXT, RESNET, TIMM_RESNET, TIMM_VIT, VIT, referee_of, transformers_referee

from robustclip import load_referee
from robustclip.errors import UsageError, coded
from robustclip.explanation.layers import choose_layer, spatial_layers
from robustclip.referees.base import TwoTower
from robustclip.referees.toy import toy_referee

Build = Callable[[], TwoTower]

FAMILIES: dict[str, tuple[Build, str, tuple[int, int]]] = {
    "open_clip ViT": (lambda: referee_of(VIT), "transformer.resblocks.1.ln_1", (4, 4)),
    "open_clip ViT, not square": (lambda: referee_of(VIT, (32, 48)), "transformer.resblocks.1.ln_1", (4, 6)),
    "open_clip ResNet": (lambda: referee_of(RESNET, 224), "layer4.0", (7, 7)),
    "open_clip ResNet, too small": (lambda: referee_of(RESNET, 128), "layer3.0", (8, 8)),
    "timm ConvNeXt": (lambda: referee_of(CONVNEXT, (224, 256)), "trunk.stages.3", (7, 8)),
    "timm ResNet": (lambda: referee_of(TIMM_RESNET, 224), "trunk.layer4.0", (7, 7)),
    "timm ViT": (lambda: referee_of(TIMM_VIT, 160), "trunk.blocks.5.norm1", (10, 10)),
    "transformers CLIP": (transformers_referee, "vision_model.encoder.layers.1.layer_norm1", (4, 4)),
    "embedded": (lambda: load_referee("emoji-robust"), "trunk.layer2.0", (8, 8)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_layer(family: str) -> None:
    build, name, grid = FAMILIES[family]
    layer = choose_layer(build())
    assert (layer.name, layer.grid) == (name, grid)


@pytest.mark.parametrize("family", ["open_clip ViT", "timm ViT", "transformers CLIP"])
def test_the_last_block_itself_for_the_class_token(family: str) -> None:
    build, name, grid = FAMILIES[family]
    layer = choose_layer(build(), at_output=True)
    assert (layer.name, layer.grid, layer.class_tokens) == (name.rpartition(".")[0], grid, 1)


def test_tokens_become_a_map_row_by_row_without_the_class_token() -> None:
    layer = choose_layer(referee_of(VIT, (32, 48)))
    tokens = torch.arange(25.0)[None, :, None].expand(2, 25, 3)
    assert torch.equal(layer.as_map(tokens)[0, 0], torch.arange(1.0, 25).view(4, 6))
    assert torch.equal(layer.class_token(tokens), torch.zeros(2, 3))


def test_tokens_that_come_length_first_are_read_alike() -> None:
    class LengthFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 4, kernel_size=8, stride=8)
            self.layers = nn.ModuleList([nn.Identity()])
            self.head = nn.Linear(4, 16)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            tokens = self.patches(pixels).flatten(2).permute(2, 0, 1)
            tokens = self.layers[0](torch.cat([tokens[:1] * 0, tokens]))
            return self.head(tokens[0])

    referee = toy_referee(size=32)
    referee.image_tower = LengthFirst().eval()
    layer = choose_layer(referee)
    assert (layer.name, layer.grid, layer.class_tokens, layer.length_first) == ("layers.0", (4, 4), 1, True)
    tokens = torch.arange(17.0)[:, None, None].expand(17, 2, 3)
    assert torch.equal(layer.as_map(tokens)[1, 2], torch.arange(1.0, 17).view(4, 4))


def test_what_has_channels_last_is_no_map() -> None:
    layers = spatial_layers(referee_of(CONVNEXT, (128, 160)))
    assert "trunk.stages.3.blocks.0" in layers
    assert not [name for name in layers if ".mlp" in name]


def test_the_tower_is_left_as_it_was() -> None:
    referee = referee_of(TIMM_RESNET, 64)
    referee.image_tower.trunk.layer1.train()
    before = {name: value.clone() for name, value in referee.image_tower.state_dict().items()}
    modes = [module.training for module in referee.modules()]
    spatial_layers(referee)
    assert [module.training for module in referee.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in referee.image_tower.state_dict().items())
    assert not any(module._forward_hooks for module in referee.modules())


def test_hooks_are_removed_after_an_error() -> None:
    referee = toy_referee()
    referee.image_tower.append(nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        spatial_layers(referee)
    assert not any(module._forward_hooks for module in referee.modules())


def test_a_layer_that_is_not_there_names_near_ones() -> None:
    with pytest.raises(UsageError, check=coded("unknown_layer", given="trunk.layer9"), match=r"trunk.layer3"):
        choose_layer(load_referee("emoji-robust"), "trunk.layer9")


def test_a_layer_without_a_grid_is_refused() -> None:
    with pytest.raises(UsageError, check=coded("no_grid", given="trunk.fc")):
        choose_layer(load_referee("emoji-robust"), "trunk.fc")


def test_a_tower_without_a_spatial_layer_is_refused() -> None:
    referee = toy_referee()
    referee.image_tower = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 16))
    with pytest.raises(UsageError, check=coded("no_spatial_layer"), match="--method gradient"):
        choose_layer(referee)
