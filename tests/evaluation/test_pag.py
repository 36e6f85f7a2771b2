"""The colour referees can be followed with a pencil: a (0.6, 0.4, 0) image is as green as red where its mean colour
reaches the line between the two, 0.2 / sqrt(2) away, which costs an L2 distance of 8 * 0.1414 = 1.131."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustclip.attacks import AttackSpec
from robustclip.data.examples import Examples
from robustclip.errors import RunError, UsageError, coded
from robustclip.evaluation import evaluate
from robustclip.evaluation.claims import cheapest, measured, verify
from robustclip.evaluation.named import NamedReferee
from robustclip.evaluation.pag import NAMES, choose, draw_pairs, pull
from robustclip.evaluation.report import Report, compare
from robustclip.evaluation.tasks import TASKS, Setting
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card, Claim
from robustclip.referees.folder import save_referee
from robustclip.referees.registry import add
from robustclip.referees.toy import toy_referee

TWO = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0)}
SWAPPED = {"red": (0.0, 1.0, 0.0), "green": (1.0, 0.0, 0.0)}
METRIC = "PAG score (judge judge, 2 names)"


class Recording(nn.Module):
    """The mean colour, and all images that were seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach())
        return images.mean((2, 3))


@pytest.fixture
def rather_red(plain: Callable[..., Tensor]) -> Examples:
    """Two images, each to be pulled to the other's name: rather red, and rather green."""
    images = plain((0.6, 0.4, 0.0), (0.3, 0.7, 0.0))
    return Examples("two", images, (8, 8), ["a", "b"], torch.tensor([0, 1]), ["red", "green"], [])


def setting(examples: Examples, judge: TwoTower, spec: str = "l2:1.2@40", seed: int = 0) -> Setting:
    return Setting(
        examples=examples,
        attacks=[],
        templates=("{}",),
        present_only=False,
        batch_size=2,
        dtype=torch.float32,
        seed=seed,
        judge=NamedReferee("judge", judge, None),
        pull=AttackSpec.parse(spec),
    )


def hits(referee: TwoTower, given: Setting) -> dict[str, list[bool]]:
    """By attack, whether the judge saw the target in each image."""
    found = TASKS["pag"](referee, given, "").measurements
    assert {m.metric for m in found} == {METRIC}
    return {m.attack: m.outcomes.tolist() for m in found}


@pytest.mark.parametrize(("eps", "reached"), [(1.1, False), (1.2, True)])
def test_the_target_is_seen_where_the_pull_crosses_the_line(
    colour_referee, rather_red: Examples, eps: float, reached: bool
) -> None:
    guide, judge = colour_referee("guide", words=TWO), colour_referee("judge", words=TWO)

    found = hits(guide, setting(rather_red, judge, f"l2:{eps}@40"))

    # The other image is 0.4 / sqrt(2) from the line: 2.26.
    assert found == {"clean": [False, False], f"random l2:{eps}": [False, False], f"l2:{eps}@40": [reached, False]}


def test_it_is_the_judge_who_answers(colour_referee, rather_red: Examples) -> None:
    guide, judge = colour_referee("guide", words=TWO), colour_referee("judge", words=SWAPPED)

    assert hits(guide, setting(rather_red, judge)) == {
        "clean": [True, True],
        "random l2:1.2": [True, True],
        "l2:1.2@40": [False, True],
    }


def test_the_judge_is_shown_noise_of_the_full_radius_and_a_pull_within_it(colour_referee, rather_red: Examples) -> None:
    recording = Recording()
    judge = colour_referee("judge", words=TWO, tower=recording)
    recording.seen.clear()  # building a referee shows it something

    hits(colour_referee("guide", words=TWO), setting(rather_red, judge))

    lengths = [(seen - rather_red.images).flatten(1).norm(dim=1) for seen in recording.seen]
    torch.testing.assert_close(
        torch.stack(lengths), torch.tensor([[0.0, 0.0], [1.2, 1.2], [1.2, 1.2]]), atol=1e-4, rtol=0
    )


def test_no_pull_depends_on_the_batch(colour_referee) -> None:
    guide = colour_referee(tower=nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), words=TWO)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    texts = guide.embed_texts(["red", "green", "red", "green"])
    spec = AttackSpec.parse("l2:0.5@5")

    together = pull(guide, images, texts, spec)

    torch.testing.assert_close(together[2:3], pull(guide, images[2:3], texts[2:3], spec))


