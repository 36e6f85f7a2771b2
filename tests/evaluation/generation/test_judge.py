from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from robustclip.data import load_split
from robustclip.data.images import save_image
from robustclip.errors import UsageError, coded
from robustclip.evaluation.generation import judge, judge_images, judge_pictures, read_pictures
from robustclip.evaluation.generation.embeddings import PREFIX
from robustclip.evaluation.generation.measure import JudgeOptions
from robustclip.evaluation.generation.pictures import Pictures, from_tensor, read_reference
from robustclip.referees.base import TwoTower
from robustclip.referees.image_judges import load_aesthetics
from robustclip.referees.smoothed import fingerprint
from robustclip.signatures import bind

RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
PROMPTS = ["red", "green", "blue"]


class Mixing(torch.nn.Module):
    """Mean colour, with weights, so that it has a fingerprint of its own."""

    def __init__(self, weight: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(3) if weight is None else weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) @ self.weight


@pytest.fixture
def seer(colour_referee: Callable[..., TwoTower]) -> TwoTower:
    """A judge who knows the three colours, with CLIPScore's words before them too."""
    words = dict(zip(PROMPTS, (RED, GREEN, BLUE), strict=True))
    words |= {f"{PREFIX}{name}": vector for name, vector in words.items()}
    return colour_referee("seer", words=words, tower=Mixing())


def test_two_runs_and_their_difference(run_folder, seer: TwoTower, tmp_path: Path) -> None:
    good = run_folder("good", {"red": RED, "green": (0.3, 0.9, 0.0), "blue": BLUE}, seeds=(0, 1))
    poor = run_folder("poor", {"red": RED, "green": (0.6, 0.3, 0.0), "blue": RED}, seeds=(0, 1))

    report = judge([good, poor], judge=[seer], out=tmp_path / "out", csv=tmp_path / "figures.csv", device="cpu")

    best = report.figure("r-precision", pictures="good")
    assert (best.value, best.n, best.candidates, best.chance) == (1.0, 6, 3, pytest.approx(1 / 3))
    assert (best.judge, best.fingerprint) == ("seer", fingerprint(seer))
    assert report.figure("r-precision", pictures="poor").value == pytest.approx(1 / 3)
    less = report.figure("r-precision", kind="difference")
    assert (less.pictures, less.against) == ("poor", "good")
    assert less.value == pytest.approx(-2 / 3)
    assert less.low < -2 / 3 < less.high <= 0
    assert report.figure("cosine", pictures="poor").value == pytest.approx((1 + 0.3 / 0.45**0.5 + 0) / 3, abs=0.01)
    assert report.figure("clipscore", pictures="good").value == pytest.approx((5 + 2.5 * 0.9 / 0.9**0.5) / 3, abs=0.01)
    assert report.figure("cosine", kind="preference").value == pytest.approx((1 / 2 + 0 + 0) / 3)

    said = json.loads((tmp_path / "out" / "pictures.json").read_text())["poor"]["blue"]["blue-s1"]
    assert said["seed"] == 1
    assert (said["judges"]["seer"]["rank"], said["judges"]["seer"]["picked"]) == (2, "red")
    stored = json.loads((tmp_path / "out" / "judgement.json").read_text())
    assert stored["setting"]["judges"] == {"seer": fingerprint(seer)}
    assert stored["setting"]["guides"]["good"] == [{"name": "guide", "fingerprint": "f" * 64}]
    rows = list(csv.DictReader((tmp_path / "figures.csv").read_text().splitlines()))
    assert len(rows) == len(report.figures)
    assert {row["fingerprint"] for row in rows} == {fingerprint(seer)}
    table = (tmp_path / "out" / "table.txt").read_text()
    for text in (
        "among 3, chance 33.3",
        "good",
        "poor minus good",
        "poor above good, %",
        "100.0 (61.0 to 100.0)",
        fingerprint(seer)[:16],
    ):
        assert text in table


def test_a_guide_does_not_judge_itself(run_folder, seer: TwoTower, colour_referee) -> None:
    folder = run_folder("own", {"red": RED, "blue": BLUE}, referees=[{"name": "x", "fingerprint": fingerprint(seer)}])
    other = colour_referee("other", words=seer.text_tower.words, tower=Mixing(torch.eye(3) * 2))

    with pytest.raises(UsageError, check=coded("judge_guides", judge="seer", pictures="own"), match="--allow-self"):
        judge([folder], judge=[other, seer], device="cpu")
    assert judge([folder], judge=[other], device="cpu").figure("cosine").judge == "other"
    allowed = judge([folder], judge=[seer], allow_self=True, device="cpu")
    assert any("seer judges pictures that it guided" in note for note in allowed.notes)


