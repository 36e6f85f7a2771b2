from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from robustclip.attacks.threat import ThreatModel
from robustclip.data.examples import read_examples
from robustclip.errors import UsageError, coded
from robustclip.evaluation import evaluate
from robustclip.evaluation.claims import measured
from robustclip.evaluation.evaluate import notes
from robustclip.evaluation.named import NamedReferee, claims_of
from robustclip.evaluation.report import Report, Row, compare
from robustclip.evaluation.tasks import Measurement
from robustclip.referees.card import Card
from robustclip.referees.folder import save_referee
from robustclip.referees.image_judges import AestheticsLinear
from robustclip.referees.toy import toy_referee

SWAPPED = {"red": (0.0, 1.0, 0.0), "green": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0)}


@pytest.fixture
def toy_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "toys" / "toy"
    save_referee(toy_referee(size=8), folder)
    return folder


def test_zero_shot_side_by_side(colour_referee, colour_folder: Path) -> None:
    # Right of the first: all but the blue one, which is rather green. Of the one that swaps red and green: none.
    report = evaluate(
        [colour_referee("right"), colour_referee("swapped", words=SWAPPED)], data=colour_folder, device="cpu"
    )

    assert report.row("right", "top-1").value == 0.75
    assert report.row("right", "top-5").value == 1.0
    assert report.row("swapped", "top-1").value == 0.0
    difference = report.row("swapped", "top-1", kind="difference")
    assert (difference.value, difference.against) == (-0.75, "right")
    retention = report.row("swapped", "top-1", kind="retention")
    assert (retention.value, retention.against, retention.n) == (0.0, "right", 4)
    answers = {a["id"]: a for a in report.predictions if a["referee"] == "right"}
    assert answers["blue/d.png"] == {
        "referee": "right",
        "task": "zero-shot",
        "attack": "clean",
        "id": "blue/d.png",
        "label": "blue",
        "rank": 1,
        "predictions": ["green", "blue", "red"],
    }


def test_under_attack_with_its_control(colour_referee, colour_folder: Path) -> None:
    # Margins (see test_robustness): of the 0.8 ones 0.4 * sqrt(128) = 4.5, of the 0.6 to 0.4 one 1.13.
    report = evaluate([colour_referee()], data=colour_folder, attack=["l2:1.3@20"], device="cpu")

    assert report.row("colours", "top-1").value == 0.75
    assert report.row("colours", "top-1", "random l2:1.3").value == 0.75
    assert report.row("colours", "top-1", "l2:1.3@20").value == 0.5
    kept = report.row("colours", "top-1", "l2:1.3@20", kind="retention")
    assert (kept.value, kept.against) == (pytest.approx(0.5 / 0.75), "colours")
    assert report.threats == {"l2:1.3@20": str(ThreatModel("l2", 1.3, 8))}
    assert "RMS" in report.threats["l2:1.3@20"]


def test_retention_is_of_the_baseline_whatever_the_order(colour_referee, colour_folder: Path, toy_folder: Path) -> None:
    report = evaluate([colour_referee("right")], data=colour_folder, baseline=str(toy_folder), device="cpu")

    assert [row.referee for row in report.rows if row.kind == "value"][:2] == ["toy", "right"]
    assert report.setting["baseline"] == "toy"
    assert report.row("right", "top-5", kind="retention").against == "toy"


def test_labels_may_be_narrowed_to_those_present(colour_referee, colour_folder: Path) -> None:
    (colour_folder / "classnames.txt").write_text("blue\ngreen\nred\n")
    for picture in (colour_folder / "green").iterdir():
        picture.rename(colour_folder / "red" / picture.name)
    (colour_folder / "green").rmdir()
    (colour_folder / "classnames.txt").write_text("blue\nred\ngreen\n")

    everything = evaluate([colour_referee()], data=colour_folder, device="cpu")
    present = evaluate([colour_referee()], data=colour_folder, labels="present", device="cpu")

    # The blue one is rather green: right only where green is not to choose.
    assert everything.row("colours", "top-1").value == 0.5
    assert present.row("colours", "top-1 of 2 present").value == 0.75


