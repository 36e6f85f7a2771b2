from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from robustclip.attacks.spec import AttackSpec
from robustclip.cli import app
from robustclip.data.images import save_image
from robustclip.errors import UsageError, coded
from robustclip.evaluation import evaluate
from robustclip.evaluation.claims import measured
from robustclip.evaluation.perceptual import corruption_triplets, distance, read_nights, two_afc
from robustclip.losses import PerceptualDistance, Triplets
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card
from robustclip.referees.folder import save_referee
from robustclip.referees.registry import load_referee
from robustclip.referees.toy import toy_referee

HEADER = "id,left_vote,right_vote,votes,ref_path,left_path,right_path,prompt,split,is_imagenet"


def flat(colour: tuple[float, float, float], count: int = 1, side: int = 8) -> Tensor:
    return torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(count, 3, side, side).contiguous()


def test_a_distance_by_hand(colour_referee: Callable[..., TwoTower]) -> None:
    """The referee embeds an image as its mean colour: red and green are orthogonal, red and yellow 45 degrees apart."""
    measure = PerceptualDistance(colour_referee())
    red, green, yellow = flat((1, 0, 0)), flat((0, 1, 0)), flat((1, 1, 0), side=16)
    assert measure(red, green).item() == pytest.approx(1)
    assert measure(red, yellow).item() == pytest.approx(1 - 0.5**0.5)
    assert measure(red, red).item() == 0
    moved = red.clone().requires_grad_()
    measure(moved, yellow).sum().backward()
    assert moved.grad is not None
    assert moved.grad[0, 1].sum() < 0  # more green is nearer
    with pytest.raises(UsageError, check=lambda error: error.code == "unequal_batches"):
        measure(red, flat((1, 0, 0), 2))


def test_forced_choice_by_hand_clean_and_under_attack() -> None:
    """On pixels, the reference .5 lies between .4 and .7. The middle of both is .55, which L-inf .04 does not reach and
    .06 does; L2 of the same move is .05 sqrt(192) = .69."""
    grey = [flat((level,) * 3, 3) for level in (0.5, 0.4, 0.7)]
    triplets = Triplets("levels", *grey, ids=["a", "b", "c"])
    shares = {
        attack: two_afc(lambda images: images.flatten(1), triplets, AttackSpec.parse(attack) if attack else None)[0]
        for attack in ("", "linf:0.04@5", "linf:0.06@5", "l2:0.6@5", "l2:0.8@5")
    }
    assert [interval.value for interval in shares.values()] == [1, 1, 0, 1, 0]
    noise, _ = two_afc(lambda images: images.flatten(1), triplets, AttackSpec.parse("l2:0.8@5"), control=True)
    assert noise.value == 1
    tied = Triplets("ties", grey[0], grey[1], grey[1], ids=["a", "b", "c"])
    assert two_afc(lambda images: images.flatten(1), tied)[0].value == 0


def test_the_weaker_corruption_is_nearer_in_pixels() -> None:
    triplets = corruption_triplets(limit=24)
    again = corruption_triplets(limit=24)
    assert torch.equal(triplets.farther[torch.arange(24)], again.farther[torch.arange(24)])
    assert len(triplets) == 24
    rows = torch.arange(24)
    reference, nearer, farther = (part[rows] for part in (triplets.reference, triplets.nearer, triplets.farther))
    errors = [(one - reference).square().mean((1, 2, 3)) for one in (nearer, farther)]
    for kind in (0, 1, 3):  # noise, blur and contrast grow with the strength; JPEG's error does nearly always
        assert (errors[0] < errors[1])[kind::4].all()


