"""The embedded world end to end: what the cards and docs claim of the committed referees still holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import robustclip
from robustclip import printing
from robustclip.errors import UsageError, coded
from robustclip.evaluation import claims
from robustclip.evaluation.report import LOW_FREQUENCY, Report
from robustclip.referees import registry
from robustclip.referees.smoothed import check_judge

GUIDES = ["emoji-vanilla-long", "emoji-vanilla", "emoji-robust"]
VITS = ["emoji-vit-vanilla-long", "emoji-vit-vanilla", "emoji-vit-robust"]
JUDGES = ["emoji-judge", "emoji-judge-disjoint"]
ATTACK = "l2:1.5@20"


def test_all_eight_are_embedded_and_small() -> None:
    embedded = {entry.name: entry for entry in robustclip.list_referees() if entry.origin == "embedded"}
    assert set(embedded) == {*GUIDES, *VITS, *JUDGES}
    for entry in embedded.values():
        assert sum(file.stat().st_size for file in entry.folder.iterdir()) < 10.5e6


@pytest.mark.parametrize("name", [*GUIDES, *VITS, *JUDGES])
def test_files_are_those_on_the_card(name: str) -> None:
    found = claims.verify(name, measure=False)
    assert found.files
    assert found.holds
    card = registry.entry_of(name).card
    assert card.claims
    assert (card.threat is not None) == (name in ("emoji-robust", "emoji-vit-robust"))


def test_judges_are_no_guides() -> None:
    judges = [robustclip.load_referee(judge) for judge in JUDGES]
    for guide in map(robustclip.load_referee, (*GUIDES, *VITS)):
        for judge in judges:
            check_judge(guide, judge)


@pytest.fixture(scope="module")
def measured() -> Report:
    return robustclip.evaluate(GUIDES, attack=[ATTACK], tasks=["zero-shot", "gradients"], limit=200, seed=7)


@pytest.mark.slow
def test_the_robust_one_keeps_half_of_its_accuracy_under_attack_and_the_others_nothing(measured: Report) -> None:
    kept = {}
    for name in GUIDES:
        kept[name] = measured.row(name, "top-5", ATTACK).value / measured.row(name, "top-5").value
    assert kept["emoji-robust"] >= 0.5
    assert kept["emoji-vanilla"] < 0.1
    assert kept["emoji-vanilla-long"] < 0.1


@pytest.mark.slow
def test_it_pays_at_most_five_points_of_clean_accuracy(measured: Report) -> None:
    difference = measured.row("emoji-robust", "top-5", "clean", "difference")
    assert difference.high >= -0.05
    assert measured.row("emoji-robust", "top-5").value > 0.277


@pytest.mark.slow
def test_its_gradients_are_of_low_frequency(measured: Report) -> None:
    shares = [measured.row(name, LOW_FREQUENCY).value for name in ("emoji-vanilla-long", "emoji-robust")]
    assert shares[1] > 5 * shares[0]


@pytest.mark.slow
def test_a_short_robustification_buys_robustness(tmp_path: Path) -> None:
    robustclip.robustify("emoji", steps=60, warmup=6, eps=1.5, evaluate_every=0, name="short", out=tmp_path / "run")
    folder = robustclip.export(tmp_path / "run", name="short", to=tmp_path / "short", register=False)
    report = robustclip.evaluate(["emoji-vanilla", folder], attack=[ATTACK], limit=200, labels="present")
    [metric] = {row.metric for row in report.rows if row.metric.startswith("top-5")}
    before, after = (report.row(name, metric, ATTACK).value for name in ("emoji-vanilla", "short"))
    assert after > before + 0.05


@pytest.mark.slow
def test_a_claim_measured_again_is_the_claim() -> None:
    found = claims.verify("emoji-judge")
    assert found.claim is not None
    assert found.measured == pytest.approx(found.claim.value, abs=2 / found.claim.n)
    assert torch.isfinite(torch.tensor(found.measured))


@pytest.mark.slow
@pytest.mark.parametrize(("control", "robust"), [("emoji-vanilla-long", "emoji-robust")])
def test_an_attack_moves_the_controls_eyes_and_hardly_the_robust_ones(control: str, robust: str) -> None:
    """docs/maps.md has 200 scenes; bands are for 60 of another seed."""
    report = robustclip.evaluate(
        [control, robust], data="emoji/scenes", tasks=["maps"], attack=[ATTACK], limit=60, seed=3
    )
    metric = "rank correlation (gradcam)"
    assert report.row(control, metric, ATTACK).value < 0.6
    assert report.row(robust, metric, ATTACK).value > 0.75
    assert report.row(robust, metric, ATTACK, "difference").low > 0.2
    assert report.row(robust, metric, "random l2:1.5").value > 0.95


def test_pair_readers_and_generators_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {entry.name: entry.kind for entry in registry.list_all() if isinstance(entry, registry.Entry)}
    assert kinds["emoji-blip2"] == "pair reader"
    assert kinds["emoji-diffusion"] == kinds["emoji-vqgan"] == "generator"
    assert "emoji-blip2" not in [entry.name for entry in registry.list_referees()]
    printing.entries(registry.list_all())
    assert "broken" not in capsys.readouterr().out
    printing.card(registry.describe("emoji-blip2"))
    assert capsys.readouterr().out.startswith("# emoji-blip2")
    printing.card(registry.describe("emoji-vqgan"))
    assert json.loads(capsys.readouterr().out)["recipe"] == "pretrain/emoji-vqgan"
    with pytest.raises(UsageError, check=coded("unknown_referee", given="emoji-blip3")):
        registry.describe("emoji-blip3")
