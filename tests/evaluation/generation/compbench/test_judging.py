"""Pictures of the benchmark's prompts: matched by name, scored by rules worked out by hand, resumed, refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustclip.data.compositions import compose
from robustclip.data.images import save_image
from robustclip.errors import UsageError, coded
from robustclip.evaluation.generation.compbench.judging import complex_parts, judge_benchmark
from robustclip.evaluation.generation.compbench.prompts import RULES, Category, match, read_benchmark, read_prompts
from robustclip.evaluation.generation.compbench.roles import Parts, Roles, Scorer, geometric_mean, load_roles
from robustclip.evaluation.generation.judge import faults, judge
from robustclip.evaluation.generation.pictures import Pictures, from_tensor
from robustclip.evaluation.named import NamedReferee
from robustclip.referees.base import Detection, TwoTower
from robustclip.referees.smoothed import fingerprint

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
PROMPTS = ["a red bench", "a blue bowl."]


class Sure:
    """Answers by a picture's mean colour: yes to "red" as much as it is red, to "blue" as blue, else to 0.8."""

    def __init__(self, name: str = "sure") -> None:
        self.name, self.fingerprint, self.asked = name, "a" * 64, 0

    def yes(self, images: Tensor, questions: Sequence[Sequence[str]]) -> list[Tensor]:
        self.asked += len(images)
        means = images.mean((2, 3))
        return [
            torch.tensor([float(mean[0] if "red" in text else mean[2] if "blue" in text else 0.8) for text in texts])
            for mean, texts in zip(means, questions, strict=True)
        ]


class Finds:
    """Finds each thing asked for, one after the other from the left, twice where it is a cat."""

    name, fingerprint = "finds", "b" * 64

    def detect(self, images: Tensor, labels: Sequence[str]) -> list[list[Detection]]:
        found = [Detection(label, 0.9, (i / 4, 0.4, i / 4 + 0.1, 0.5)) for i, label in enumerate(labels)]
        found += [Detection("cat", 0.8, (0.9, 0.4, 1.0, 0.5))] if "cat" in labels else []
        return [found for _ in images]


@pytest.fixture
def release(tmp_path: Path, plain: Callable[..., Tensor]) -> Path:
    """Two pictures a prompt as the release names them, numbered against the order of the prompts."""
    folder = tmp_path / "run"
    for number, (prompt, colour) in enumerate([("a blue bowl", BLUE), ("a red bench", RED)]):
        for again in range(2):
            file = folder / "samples" / f"{prompt}_{2 * number + again:06d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            save_image(plain(colour)[0], file)
    (tmp_path / "color_val.txt").write_text("\n".join(PROMPTS) + "\n")
    return folder


def test_pictures_are_matched_by_name_not_by_number(release: Path) -> None:
    found = read_benchmark(release, PROMPTS, per_prompt=2)
    assert found.prompts == ["a red bench"] * 2 + ["a blue bowl."] * 2
    assert found.ids[0] == "a red bench_000002.png"
    assert found.images[torch.tensor([0])].mean((2, 3)).tolist() == [[1.0, 0.0, 0.0]]


def listed(*parts: str) -> Callable[[UsageError], bool]:
    """An error that lists as many faults, each with its part."""

    def check(error: UsageError) -> bool:
        faults = error.values.get("listed")
        return isinstance(faults, list) and len(faults) == len(parts) and all(map(str.__contains__, faults, parts))

    return check


def test_what_is_missing_or_too_much_is_listed(release: Path, plain: Callable[..., Tensor]) -> None:
    with pytest.raises(UsageError, check=listed("'a red bench' has 2 of 10", "'a blue bowl' has 2 of 10")):
        read_benchmark(release, PROMPTS)
    with pytest.raises(UsageError, check=listed("'a red bench' has 2 of 1", "'a key' has 0 of 1")):
        match(from_tensor(plain(RED, BLUE), ["a red bench"] * 2), ["a red bench", "a key"], per_prompt=1)
    save_image(plain(RED)[0], release / "samples" / "a green cat_000009.png")
    with pytest.raises(UsageError, check=listed("a green cat")):
        read_benchmark(release, PROMPTS, per_prompt=2)
    save_image(plain(RED)[0], release / "samples" / "nameless.png")
    with pytest.raises(UsageError, check=coded("odd_picture_name")):
        read_benchmark(release, PROMPTS, per_prompt=2)


def test_prompts_are_read_and_doubles_refused(tmp_path: Path) -> None:
    file = tmp_path / "color_val.txt"
    file.write_text("a red bench\n\n a blue bowl.\r\n")
    assert read_prompts(file) == PROMPTS
    file.write_text("a red bench\nA red  bench.\n")
    with pytest.raises(UsageError, check=coded("prompt_twice")):
        read_prompts(file)
    file.write_text("\n")
    with pytest.raises(UsageError, check=coded("no_prompts")):
        read_prompts(file)