@settings(max_examples=20, deadline=None)
@given(kinds=st.integers(2, 25), count=st.integers(2, 30), seed=st.integers(0, 9))
def test_pairs_are_of_different_names_and_keyed_by_seed_and_image(kinds: int, count: int, seed: int) -> None:
    truths = [f"name {i % kinds}" for i in range(count)]
    ids = [f"id {i}" for i in range(count)]
    pairs = draw_pairs(truths, ids, seed=seed)

    assert pairs.choices.shape == (count, min(NAMES, kinds, count))
    assert all(len(set(row)) == len(row) for row in pairs.choices.tolist())
    assert [pairs.names[own] for own in pairs.choices[:, 1]] == truths
    again = draw_pairs(truths, ids, seed=seed)
    assert torch.equal(again.choices, pairs.choices)
    longer = draw_pairs([*truths, truths[0]], [*ids, "another"], seed=seed)
    assert torch.equal(longer.choices[:-1], pairs.choices)


def test_another_seed_draws_other_pairs_and_targets_are_spread() -> None:
    truths = [f"name {i}" for i in range(100)]
    first, second = (draw_pairs(truths, truths, seed=seed).targets for seed in (0, 1))

    assert (first == second).float().mean() < 0.1
    assert len(set(first.tolist())) > 50


def test_a_judge_that_finds_all_names_alike_sees_no_target(colour_referee, plain) -> None:
    blind = colour_referee("blind", words=dict.fromkeys("abc", (1.0, 1.0, 1.0)))

    found = choose(blind, plain((0.5, 0.1, 0.2)), blind.embed_texts(["a", "b", "c"]), torch.tensor([[2, 0, 1]]))

    assert found.ranks.tolist() == [2]
    assert found.first.tolist() != [2]


def test_a_judge_without_an_answer_ends_the_measurement(colour_referee, plain) -> None:
    broken = colour_referee("broken", words={"a": (float("nan"),) * 3, "b": (1.0, 0.0, 0.0)})

    with pytest.raises(RunError, check=coded("not_finite", judge="broken")):
        choose(broken, plain((0.5, 0.1, 0.2)), broken.embed_texts(["a", "b"]), torch.tensor([[0, 1]]))


