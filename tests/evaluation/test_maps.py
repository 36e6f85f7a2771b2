"""The tasks of heat maps in `evaluate`: what is measured, how it is named, and how a claim of it is measured again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from robustclip.data.examples import read_examples
from robustclip.data.images import save_image
from robustclip.errors import UsageError, coded
from robustclip.evaluation import evaluate
from robustclip.evaluation.claims import measured
from robustclip.evaluation.report import Report
from robustclip.explanation.maps import Mapper, energy_in_box, pointing_hit
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card
from robustclip.referees.folder import save_referee
from robustclip.referees.toy import toy_referee

ATTACK = "l2:1@2"


def toys() -> list[TwoTower]:
    return [toy_referee(seed=seed, name=f"toy-{seed}") for seed in (1, 2)]


@pytest.fixture(scope="module")
def report() -> Report:
    return evaluate(toys(), data="emoji/scenes", tasks=["maps", "faithfulness"], attack=[ATTACK], limit=5, batch_size=2)


def test_localisation_is_that_of_the_scenes(report: Report) -> None:
    examples = read_examples("emoji/scenes", limit=5)
    assert examples.boxes is not None
    images = examples.images[torch.arange(5)]
    referee = toys()[0]
    texts = referee.embed_texts([captions[0] for captions in examples.captions])
    heat = Mapper(referee)(images, texts, examples.ids)
    row = report.row("toy-1", "pointing game (gradcam)")
    assert row.value == pytest.approx(pointing_hit(heat.maps, examples.boxes).float().mean().item())
    assert row.n == 5
    energy = report.row("toy-1", "energy in box (gradcam)")
    expected = energy_in_box(heat.maps, examples.boxes)[~heat.empty].mean().item()
    assert energy.value == pytest.approx(expected, abs=1e-5)


def test_each_number_stands_beside_its_control(report: Report) -> None:
    for metric in ("pointing game", "energy in box", "deletion", "insertion", "ROAD"):
        own = report.row("toy-2", f"{metric} (gradcam)").value
        blob = report.row("toy-2", f"{metric} of a centre blob").value
        less = report.row("toy-2", f"{metric} minus a centre blob's (gradcam)").value
        assert less == pytest.approx(own - blob, abs=1e-6)
    for metric in ("rank correlation", "overlap of top 20%", "centre shift"):
        for attack in (ATTACK, "random l2:1"):
            assert np.isfinite(report.row("toy-1", f"{metric} (gradcam)", attack).value)
    differences = [row.metric for row in report.rows if row.kind == "difference" and row.metric.endswith("blob")]
    assert not differences


def test_there_are_answers_for_every_image(report: Report) -> None:
    mine = [
        answer
        for answer in report.predictions
        if answer["referee"] == "toy-1" and answer["metric"] == "centre shift" and answer["attack"] == ATTACK
    ]
    assert len({answer["id"] for answer in mine}) == 5


def test_images_without_boxes_have_stability_only(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        save_image(torch.rand(3, 16, 16), tmp_path / name / "1.png")
    found = evaluate(toys()[:1], data=tmp_path, tasks=["maps"], attack=[ATTACK])
    assert {row.metric for row in found.rows} == {
        "rank correlation (gradcam)",
        "overlap of top 20% (gradcam)",
        "centre shift (gradcam)",
    }


def test_attacks_of_one_ball_share_their_control() -> None:
    found = evaluate(toys()[:1], data="emoji/scenes", tasks=["maps"], attack=["l2:1@1", ATTACK], limit=3, batch_size=2)
    one = evaluate(toys()[:1], data="emoji/scenes", tasks=["maps"], attack=[ATTACK], limit=3, batch_size=2)
    for attack in ("random l2:1", ATTACK):
        row = found.row("toy-1", "rank correlation (gradcam)", attack)
        assert (row.value, row.n) == (one.row("toy-1", "rank correlation (gradcam)", attack).value, 3)


def test_a_layer_that_was_asked_for_is_in_the_name() -> None:
    found = evaluate(toys()[:1], data="emoji/scenes", tasks=["maps"], limit=2, layer="0", method="layercam")
    assert found.row("toy-1", "pointing game (layercam at 0)").n == 2
    assert found.setting["method"] == "layercam"
    assert found.setting["layer"] == "0"


def test_claims_are_signed_and_measured_again(tmp_path: Path) -> None:
    save_referee(toys()[0], tmp_path / "toy")
    evaluate([tmp_path / "toy"], data="emoji/scenes", tasks=["maps"], attack=[ATTACK], limit=4, sign=True)
    claims = {(claim.name, claim.attack): claim for claim in Card.load(tmp_path / "toy").claims}
    assert not [name for name, _ in claims if name.endswith("of a centre blob")]
    assert not [attack for _, attack in claims if attack is not None and attack.startswith("random")]
    claim = claims["rank correlation (gradcam)", ATTACK]
    assert claim.n == 4
    assert measured(toys()[0], claim, "cpu") == pytest.approx(claim.value, abs=1e-4)


def test_what_cannot_be_mapped_is_refused() -> None:
    with pytest.raises(UsageError, match="method= 'gradcamm'"):
        evaluate(toys(), data="emoji/scenes", tasks=["maps"], method="gradcamm")
    with pytest.raises(UsageError, check=coded("no_effect", argument="layer")):
        evaluate(toys(), data="emoji/scenes", tasks=["gradients"], layer="0")
    with pytest.raises(UsageError, check=coded("no_class_token", layer="1")):
        evaluate(toys(), data="emoji/scenes", tasks=["maps"], method="gradcam-cls", limit=2)
    with pytest.raises(UsageError, check=coded("missing_data", task="maps")):
        evaluate(toys(), data="emoji/unseen-styles", tasks=["maps"], limit=2)


def test_a_label_is_a_text_as_well(tmp_path: Path) -> None:
    """Examples with labels and no captions are mapped for their own label."""
    (tmp_path / "cat").mkdir()
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    save_image(image, tmp_path / "cat" / "1.png")
    asked: list[Tensor] = []
    referee = toys()[0]
    embed = referee.text_tower.forward
    referee.text_tower.forward = lambda texts: asked.append(texts) or embed(texts)  # type: ignore[method-assign]
    evaluate([referee], data=tmp_path, tasks=["maps"], attack=[ATTACK])
    assert ["cat"] in asked
    assert ["not cat"] in asked
