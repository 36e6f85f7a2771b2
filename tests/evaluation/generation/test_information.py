"""A diffusion model as a judge: its mutual information of picture and prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from robustclip.data.pairs import compose_pair, compositional_prompts
from robustclip.diffusion.mutual_information import pointwise_mi
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.errors import UsageError, coded
from robustclip.evaluation.generation import judge, judge_pictures, scorers
from robustclip.evaluation.generation.measure import JudgeOptions
from robustclip.evaluation.generation.pictures import from_tensor
from robustclip.recipes import run
from robustclip.synthesis.pictures import read_facts

from ...diffusion.tiny import tiny_pipeline

MODEL = "mi:emoji-diffusion"


def test_own_prompts_are_worth_more_than_others_and_figures_are_the_estimators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scorers, "DRAWS", 1)
    pairs = compositional_prompts()[:2]
    images = torch.stack([compose_pair(pair, split="guide-styles") for pair in pairs])
    texts = [str(pair) for pair in pairs]
    own, other = from_tensor(images, texts, name="own"), from_tensor(images, texts[1:] + texts[:1], name="other")
    options = JudgeOptions(["cosine"], seed=3)
    report = judge_pictures([own, other], [MODEL], options=options, device="cpu")
    assert {figure.metric for figure in report.figures} == {"mutual-information"}
    found = {figure.pictures: figure.value for figure in report.figures if figure.kind == "value"}
    assert found["own"] > 0 > found["other"]
    model = load_diffusion("emoji-diffusion")
    with torch.no_grad():
        right = pointwise_mi(
            model, model.encode(images), model.embed_prompts(texts), model.embed_prompts([""]), draws=1, seed=3
        )
    assert found["own"] == pytest.approx(float(right.nats.mean()), rel=1e-3)
    assert report.setting["judges"][MODEL]
    assert not any(MODEL in note for note in report.notes)  # nothing says that it made them


def test_pictures_that_the_model_made_or_chose_are_known_by_its_weights(tmp_path: Path) -> None:
    call = {"quick": True, "device": "cpu", "best_of": 2, "by": MODEL, "prompt": ["a red fish"]}
    made = run("diffusion", "synthesize", {**call, "out": tmp_path / "chosen"})
    run("diffusion", "synthesize", {**call, "best_of": 1, "by": None, "out": tmp_path / "made"})
    facts = read_facts(made.files[0])
    assert facts["generator"]["fingerprint"] == load_diffusion("emoji-diffusion").fingerprint
    assert len(facts["scores"]) == 2
    assert facts["candidate"] == max(range(2), key=facts["scores"].__getitem__)
    told = json.loads((tmp_path / "chosen" / "run.json").read_text())
    assert any("by the diffusion model itself" in str(warning) for warning in told["warnings"])
    with pytest.raises(UsageError, check=coded("judge_guides")):
        judge([tmp_path / "chosen"], judge=[MODEL], metrics=["cosine"], device="cpu")
    report = judge([tmp_path / "made"], judge=[MODEL], metrics=["cosine"], device="cpu")
    assert any("made the pictures" in note for note in report.notes)


def test_a_model_that_is_not_there_is_refused() -> None:
    pictures = from_tensor(torch.zeros(1, 3, 64, 64), ["a cat"])
    options = JudgeOptions(["cosine"])
    with pytest.raises(UsageError, check=coded("unknown_diffusion_model", given="emoji-difusion")):
        judge_pictures([pictures], ["mi:emoji-difusion"], options=options, device="cpu")


def test_models_in_folders_of_one_name_are_named_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "DRAWS", 1)
    given = [f"mi:{tmp_path / number / 'unet'}" for number in ("first", "second")]
    for name, prediction in zip(given, ("epsilon", "v_prediction"), strict=True):
        tiny_pipeline(Path(name.removeprefix("mi:")), prediction=prediction)
    pictures = from_tensor(torch.rand(2, 3, 16, 16), ["a cat", "a dog"])
    report = judge_pictures([pictures], given, options=JudgeOptions(["cosine"]), device="cpu")
    assert [one.judge for one in report.figures] == given == list(report.setting["judges"])
    assert len({one.value for one in report.figures}) == 2