def test_images_from_python_and_their_guides(seer: TwoTower, plain) -> None:
    images = plain(RED, GREEN, RED)

    report = judge_images(images, PROMPTS, [seer], device="cpu")

    assert report.figure("r-precision").value == pytest.approx(2 / 3)
    with pytest.raises(UsageError, check=coded("judge_guides", judge="seer")):
        judge_images(images, PROMPTS, [seer], guides=[seer], device="cpu")


def test_real_images_of_the_same_prompts_stand_beside(seer: TwoTower, plain) -> None:
    made = from_tensor(plain(RED, GREEN), ["red", "green"], name="made")
    real = Pictures("real", plain(RED, BLUE, RED, GREEN), ["red", "blue", "green", "green"], list("abcd"))

    report = judge_pictures([made], [seer], reference=real, device="cpu")

    beside = report.figure("r-precision", pictures="real")
    assert (beside.value, beside.n) == (pytest.approx(2 / 3), 3)
    assert "real shows 2 of the 2 prompts" in report.notes
    assert "real" not in report.pictures


def test_sets_are_measured_against_real_images(seer: TwoTower) -> None:
    stream = torch.Generator().manual_seed(0)

    def colours(name: str, spread: float, colour: tuple[float, float, float] = (0.5, 0.5, 0.5)) -> Pictures:
        tints = torch.tensor(colour) + spread * (torch.rand(30, 3, generator=stream) - 0.5)
        return from_tensor(tints[:, :, None, None].expand(-1, -1, 8, 8), [*PROMPTS * 10], name=name)

    options = JudgeOptions(["frechet", "cmmd", "label-score"])
    real = colours("real", 1.0)
    sets = [colours("alike", 1.0), colours("reddish", 0.01, (0.9, 0.1, 0.1))]
    report = judge_pictures(sets, [seer], options=options, reference=real, device="cpu")

    for metric in ("frechet", "cmmd"):
        alike, red = (report.figure(metric, pictures=name) for name in ("alike", "reddish"))
        assert alike.value < red.value
        assert (red.reference, red.n) == ("real", 30)
        further = report.figure(metric, kind="difference")
        assert further.value == pytest.approx(red.value - alike.value)
        assert 0 < further.low < further.value < further.high
    assert report.figure("label-score", pictures="reddish").value == pytest.approx(1, abs=0.01)
    assert not any("dimensions" in note for note in report.notes)


def test_fewer_pictures_than_dimensions_are_told_with_both_numbers(seer: TwoTower, plain) -> None:
    made, real = (from_tensor(plain(RED, GREEN, BLUE), PROMPTS, name=name) for name in ("made", "real"))

    report = judge_pictures([made], [seer], options=JudgeOptions(["frechet"]), reference=real, device="cpu")

    assert any("has 3 dimensions, and made only 3 pictures" in note for note in report.notes)


def test_aesthetics_name_their_head(seer: TwoTower, plain, tmp_path: Path) -> None:
    save_file({"weight": torch.tensor([[1.0, 2.0, 3.0]]), "bias": torch.tensor([0.5])}, tmp_path / "head.safetensors")
    save_file({"weight": torch.ones(1, 512), "bias": torch.zeros(1)}, tmp_path / "wide.safetensors")

    def asked(file: str) -> JudgeOptions:
        return JudgeOptions(["aesthetics"], aesthetics=load_aesthetics(tmp_path / file))

    report = judge_images(plain(RED, BLUE), ["red", "blue"], [seer], options=asked("head.safetensors"), device="cpu")

    figure = report.figure("aesthetics")
    assert figure.value == pytest.approx((1.5 + 3.5) / 2)
    assert figure.head is not None
    assert "head.safetensors (linear), sha256 " in figure.head
    with pytest.raises(UsageError, check=coded("unequal_widths", head=512, judge=3)):
        judge_images(plain(RED, BLUE), ["red", "blue"], [seer], options=asked("wide.safetensors"), device="cpu")


def test_runs_that_share_few_prompts_say_so(run_folder, seer: TwoTower) -> None:
    one, other = run_folder("one", {"red": RED, "blue": BLUE}), run_folder("other", {"red": BLUE, "green": GREEN})

    report = judge([one, other], judge=[seer], device="cpu")

    assert report.figure("r-precision", kind="difference").n == 1
    assert report.figure("r-precision", pictures="one").candidates == 3  # the prompts of both
    assert any("share 1 prompts and seeds" in note for note in report.notes)


def test_all_faults_of_a_call_come_at_once(run_folder, tmp_path: Path) -> None:
    folder = run_folder("run", {"red": RED})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "judgement.json").write_text("{}")

    with pytest.raises(UsageError) as caught:
        judge(
            [folder, tmp_path / "nowhere"],
            metrics=["fid", "aesthetics"],
            candidates=1,
            out=tmp_path / "out",
            device="cpu",
        )

    told = str(caught.value)
    for fault in (
        "6 faults in the call of judge()",
        "fid is a distance to real images: give them, e.g. --reference",
        "give its weights, --aesthetics FILE",
        "give weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release",
        "candidates 1: ",
        "nowhere",
        "already holds a judgement",
    ):
        assert fault in told