def pictures(plain: Callable[..., Tensor], *named: tuple[str, tuple[float, float, float]]) -> Pictures:
    return from_tensor(plain(*(colour for _, colour in named)), [prompt for prompt, _ in named])


def test_a_product_over_phrases_and_its_mean_over_prompts(plain: Callable[..., Tensor]) -> None:
    half = (0.5, 0.0, 0.25)
    shown = pictures(plain, ("a red bench and a bowl", half), ("a red bench and a bowl", RED), ("a blue key", half))
    report = judge_benchmark([shown], Roles(questions=Sure(), chunker=RULES), "color")
    # 0.5 x 0.8 and 1 x 0.8 of the first prompt, 0.25 of the second; the mean over prompts.
    product = report.figure("vqa-product")
    assert product.value == pytest.approx(((0.4 + 0.8) / 2 + 0.25) / 2)
    assert (product.n, product.judge, product.fingerprint) == (2, "sure", "a" * 64)
    mean = report.figure("soft-tifa").value
    assert mean == pytest.approx(((0.4**0.5 + 0.8**0.5) / 2 + 0.25) / 2, abs=1e-4)
    said = report.pictures["pictures"]["a blue key"]["2"]
    assert said["answers"] == {"a blue key?": 0.25}
    assert said["judges"]["sure"]["vqa-product"] == 0.25


def test_places_numbers_and_their_mean_with_the_others(
    plain: Callable[..., Tensor], colour_referee: Callable[..., TwoTower], tmp_path: Path
) -> None:
    seer = colour_referee("seer", words={"a red cat on the left of a dog": RED, "a red cat eats": RED})
    roles = Roles(Sure(), Finds(), NamedReferee("seer", seer, None), chunker=RULES)
    placed, eats = "a red cat on the left of a dog", "a red cat eats"

    spatial = judge_benchmark([pictures(plain, (placed, RED))], roles, "spatial")
    assert spatial.figure("detected-places").value == pytest.approx(0.95)
    numbers = judge_benchmark([pictures(plain, ("two cats and a dog", RED), ("two dogs", RED))], roles, "numeracy")
    assert numbers.figure("detected-numbers").value == pytest.approx((1.0 + 0.5) / 2)

    file = tmp_path / "complex_val.txt"
    file.write_text(f"{placed}\n{eats}\n")
    with pytest.raises(UsageError, check=coded("list_missing")):
        complex_parts(file, [placed, eats])
    (tmp_path / "complex_val_spatial.txt").write_text(placed)
    (tmp_path / "complex_val_action.txt").write_text(eats)
    parts = complex_parts(file, [placed, eats])
    shown = pictures(plain, (placed, (1.0, 0.0, 1.0)), (eats, RED))
    report = judge_benchmark([shown], roles, "complex", parts=parts)
    # The first: 1 x 0.8 for its phrases, and its place; the second: 1 and a cosine of 1.
    assert report.figure("3-in-1").value == pytest.approx(((0.8 + 0.95) / 2 + 1.0) / 2)
    assert report.figure("3-in-1").judge == "sure + finds + seer"
    asked = roles.questions.asked
    with pytest.raises(UsageError, check=coded("no_relation")):  # before any picture is judged
        judge_benchmark([shown], roles, "complex", parts=parts | {eats: Parts(places=True, actions=True)})
    assert roles.questions.asked == asked


def test_a_judgement_goes_on_where_it_was_stopped(release: Path, tmp_path: Path, plain: Callable[..., Tensor]) -> None:
    shown, out, first = read_benchmark(release, PROMPTS, per_prompt=2), tmp_path / "out", Sure()
    report = judge_benchmark([shown], Roles(questions=first, chunker=RULES), "color", out=out)
    files = sorted((out / "answers").iterdir())
    assert len(files) == 2  # of two pictures each, which are the same
    assert json.loads(files[0].read_text())["judges"] == {"sure": "a" * 64}
    again = Sure()
    assert judge_benchmark([shown], Roles(questions=again, chunker=RULES), "color", out=out).figures == report.figures
    assert again.asked == 0
    files[0].unlink()
    judge_benchmark([shown], Roles(questions=again, chunker=RULES), "color", out=out)
    assert again.asked == 2
    other = Sure("other")
    judge_benchmark([shown], Roles(questions=other, chunker=RULES), "color", out=out)
    assert other.asked == 4
    files[0].write_text("[]")
    with pytest.raises(UsageError, check=coded("answers_damaged")):
        judge_benchmark([shown], Roles(questions=again, chunker=RULES), "color", out=out)