def test_differences_are_paired_and_of_the_pull_alone(colour_referee, rather_red: Examples) -> None:
    given = setting(rather_red, colour_referee("judge", words=TWO))
    guides = {"wrong": colour_referee("wrong", words=SWAPPED), "right": colour_referee("right", words=TWO)}
    found = {name: TASKS["pag"](guide, given, "").measurements for name, guide in guides.items()}

    rows = compare("pag", found, baseline="wrong", seed=0)

    assert {(r.referee, r.attack, r.kind, r.value) for r in rows} == {
        *((name, attack, "value", 0.0) for name in guides for attack in ("clean", "random l2:1.2")),
        ("wrong", "l2:1.2@40", "value", 0.0),
        ("right", "l2:1.2@40", "value", 0.5),
        ("right", "l2:1.2@40", "difference", 0.5),
    }


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three referees that agree about nothing, the last of them registered by its name."""
    monkeypatch.setenv("ROBUSTCLIP_HOME", str(tmp_path / "home"))
    folders = [tmp_path / f"toy-{seed}" for seed in range(3)]
    for seed, folder in enumerate(folders):
        save_referee(toy_referee(size=8, seed=seed, name=folder.name), folder)
    add(folders[-1])
    return folders


def measure(toys: list[Path], data: Path, **options: object) -> Report:
    usual = {"data": data, "tasks": ["pag"], "judge": "toy-2", "pag": "l2:2@5", "device": "cpu"}
    return evaluate(toys[:2], **(usual | options))  # type: ignore[arg-type]


def test_evaluate_reports_pairs_that_all_referees_share(toys: list[Path], colour_folder: Path) -> None:
    report = measure(toys, colour_folder)

    metric = "PAG score (judge toy-2, 3 names)"
    for name in ("toy-0", "toy-1"):
        for attack in ("clean", "random l2:2", "l2:2@5"):
            row = report.row(name, metric, attack)
            assert (row.n, row.low <= row.value <= row.high) == (4, True)
    assert report.row("toy-1", metric, "l2:2@5", "difference").against == "toy-0"
    assert report.setting["judge"]["name"] == "toy-2"
    assert len(report.setting["judge"]["fingerprint"]) == 64
    assert report.setting["pag"] == "l2:2@5"
    assert report.threats["l2:2@5"].startswith("L2 eps 2 at 8x8")
    drawn = [
        [(a["id"], a["own"], a["target"]) for a in report.predictions if a["referee"] == n] for n in ("toy-0", "toy-1")
    ]
    assert drawn[0] == drawn[1]
    assert all(own != target for _, own, target in drawn[0])
    again = measure(toys, colour_folder)
    assert (again.rows, again.predictions) == (report.rows, report.predictions)


def test_a_signed_score_has_its_controls_beside_it_and_can_be_verified(toys: list[Path], colour_folder: Path) -> None:
    report = measure(toys, colour_folder, sign=True)

    claims = Card.load(toys[0]).claims
    name = "PAG score (judge toy-2, 3 names)"
    assert [(claim.name, claim.attack) for claim in claims] == [
        (name, None),
        (name, "random l2:2"),
        (name, "l2:2@5"),
    ]
    found = verify(str(toys[0]), claim=name, device="cpu")
    assert found.claim == claims[2]
    assert (claims[2].task, claims[2].how) == ("pag", {"judge": "toy-2"})
    assert found.measured == report.row("toy-0", name, "l2:2@5").value
    assert found.holds
    difference = report.row("toy-1", name, "l2:2@5", "difference")
    signed = Card.load(toys[1]).claims[-1]
    assert (signed.name, signed.value) == ("PAG score minus toy-0's (judge toy-2, 3 names)", difference.value)
    assert signed.how == {"judge": "toy-2", "baseline": "toy-0"}
    add(toys[0])
    assert verify(str(toys[1]), claim=signed.name, device="cpu").measured == difference.value


def test_the_cheapest_claim_is_no_pag_score_while_there_is_another() -> None:
    score = Claim(
        "PAG score (judge emoji-judge, 10 names)", 0.3, 0.2, 0.4, 400, 0, "emoji/x", "l2:12@20", "2025-01-31", "pag"
    )
    before, noise = replace(score, attack=None), replace(score, attack="random l2:12")
    attacked = replace(score, name="top-1", task="zero-shot", attack="l2:1.5@20", n=500)
    card = Card("mine", "toy", {}, {}, 1.0, claims=[before, noise, score, attacked])

    assert cheapest(card) == attacked
    assert cheapest(card, score.name) == score


@pytest.mark.parametrize("names", [{}, {"judge": "emoji-judge"}])
@pytest.mark.parametrize("other", ["nobody", "/etc", "hf-hub:some/body"])
def test_a_card_does_not_choose_what_is_loaded(other: str, names: dict[str, str], colour_folder: Path) -> None:
    how: dict[str, str | int | None] = {**names, "baseline" if names else "judge": other}
    claim = Claim("PAG score", 0.5, 0.4, 0.6, 4, 0, str(colour_folder), "l2:1@2", "2025-01-31", "pag", how)
    with pytest.raises(UsageError, check=coded("unknown_referee")):
        measured(toy_referee(), claim, "cpu")


def test_nobody_judges_itself(toys: list[Path], colour_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("same_weights", judge="toy-0", guide="toy-0")):
        measure(toys, colour_folder, judge=str(toys[0]))
    save_referee(toy_referee(size=8, seed=1, name="other-name"), tmp_path / "copy")
    with pytest.raises(UsageError, check=coded("same_weights", judge="other-name", guide="toy-1")):
        measure(toys, colour_folder, judge=str(tmp_path / "copy"))


@pytest.mark.parametrize(
    ("options", "check"),
    [
        ({"pag": "l2:12@20x3"}, coded("restarts_identical", argument="pag")),
        ({"pag": "l2:0@20"}, coded("not_positive", argument="pag")),
        ({"pag": "far"}, coded("not_an_attack", given="far")),
        ({"pag": ""}, coded("not_an_attack", given="")),
        ({"pag": "l2:383@20"}, coded("eps_in_255")),
        ({"judge": None}, coded("no_judge")),
        ({"judge": ""}, coded("unknown_referee", given="")),
        ({"tasks": ["zero-shot"]}, coded("no_effect", argument="judge")),
    ],
)
def test_calls_that_cannot_be_meant(
    toys: list[Path], colour_folder: Path, options: dict[str, object], check: Any
) -> None:
    with pytest.raises(UsageError, check=check):
        measure(toys, colour_folder, **options)


def test_images_of_one_name_have_nowhere_to_go(toys: list[Path], colour_folder: Path) -> None:
    for name in ("green", "blue"):
        for picture in (colour_folder / name).iterdir():
            picture.unlink()
        (colour_folder / name).rmdir()

    with pytest.raises(UsageError, check=coded("missing_data", task="pag")):
        measure(toys, colour_folder)
    with pytest.raises(UsageError, check=coded("one_name", names=["red"])):
        draw_pairs(["red", "red"], ["a", "b"], seed=0)


@pytest.mark.slow
def test_the_robust_guide_draws_what_another_tower_reads_and_its_control_does_not() -> None:
    guides = ["emoji-vanilla-long", "emoji-robust"]
    report = evaluate(guides, data="emoji/judge-heldback", tasks=["pag"], pag="l2:12@10", limit=120, seed=1)

    [metric] = {row.metric for row in report.rows}
    assert metric == "PAG score (judge emoji-judge, 10 names)"
    control, robust = (report.row(name, metric, "l2:12@10").value for name in guides)
    assert report.row("emoji-robust", metric).value <= 0.05
    assert robust >= 0.12
    assert robust > control + 0.03
    assert robust > report.row("emoji-robust", metric, "random l2:12").value + 0.05