def test_labels_may_be_a_number(colour_referee, colour_folder: Path) -> None:
    (colour_folder / "classnames.txt").write_text("blue\ngreen\nred\n")
    options = {"data": colour_folder, "device": "cpu"}

    report = evaluate([colour_referee()], labels=3, **options)

    assert report.row("colours", "top-1 of 3 labels").value == 0.75
    assert report.setting["labels"] == 3
    with pytest.raises(UsageError, check=coded("too_few_labels", labels=2, least=3)):
        evaluate([colour_referee()], labels=2, **options)
    with pytest.raises(UsageError, check=coded("literal_error", argument="labels", given="some")):
        evaluate([colour_referee()], labels="some", **options)


def test_the_worst_of_a_ball_is_below_each_of_its_attacks(colour_referee) -> None:
    pytest.importorskip("torchattacks", reason="the evaluation extra is not installed")
    attacks = ["l2:0.3@1", "l2:0.3@2", "l2:0.3@apgd-dlr:3", "l2:0.3@square:5", "linf:1/255@1"]

    report = evaluate(
        ["emoji-vanilla"], data="emoji/unseen-styles", limit=6, attack=[*attacks, attacks[0]], labels=30, device="cpu"
    )

    top = {row.attack: row.value for row in report.rows if row.kind == "value" and row.metric == "top-1 of 30 labels"}
    assert list(top) == ["clean", "random l2:0.3", "random linf:1/255", *attacks, "worst l2:0.3"]
    assert top["worst l2:0.3"] <= min(top[attack] for attack in attacks[:4])
    right = [
        {a["id"] for a in report.predictions if a["attack"] == attack and a["rank"] == 0} for attack in attacks[:4]
    ]
    assert top["worst l2:0.3"] == len(set.intersection(*right)) / 6
    five = {row.attack for row in report.rows if row.metric == "top-5 of 30 labels"}
    assert five == {"clean", "random l2:0.3", "random linf:1/255", *attacks[:2], attacks[4], "worst l2:0.3"}


def test_attacks_on_logits_are_for_zero_shot(colour_referee, colour_folder: Path) -> None:
    options = {"data": colour_folder, "attack": "l2:1@autoattack", "device": "cpu"}
    pytest.importorskip("torchattacks", reason="the evaluation extra is not installed")

    for task in ("retrieval", "maps", "faithfulness"):
        with pytest.raises(UsageError, check=coded("not_pgd", what=f"the task {task}", instead="l2:1@20")):
            evaluate([colour_referee()], tasks=[task], **options)
    with pytest.raises(UsageError, check=coded("too_few_labels", labels=3, fewest=4), match="l2:1@apgd-ce"):
        evaluate([colour_referee()], **options)
    with pytest.raises(UsageError, check=coded("not_pgd", argument="pag")):
        evaluate([colour_referee()], tasks=["pag"], judge="toy", pag="l2:1@square", data=colour_folder, device="cpu")