def test_questions_that_cannot_be_answered_are_told_before_anyone_looks(plain) -> None:
    pictures = from_tensor(plain(RED, BLUE), ["red", "blue"])

    with pytest.raises(UsageError, check=lambda error: error.codes == ["faults", "no_reference", "no_predictor"]):
        judge_pictures([pictures], ["nobody"], options=JudgeOptions(["cmmd", "aesthetics"]), device="cpu")
    with pytest.raises(UsageError, check=coded("too_few_prompts", candidates=3, prompts=2)):
        judge_pictures([pictures], ["nobody"], options=JudgeOptions(["r-precision"], candidates=3), device="cpu")


def test_several_pictures_of_a_prompt_are_told(seer: TwoTower, plain) -> None:
    report = judge_images(plain(RED, BLUE, RED), ["red", "blue", "red"], [seer], device="cpu")

    assert any("3 pictures of 2 prompts: intervals assume that they are independent" in note for note in report.notes)


def test_the_function_is_a_verb(run_folder) -> None:
    _, found = bind(judge, {"pictures": [str(run_folder("run", {"red": RED}))], "metrics": ["fid"]})

    assert len(found) == 2  # a reference and weights


@pytest.mark.parametrize(("sets", "check"), [([], coded("no_pictures")), (["x", "x"], coded("name_twice", name="x"))])
def test_sets_that_cannot_be_told_apart(sets: list[str], check: Any, seer: TwoTower, plain) -> None:
    with pytest.raises(UsageError, check=check):
        judge_pictures([from_tensor(plain(RED), ["red"], name=name) for name in sets], [seer], device="cpu")


def test_a_figure_that_is_not_there(seer: TwoTower, plain) -> None:
    report = judge_images(plain(RED, BLUE), ["red", "blue"], [seer], device="cpu")

    with pytest.raises(
        UsageError, check=coded("no_figure", metric="fid"), match=r"cosine \(value\) of pictures by seer"
    ):
        report.figure("fid")


def test_class_folders_and_plain_folders_are_references(colour_folder: Path) -> None:
    assert sorted(read_reference(colour_folder).prompts) == ["blue", "green", "red", "red"]
    assert read_reference(colour_folder / "red").prompts == ["", ""]


def test_the_embedded_judge_names_real_pictures() -> None:
    held_back = load_split("emoji", "judge-heldback").sample(16, torch.Generator().manual_seed(0))
    prompts = [held_back.label_names[label] for label in held_back.labels.tolist()]
    noise = torch.rand(held_back.images.shape, generator=torch.Generator().manual_seed(0))

    real = from_tensor(held_back.images, prompts, name="real")
    report = judge_pictures([real, replace(real, name="noise", images=noise)], ["emoji-judge"], device="cpu")

    assert report.figure("r-precision", pictures="real").value > 0.8
    assert report.figure("r-precision", pictures="noise").value < 0.3
    assert report.figure("r-precision", kind="difference").high < -0.4


def test_the_order_of_the_folders_files_changes_nothing(run_folder, seer: TwoTower) -> None:
    found = read_pictures(run_folder("run", {"red": RED, "green": BLUE, "blue": BLUE}, seeds=range(3)))
    turned = torch.arange(len(found)).flip(0)
    places = turned.tolist()
    assert found.seeds
    backwards = replace(
        found,
        images=found.images[turned],
        prompts=[found.prompts[place] for place in places],
        ids=[found.ids[place] for place in places],
        seeds=[found.seeds[place] for place in places],
    )

    options = JudgeOptions(["r-precision"], candidates=2)
    reports = [judge_pictures([one], [seer], options=options, device="cpu") for one in (found, backwards)]

    assert reports[0].figures == reports[1].figures
    assert reports[0].pictures == reports[1].pictures


def test_a_run_stands_beside_a_folder_with_a_list(run_folder, seer: TwoTower, plain, tmp_path: Path) -> None:
    run = run_folder("run", {"red": RED, "blue": BLUE}, seeds=(3,))
    folder = tmp_path / "plain"
    for name, colour in (("0", RED), ("1", RED)):
        save_image(plain(colour)[0], folder / f"{name}.png")
    listed = tmp_path / "listed.jsonl"
    listed.write_text('{"file": "0.png", "prompt": "red"}\n{"file": "1.png", "prompt": "blue"}\n')

    report = judge([run, folder], judge=[seer], prompts=listed, device="cpu")

    assert report.figure("r-precision", pictures="run").value == 1
    assert report.figure("r-precision", pictures="plain").value == 0.5
    assert report.figure("r-precision", kind="difference").n == 2, "paired by prompt, for nothing says the seeds"