def test_two_sets_are_compared_prompt_by_prompt(plain: Callable[..., Tensor]) -> None:
    good = pictures(plain, ("a red bench", RED), ("a blue bowl", BLUE))
    poor = from_tensor(plain((0.5, 0, 0), BLUE), good.prompts, name="poor")
    report = judge_benchmark([good, poor], Roles(questions=Sure(), chunker=RULES), "color")
    less = report.figure("vqa-product", kind="difference")
    assert (less.pictures, less.against) == ("poor", "pictures")
    assert less.value == pytest.approx(-0.25)


def test_who_is_lacking_is_said_before_anything_is_judged(plain: Callable[..., Tensor]) -> None:
    categories: tuple[Category, ...] = ("spatial", "numeracy", "non-spatial", "complex")
    for category in categories:
        with pytest.raises(UsageError, check=coded("judge_lacking")):
            Scorer(Roles(questions=Sure(), chunker=RULES), category)
    with pytest.raises(UsageError, check=coded("no_relation")):
        judge_benchmark([pictures(plain, ("a cat", RED))], Roles(detector=Finds(), chunker=RULES), "spatial")


def test_the_command_matches_judges_and_writes(release: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "color_val.txt", tmp_path / "judged"
    settings: dict[str, Any] = {"benchmark": "compbench", "category": "color", "per_prompt": 2, "judge": [Sure()]}
    report = judge([release], prompts=prompts, out=out, device="cpu", **settings)
    assert report.figure("vqa-product").value == 1.0
    stored = json.loads((out / "judgement.json").read_text())
    assert (stored["setting"]["category"], stored["setting"]["prompts"]) == ("color", 2)
    assert "a red bench" in json.loads((out / "pictures.json").read_text())["run"]
    assert "P(yes)" in (out / "table.txt").read_text()


def test_a_clip_does_not_judge_what_it_guided(
    run_folder: Callable[..., Path], colour_referee: Callable[..., TwoTower], tmp_path: Path
) -> None:
    seer = colour_referee("seer", words={"a cat eats": RED})
    guides = [{"name": "seer", "weight": 1.0, "fingerprint": fingerprint(seer)}]
    shown = run_folder("guided", {"a cat eats": RED}, referees=guides)
    (tmp_path / "prompts.txt").write_text("a cat eats\n")
    settings: dict[str, Any] = {"benchmark": "compbench", "category": "non-spatial", "per_prompt": 1, "judge": [seer]}
    with pytest.raises(UsageError):
        judge([shown], prompts=tmp_path / "prompts.txt", device="cpu", **settings)
    report = judge([shown], prompts=tmp_path / "prompts.txt", device="cpu", allow_self=True, **settings)
    assert report.figure("cosine").value == pytest.approx(1.0)
    assert any("guided" in note for note in report.notes)


def test_the_embedded_judge_tells_scenes_from_each_other() -> None:
    scenes = [compose(n, "unseen-styles", seed=2, size=64, categories=("shape",)) for n in range(6)]
    captions = [scene.caption for scene in scenes]
    images = torch.stack([scene.image for scene in scenes])
    own = from_tensor(images, captions, name="own")
    other = from_tensor(images.roll(1, 0), captions, name="other")
    report = judge_benchmark([own, other], load_roles("emoji-scenes", torch.device("cpu")), "shape")
    assert report.figure("soft-tifa", pictures="own").value > 0.6
    assert report.figure("soft-tifa", kind="difference").value < -0.3
    calibration = report.figure("soft-tifa", pictures="own").calibration
    assert calibration is not None
    assert "95.4%" in calibration
    placed = from_tensor(images[:1], ["an orange synagogue above two mammoths"])
    found = judge_benchmark([placed], load_roles("emoji-scenes", torch.device("cpu")), "spatial")
    assert {figure.metric for figure in found.figures} == {"vqa-product", "soft-tifa", "detected-places"}
    with pytest.raises(UsageError):  # another wording than that of compositions
        judge_benchmark([from_tensor(images[:1], ["cats!"])], load_roles("emoji-scenes", torch.device("cpu")), "shape")


def test_faults_of_a_call() -> None:
    given = (None,) * 6 + (False,)
    assert any("category" in fault for fault in faults([], ["cosine"], None, *given, "compbench", None))
    assert any("prompts" in fault for fault in faults([], ["cosine"], None, *given, "compbench", "color"))
    assert not any("prompts" in fault for fault in faults([], ["cosine"], None, *given, None, None))


def test_the_geometric_mean_of_answers() -> None:
    assert geometric_mean([0.25, 1.0]) == 0.5
    assert geometric_mean([]) == 1.0