@pytest.fixture
def nights(tmp_path: Path) -> Path:
    for name, level in (("ref", 0.5), ("left", 0.4), ("right", 0.9)):
        save_image(torch.full((3, 12, 10), level), tmp_path / f"{name}.png")
    rows = [
        "0,1,0,7,ref.png,left.png,right.png,x,test,False",
        "1,0,1,6,ref.png,left.png,right.png,x,test,False",
        "2,0,1,5,ref.png,left.png,right.png,x,test,False",
        "3,0,1,9,ref.png,left.png,right.png,x,test,True",
        "4,0,1,9,ref.png,left.png,right.png,x,train,True",
    ]
    (tmp_path / "data.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return tmp_path


def test_nights_layout(nights: Path) -> None:
    triplets = read_nights(nights, size=8)
    assert triplets.ids == ["0", "1"]  # of 6 votes and more, and not of ImageNet
    both = torch.arange(2)
    assert triplets.reference[both].shape == (2, 3, 8, 8)
    assert triplets.nearer[both].mean((1, 2, 3)).tolist() == pytest.approx([0.4, 0.9], abs=1 / 255)
    assert triplets.farther[both].mean((1, 2, 3)).tolist() == pytest.approx([0.9, 0.4], abs=1 / 255)
    assert read_nights(nights, "test_imagenet", size=8).ids == ["3"]
    _, answers = two_afc(lambda images: images.flatten(1), triplets)
    assert answers.tolist() == [True, False]


@pytest.mark.parametrize(
    ("table", "code"),
    [
        ("id,path\n0,x.png\n", "not_nights"),
        (f"{HEADER}\n0,1,0,many,a,b,c,x,test,False\n", "not_nights"),
        (f"{HEADER}\n0,1,0,3,a,b,c,x,test,False\n", "empty_split"),
    ],
)
def test_what_is_not_nights(table: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(table)
    with pytest.raises(UsageError, check=lambda error: error.code == code):
        read_nights(tmp_path)


def test_as_a_task_of_evaluate(colour_referee: Callable[..., TwoTower]) -> None:
    """Values, intervals, control and predictions are those of `two_afc` on the same triplets."""
    attack = AttackSpec.parse("l2:0.86@3")
    others = {"a": colour_referee("a"), "b": colour_referee("b", tower=Corner())}
    report = evaluate(list(others.values()), tasks=["distance"], attack=[str(attack)], limit=24, seed=2, device="cpu")
    triplets, answers = corruption_triplets(limit=24, seed=2), {}
    for name, referee in others.items():
        embed = PerceptualDistance(referee).embed
        for images, spec, control in (
            ("clean", None, False),
            ("random l2:0.86", attack, True),
            (str(attack), attack, False),
        ):
            share, found = two_afc(embed, triplets, spec, control=control, seed=2)
            row = report.row(name, "2AFC", images)
            assert (row.value, row.low, row.high, row.n) == (share.value, share.low, share.high, 24)
            answers[name, images] = found.tolist()
    assert answers["a", "clean"] != answers["b", "clean"]
    listed: dict[tuple[str, str], list[bool]] = {}
    for entry in report.predictions:
        listed.setdefault((entry["referee"], entry["attack"]), []).append(entry["right"])
    assert listed == answers
    difference = report.row("b", "2AFC", str(attack), kind="difference")
    assert difference.value == report.row("b", "2AFC", str(attack)).value - report.row("a", "2AFC", str(attack)).value


def test_nights_as_data_of_evaluate(nights: Path, colour_referee: Callable[..., TwoTower]) -> None:
    """Red is nearer to orange than to green: one of three voters of the whole test split says so."""
    for name, colour in {"ref": (1.0, 0.0, 0.0), "left": (1.0, 0.5, 0.0), "right": (0.0, 1.0, 0.0)}.items():
        save_image(flat(colour)[0], nights / f"{name}.png")
    report = evaluate([colour_referee()], data=nights, tasks=["distance"], size=8, device="cpu")
    row = report.row("colours", "2AFC")
    assert (row.value, row.n) == (pytest.approx(1 / 3), 3)
    with pytest.raises(UsageError, check=coded("missing_data", task="zero-shot")):
        evaluate([colour_referee()], data=nights, tasks=["distance", "zero-shot"], device="cpu")
    with pytest.raises(UsageError, check=coded("not_pgd", what="the task distance")):
        evaluate([colour_referee()], data=nights, tasks=["distance"], attack=["l2:1@apgd-ce"], device="cpu")


def test_a_signed_distance_is_measured_again(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    save_referee(toy_referee(size=8), folder)
    report = evaluate([folder], tasks=["distance"], attack=["l2:0.86@2"], limit=12, sign=True, device="cpu")
    claims = {claim.attack: claim for claim in Card.load(folder).claims}
    assert list(claims) == [None, "l2:0.86@2"]
    for attack, claim in claims.items():
        assert (claim.task, claim.n) == ("distance", 12)
        assert measured(load_referee(str(folder)), claim, "cpu") == report.row("toy", "2AFC", attack or "clean").value


class Corner(nn.Module):
    """The mean colour of the first quarter: another referee's opinion."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, :4, :4].mean((2, 3))


def test_the_command(tmp_path: Path) -> None:
    for name, level in (("a", 0.2), ("b", 0.8)):
        save_image(torch.full((3, 20, 30), level), tmp_path / f"{name}.png")
    a, b = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    done = CliRunner().invoke(app, ["distance", a, b, "--json", str(tmp_path / "found.json")])
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "found.json").read_text()) == distance(a, b)
    assert distance(a, a)["distance"] == 0
    with pytest.raises(UsageError):
        distance(a, str(tmp_path / "none.png"))
