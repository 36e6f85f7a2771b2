"""Tuning of a perceptual distance: the hinge loss by hand, LoRA against peft, what is trained, resumption, NIGHTS."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import peft
import pytest
import timm
import torch
from torch import Tensor, nn

from robustclip import load_referee
from robustclip.attacks.threat import ThreatModel
from robustclip.data.images import save_image
from robustclip.errors import RunError, UsageError
from robustclip.losses import PerceptualDistance, Triplets
from robustclip.losses.perceptual import hinge, mislead
from robustclip.recipes import run as call
from robustclip.referees.base import TwoTower
from robustclip.referees.folder import save_referee
from robustclip.referees.toy import toy_referee
from robustclip.robustification.distance import LowRank, add_lora, lora_layers, merge_lora, tune_distance
from robustclip.runs import distributed
from robustclip.runs.folder import Run
from robustclip.runs.rng import generator


def towers() -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16}
        model = open_clip.CLIP(8, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(width=8, heads=1, layers=1))  # type: ignore[arg-type]
        grouped = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(8))
        grouped(torch.rand(1, 3, 16, 16))
        return {
            "vit": model.visual.eval(),
            "convnext": timm.create_model("test_convnext", num_classes=8, img_size=None).eval(),
            "convolutions": grouped.eval(),
        }


TOWERS = towers()
IMAGES = torch.rand(24, 3, 16, 16, generator=generator(0, "images"))


def noise_triplets() -> Triplets:
    """The nearer image is the reference with little noise, the farther one with more."""
    noise = torch.randn(2, *IMAGES.shape, generator=generator(0, "noise"))
    near, far = ((IMAGES + scale * one).clamp(0, 1) for scale, one in zip((0.1, 0.2), noise, strict=True))
    return Triplets("noise", IMAGES, near, far, [str(number) for number in range(len(IMAGES))])


NOISE = noise_triplets()


def fit(referee: TwoTower, folder: Path, data: Triplets = NOISE, **changes: Any) -> TwoTower:
    usual: dict[str, Any] = {"steps": 12, "batch_size": 8, "lr": 3e-2, "warmup": 2, "log_every": 1, "alpha": 16}
    with Run.create(folder, recipe="test", arguments={}) as run:
        return tune_distance(referee, data, run=run, **usual | changes)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in Run.open(folder).metrics()]


def test_the_hinge_by_hand() -> None:
    nearer, farther = torch.tensor([0.1, 0.1, 0.3]), torch.tensor([0.2, 0.12, 0.1])
    assert hinge(nearer, farther).tolist() == pytest.approx([0, 0.03, 0.25], abs=1e-7)
    assert hinge(nearer, farther, 0.2).tolist() == pytest.approx([0.1, 0.18, 0.4], abs=1e-7)


def test_layers_are_attention_else_the_mlps_else_what_is_dense() -> None:
    names = {kind: list(lora_layers(tower)) for kind, tower in TOWERS.items()}
    assert names["vit"] == [f"transformer.resblocks.{block}.attn.in_proj_weight" for block in (0, 1)]
    assert names["convolutions"] == ["1.weight", "3.weight"]  # not the grouped convolution
    assert {name.split(".")[-2] for name in names["convnext"]} == {"fc1", "fc2"}
    with pytest.raises(UsageError, check=lambda error: error.code == "no_lora_layers"):
        lora_layers(nn.Sequential(nn.Flatten(), nn.LayerNorm(8)))


@pytest.mark.parametrize("kind", TOWERS)
def test_only_factors_learn_and_merged_equals_unmerged(kind: str) -> None:
    tower, images = towers()[kind], IMAGES.repeat(1, 1, 4, 4) if kind == "convnext" else IMAGES
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    plain = tower(images)
    names = add_lora(tower, 2, 4.0, seed=0)
    torch.testing.assert_close(tower(images), plain)  # B is zero
    tower(images).square().sum().backward()
    assert {name.rpartition(".")[2] for name, value in tower.named_parameters() if value.grad is not None} == {
        "up",
        "down",
    }
    for name, value in tower.named_parameters():
        if name.endswith(".up"):
            nn.init.normal_(value, std=0.1)
    unmerged = tower(images)
    merge_lora(tower)
    torch.testing.assert_close(tower(images), unmerged)  # attention of frozen weights is fused
    assert not torch.equal(unmerged, plain)
    after = tower.state_dict()
    assert after.keys() == before.keys()
    assert [name for name in after if not torch.equal(after[name], before[name])] == sorted(
        names, key=list(after).index
    )
    assert not any(value.requires_grad for value in tower.parameters())


def test_lora_is_that_of_peft() -> None:
    for layer, images in ((nn.Linear(6, 5), torch.rand(2, 6)), (nn.Conv2d(3, 5, 3, padding=1), IMAGES)):
        model = nn.Sequential(layer)
        config = peft.LoraConfig(r=2, lora_alpha=0.5, target_modules=["0"])
        theirs = peft.get_peft_model(nn.Sequential(type(layer)(**_arguments(layer))), config)
        ours = LowRank(layer.weight, 2, 0.5, generator(0, "test"))
        nn.init.normal_(ours.up)
        for name, value in theirs.state_dict().items():
            if "lora_A" in name:
                assert value.abs().max() <= ours.down[0].numel() ** -0.5  # the bound of their initialisation, and ours
                assert ours.down.abs().max() <= ours.down[0].numel() ** -0.5
            source = ours.down if "lora_A" in name else ours.up if "lora_B" in name else None
            own = layer.weight if name.endswith("weight") else layer.bias
            assert own is not None
            value.copy_((own if source is None else source).detach().view_as(value))
        with torch.no_grad():
            layer.weight.copy_(ours(layer.weight))
            torch.testing.assert_close(model(images), theirs(images))


def _arguments(layer: nn.Module) -> dict[str, Any]:
    if isinstance(layer, nn.Linear):
        return {"in_features": 6, "out_features": 5}
    return {"in_channels": 3, "out_channels": 5, "kernel_size": 3, "padding": 1}


@pytest.mark.parametrize("threat", [None, ThreatModel("l2", 0.5, 16)])
def test_the_order_is_learnt_and_the_rest_stays(threat: ThreatModel | None, tmp_path: Path) -> None:
    referee, before = toy_referee(), toy_referee()
    fit(referee, tmp_path, steps=60, threat=threat)
    found = losses(tmp_path)
    assert sum(found[-5:]) < 0.8 * sum(found[:5])
    weights, old = referee.image_tower.state_dict(), before.image_tower.state_dict()
    assert [name for name in weights if not torch.equal(weights[name], old[name])] == ["0.weight", "3.weight"]
    assert "2AFC" in Run.open(tmp_path).record["notes"]["tuned_for"]


def test_the_update_is_on_misled_references(tmp_path: Path) -> None:
    data, referee, threat = NOISE, toy_referee(), ThreatModel("l2", 0.5, 16)
    embed = PerceptualDistance(referee).embed
    near, far = embed(data.nearer[torch.arange(24)]), embed(data.farther[torch.arange(24)])
    moved = mislead(embed, IMAGES, near, far, threat, steps=5, generator=generator(0, "attack"))
    assert (moved - IMAGES).flatten(1).norm(dim=1).max() <= 0.5 + 1e-4
    apart = PerceptualDistance.between
    margins = [hinge(apart(embed(x), near), apart(embed(x), far), 5.0) for x in (IMAGES, moved)]
    assert (margins[1] > margins[0]).all()
    for name, given in (("clean", None), ("attacked", threat)):
        fit(toy_referee(), tmp_path / name, steps=1, batch_size=24, threat=given, margin=5.0)
    assert losses(tmp_path / "clean")[0] == pytest.approx(margins[0].mean().item(), rel=1e-5)
    assert losses(tmp_path / "attacked")[0] > losses(tmp_path / "clean")[0] + 0.01


def test_shuffled_votes_turn_half_of_the_triplets(tmp_path: Path) -> None:
    """Below the margin the loss is margin - difference, and margin + difference of a turned triplet."""
    data, embed = NOISE, PerceptualDistance(toy_referee()).embed
    seen = [embed(part) for part in (IMAGES, data.nearer[torch.arange(24)], data.farther[torch.arange(24)])]
    difference = PerceptualDistance.between(seen[0], seen[2]) - PerceptualDistance.between(seen[0], seen[1])
    turned = torch.rand(24, generator=generator(0, "votes")) < 0.5
    assert 6 < turned.sum() < 18
    fit(toy_referee(), tmp_path, steps=1, batch_size=24, margin=5.0, votes="shuffled")
    assert losses(tmp_path)[0] == pytest.approx((5 - torch.where(turned, -difference, difference)).mean().item())


class Unplugged:
    """Images that fail at the ninth batch."""

    def __init__(self) -> None:
        self.left = 8

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, rows: Tensor) -> Tensor:
        if not self.left:
            raise ConnectionError
        self.left -= 1
        return IMAGES[rows]


def test_a_resumed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"threat": ThreatModel("linf", 8 / 255, 16), "checkpoint_every": 5}
    whole = fit(toy_referee(), tmp_path / "whole", **changes)
    with pytest.raises(ConnectionError):
        fit(toy_referee(), tmp_path / "broken", replace(NOISE, reference=Unplugged()), **changes)
    usual: dict[str, Any] = {"steps": 12, "batch_size": 8, "lr": 3e-2, "warmup": 2, "log_every": 1, "alpha": 16}
    with Run.open(tmp_path / "broken") as run:
        resumed = tune_distance(toy_referee(), NOISE, run=run, resume=True, **usual | changes)
    assert torch.equal(resumed.embed_images(IMAGES), whole.embed_images(IMAGES))
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


@pytest.fixture
def start(tmp_path: Path) -> str:
    save_referee(toy_referee(), tmp_path / "toy")
    return str(tmp_path / "toy")


@pytest.fixture
def nights(tmp_path: Path) -> Path:
    """Two triplets of the split train and one of val."""
    rows = ["id,left_vote,right_vote,votes,ref_path,left_path,right_path,prompt,split,is_imagenet"]
    for number, split in enumerate(("train", "train", "val")):
        for side, level in (("ref", 0.5), ("left", 0.45), ("right", 0.9)):
            save_image(torch.full((3, 20, 20), level), tmp_path / f"{side}{number}.png")
        rows.append(f"{number},1,0,7,ref{number}.png,left{number}.png,right{number}.png,x,{split},False")
    (tmp_path / "data.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_a_run_on_nights(nights: Path, tmp_path: Path, start: str) -> None:
    given = {"data": str(nights), "start": start, "quick": True, "device": "cpu", "eps": 0}
    numbers = call("distance", "robustify", given | {"out": tmp_path / "run"})
    assert numbers["samples"] == 320
    card = load_referee(tmp_path / "run" / "referee").card
    assert card.threat is None
    assert card.provenance["tuned_for"] == "2AFC: the order of cosine distances on NIGHTS train, by LoRA"
    assert card.provenance["data"] == {"triplets": "NIGHTS train", "count": 2}
    assert load_referee(tmp_path / "run" / "referee").embed_texts(["a cat"]).shape == (1, 16)


@pytest.mark.parametrize(
    ("faulty", "code"),
    [("no train split", "empty_split"), ("a lost picture", "not_nights"), ("no kinds", "no_triplets")],
)
def test_data_without_triplets(faulty: str, code: str, nights: Path, start: str) -> None:
    given: dict[str, object] = {"data": str(nights), "start": start, "quick": True, "device": "cpu"}
    if faulty == "no train split":
        table = nights / "data.csv"
        table.write_text(table.read_text().replace(",train,", ",test,"))
    elif faulty == "a lost picture":
        (nights / "left0.png").unlink()
    else:
        given |= {"data": "emoji/guide-styles", "kinds": []}
    with pytest.raises(UsageError, check=lambda error: error.code == code):
        call("distance", "robustify", given | {"out": nights / "run"})


def test_no_triplets(tmp_path: Path) -> None:
    none = Triplets("none", IMAGES[:0], IMAGES[:0], IMAGES[:0], [])
    with pytest.raises(UsageError, check=lambda error: error.code == "no_triplets"):
        fit(toy_referee(), tmp_path, none)


def test_several_processes_and_a_gradient_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    referee = toy_referee()
    with pytest.raises(RunError, check=lambda error: error.code == "not_finite"):
        fit(referee, tmp_path / "infinite", margin=math.inf)
    monkeypatch.setattr(distributed, "count", lambda: 2)
    with pytest.raises(UsageError, check=lambda error: error.code == "one_process"):
        fit(toy_referee(), tmp_path / "two")