def test_without_torchattacks_nothing_begins(colour_referee, colour_folder: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchattacks", None)

    with pytest.raises(UsageError, check=coded("not_installed", module="torchattacks", extra="evaluation")):
        evaluate([colour_referee()], data=colour_folder, attack="l2:1@apgd-ce", device="cpu")


def test_what_has_no_two_towers_is_refused(colour_folder: Path) -> None:
    with pytest.raises(UsageError, match="instance of TwoTower"):
        evaluate([AestheticsLinear(4)], data=colour_folder, device="cpu")


@pytest.mark.parametrize(
    ("attack", "labels", "name"),
    [("l2:1.3@apgd-ce:9", "all", "top-1"), ("l2:1.3@20", 3, "top-1 of 3 labels"), ("l2:1.3@20", "present", None)],
)
def test_what_was_measured_is_measured_again(colour_referee, colour_folder: Path, attack, labels, name) -> None:
    pytest.importorskip("torchattacks", reason="the evaluation extra is not installed")
    report = evaluate([colour_referee()], data=colour_folder, attack=[attack], labels=labels, device="cpu")
    row = report.row("colours", name or "top-1 of 3 present", attack)
    [claim] = [one for one in claims_of(report, "colours") if (one.name, one.attack) == (row.metric, attack)]

    assert row.value == 0.5
    assert measured(colour_referee(), claim, "cpu") == row.value
    with pytest.raises(UsageError, check=coded("several_attacks", attack="worst l2:1.3")):
        measured(colour_referee(), replace(claim, name="top-1", attack="worst l2:1.3"), "cpu")


def test_all_tasks_leave_their_files(colour_folder: Path, toy_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    report = evaluate(
        str(toy_folder),
        data=colour_folder,
        tasks=["zero-shot", "gradients"],
        attack="l2:0.1@2,linf:1/255@2",
        out=out,
        csv=tmp_path / "rows.csv",
        device="cpu",
    )

    stored = json.loads((out / "evaluation.json").read_text())
    assert stored == json.loads(json.dumps(report.to_json()))
    assert len(stored["rows"]) == len(report.rows)
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["metric"] for row in rows] == [row.metric for row in report.rows]
    assert float(rows[0]["value"]) == report.rows[0].value
    answers = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(answers) == 4 * (1 + 2 + 2) + 4  # clean, two controls, two attacks; one gradient each
    assert {a["attack"] for a in answers} == {
        "clean",
        "random l2:0.1",
        "l2:0.1@2",
        "random linf:1/255",
        "linf:1/255@2",
    }
    assert (out / "gradients.png").stat().st_size > 0
    assert "low-frequency share" in (out / "table.txt").read_text()
    assert "| low-frequency share | clean | " in (out / "table.md").read_text()
    share = report.row("toy", "low-frequency share")
    assert 0 < share.low <= share.value <= share.high < 1

    with pytest.raises(UsageError, check=coded("already_done")):
        evaluate(str(toy_folder), data=colour_folder, out=out, device="cpu")


def test_the_picture_shows_each_prompt_on_an_image_it_is_true_of(
    colour_referee, colour_folder: Path, monkeypatch
) -> None:
    shown = {}

    def record(judges, images, prompts, dtype):
        shown.update(images=images, prompts=prompts)
        return images[0]

    monkeypatch.setattr(import_module("robustclip.evaluation.evaluate"), "gradient_picture", record)
    options = {"data": colour_folder, "tasks": "gradients", "device": "cpu"}

    evaluate([colour_referee()], prompts=["green", "red, if you like", "blue"], **options)
    assert shown["prompts"] == ["green", "red, if you like", "blue"]
    torch.testing.assert_close(shown["images"][:, :, 0, 0][[0, 2]], torch.tensor([[0.0, 0.8, 0.0], [0.0, 0.6, 0.4]]))

    evaluate([colour_referee()], **options)
    assert sorted(shown["prompts"]) == ["blue", "green", "red", "red"]
    for prompt, image in zip(shown["prompts"], shown["images"], strict=True):
        assert prompt == "blue" or image[:, 0, 0].argmax() == ["red", "green"].index(prompt)


def test_templates_may_come_with_the_data(colour_folder: Path, colour_referee) -> None:
    setting = evaluate([colour_referee()], data=colour_folder, templates="dataset", device="cpu").setting

    assert setting["templates"] == ["{}"]  # this set brings none


def test_the_table_names_everyone(colour_referee, colour_folder: Path) -> None:
    report = evaluate(
        [colour_referee("right"), colour_referee("swapped", words=SWAPPED)],
        data=colour_folder,
        attack=["l2:1.3@5"],
        device="cpu",
    )
    console = Console(width=160, record=True, file=io.StringIO())

    console.print(report.table())

    text = console.export_text()
    for told in (
        "right",
        "swapped",
        "75.0 (30.1 to 95.4)",
        "minus right",
        "of clean right",
        "of its own clean",
        "l2:1.3@5: L2 eps 1.3",
    ):
        assert told in text
    assert "only 4 images" in text


def test_all_faults_of_a_call_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        evaluate(["toy"], tasks=["zeroshot"], attack=["l2:-1@20"], device="tpu", limit=0, data=tmp_path)
    for given in ("tasks= 'zeroshot'", "eps '-1'", "device= 'tpu'", "limit= 0"):
        assert given in str(caught.value)
    with pytest.raises(UsageError) as caught:
        evaluate(["toy"], templates="nice", layer="0", resume=True, data=tmp_path)
    for told in ("unknown templates 'nice'", "the layer '0' has no effect", "resume needs the folder"):
        assert told in str(caught.value)


@pytest.mark.parametrize(
    ("attack", "check"),
    [
        ("l2:383@20", coded("eps_in_255", eps=383)),
        ("linf:8@20", coded("eps_in_255")),
        ("l2:0@20", coded("not_positive", argument="attack")),
    ],
)
def test_an_eps_that_cannot_be_meant(colour_referee, colour_folder: Path, attack: str, check: Any) -> None:
    with pytest.raises(UsageError, check=check):
        evaluate([colour_referee()], data=colour_folder, attack=[attack], device="cpu")


def test_a_task_that_the_data_cannot_serve(colour_referee, colour_folder: Path) -> None:
    with pytest.raises(UsageError, check=coded("missing_data", task="retrieval")):
        evaluate([colour_referee()], data=colour_folder, tasks=["zero-shot", "retrieval"], device="cpu")


def test_referees_that_are_not_there_or_the_same(monkeypatch) -> None:
    monkeypatch.setattr("robustclip.referees.registry._near_tags", lambda _: [])  # imports open_clip: seconds
    with pytest.raises(UsageError, check=coded("no_referee")):
        evaluate([], device="cpu")
    with pytest.raises(UsageError, match="no referee 'nobody'"):
        evaluate(["nobody"], device="cpu")
    with pytest.raises(UsageError, check=coded("name_twice", name="toy")):
        evaluate([toy_referee(), toy_referee()], device="cpu")


def test_folders_whose_cards_share_a_name_are_called_by_their_paths(colour_folder: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        save_referee(toy_referee(size=8, seed=seed), tmp_path / str(seed))

    report = evaluate([tmp_path / "0", tmp_path / "1"], data=colour_folder, device="cpu")

    assert report.row(str(tmp_path / "1"), "top-1").n == 4


def test_signing_writes_claims_and_a_new_signature_replaces_them(colour_folder: Path, toy_folder: Path) -> None:
    for _ in range(2):
        report = evaluate([toy_folder], data=colour_folder, attack=["l2:0.1@2"], sign=True, device="cpu")

    claims = Card.load(toy_folder).claims
    assert {(claim.name, claim.attack) for claim in claims} == {
        ("top-1", None),
        ("top-5", None),
        ("top-1", "l2:0.1@2"),
        ("top-5", "l2:0.1@2"),
    }
    assert len(claims) == 4
    first = next(claim for claim in claims if (claim.name, claim.attack) == ("top-1", None))
    row = report.row("toy", "top-1")
    assert (first.value, first.low, first.high, first.n) == (row.value, row.low, row.high, 4)
    assert (first.data, first.seed) == (colour_folder.as_posix(), 0)


def test_a_task_that_is_given_twice_is_measured_once(colour_folder: Path, toy_folder: Path) -> None:
    report = evaluate([toy_folder], data=colour_folder, tasks=["gradients"] * 2, sign=True, device="cpu")
    assert (len(report.rows), len(report.predictions), len(Card.load(toy_folder).claims)) == (1, 4, 1)


def test_only_what_has_a_folder_can_be_signed(colour_referee, colour_folder: Path, toy_folder: Path) -> None:
    with pytest.raises(UsageError, check=coded("no_folder_to_sign", referee="colours")):
        evaluate([colour_referee()], data=colour_folder, sign=True, device="cpu")
    with pytest.raises(UsageError, check=coded("not_signable", templates="photo")):
        evaluate([toy_folder], data=colour_folder, templates="photo", sign=True, device="cpu")


def test_an_eps_that_a_referee_learnt_at_another_size_is_noted(colour_referee, colour_folder: Path) -> None:
    referee = colour_referee()
    referee.card.threat = ThreatModel("l2", 1.5, 224)
    examples = read_examples(colour_folder)

    found = list(notes([NamedReferee("robust", referee, None)], examples, {"l2:1.5@20": ThreatModel("l2", 1.5, 8)}))

    assert any("robust was trained for L2 eps 1.5 at 224x224" in note and "28 times" in note for note in found)
    fitting = {"l2:1.5@20": ThreatModel("l2", 1.5, 224)}
    assert not any("trained" in note for note in notes([NamedReferee("robust", referee, None)], examples, fitting))


def test_rows_by_hand() -> None:
    def hits(metric: str, attack: str, *outcomes: int) -> Measurement:
        return Measurement(metric, attack, torch.tensor(outcomes, dtype=torch.bool).numpy())

    rows = compare(
        "zero-shot",
        {
            "old": [hits("top-1", "clean", 1, 1, 1, 1), hits("top-1", "l2:1@5", 0, 0, 0, 0)],
            "new": [hits("top-1", "clean", 1, 1, 0, 0), hits("top-1", "l2:1@5", 1, 0, 0, 0)],
        },
        baseline="old",
        seed=0,
    )

    found = {(r.referee, r.attack, r.kind, r.against): r.value for r in rows}
    assert found == {
        ("old", "clean", "value", ""): 1.0,
        ("new", "clean", "value", ""): 0.5,
        ("new", "clean", "difference", "old"): -0.5,
        ("new", "clean", "retention", "old"): 0.5,
        ("old", "l2:1@5", "value", ""): 0.0,
        ("new", "l2:1@5", "value", ""): 0.25,
        ("new", "l2:1@5", "difference", "old"): 0.25,
        ("old", "l2:1@5", "retention", "old"): 0.0,
        ("new", "l2:1@5", "retention", "new"): 0.5,
    }


def test_what_is_undefined_for_all_samples_has_no_row() -> None:
    def one(*values: float) -> list[Measurement]:
        return [Measurement("energy", "clean", np.array(values))]

    nan = float("nan")
    rows = compare("maps", {"a": one(nan, 1), "b": one(0, nan), "c": one(nan, nan)}, baseline="a", seed=0)
    assert [(row.referee, row.kind, row.value, row.n) for row in rows] == [("a", "value", 1, 1), ("b", "value", 0, 1)]


def test_a_missing_row_names_those_there_are() -> None:
    row = Row("toy", "zero-shot", "top-1", "clean", "value", "", 0.5, 0.4, 0.6, 100, 0)

    with pytest.raises(UsageError, check=coded("no_row", metric="top-3", rows=["top-1 (clean, value)"])):
        Report({}, {}, [row]).row("toy", "top-3")


def test_a_referee_in_training_is_measured_in_eval_mode_and_goes_on_training(
    colour_referee, colour_folder: Path
) -> None:
    tower = torch.nn.Sequential(torch.nn.Dropout(0.99), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    referee = colour_referee(tower=tower).train()

    assert evaluate([referee], data=colour_folder, device="cpu").row("colours", "top-1").value == 0.75
    assert tower[0].training
