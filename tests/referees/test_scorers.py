"""Preference models as judges: CLIP layouts on drawn weights, and the interfaces of packages that need a download."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from robustclip.errors import UsageError
from robustclip.evaluation.generation.judge import judge_images
from robustclip.evaluation.generation.measure import JudgeOptions
from robustclip.evaluation.generation.scorers import PreferenceScorer, clip_scorer, is_scorer
from robustclip.referees.registry import load_referee

PROMPTS = ["cat", "dog"]


@pytest.fixture
def folder(tiny_clip_model: Callable[[Path, int], Path], tmp_path: Path) -> Path:
    return tiny_clip_model(tmp_path / "clip", 53)


def test_pickscore_is_the_logit_of_a_clip_and_hpsv2_its_cosine(folder: Path, images: Tensor) -> None:
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = CLIPTokenizer.from_pretrained(folder, local_files_only=True)(PROMPTS, padding=True, return_tensors="pt")
    pixels = load_referee(str(folder)).preprocess(images[:2])
    with torch.no_grad():
        wanted = model(pixel_values=pixels, **tokens).logits_per_image.diagonal()
    report = judge_images(images[:2], PROMPTS, [f"pickscore:{folder}", f"hpsv2:{folder}"], device="cpu")
    assert report.figure("pickscore").value == pytest.approx(wanted.mean().item(), abs=1e-4)
    scale = model.logit_scale.exp().item()
    assert report.figure("hpsv2").value == pytest.approx(wanted.mean().item() / scale, abs=1e-5)
    assert report.figure("pickscore").judge == "pickscore:clip"
    assert len(report.figure("pickscore").fingerprint) == 64


def test_gradients_reach_the_pixels(folder: Path, images: Tensor) -> None:
    asked = images[:2].clone().requires_grad_(True)
    clip_scorer(load_referee(str(folder)), 1.0)(asked, PROMPTS).sum().backward()
    assert asked.grad is not None
    assert asked.grad.abs().max() > 0


def test_imagereward_is_called_as_imscore_offers_it(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    class ImageReward(torch.nn.Linear):
        @classmethod
        def from_pretrained(cls, name: str) -> ImageReward:
            assert name == "reward"
            return cls(1, 1)

        def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
            return pixels.mean((1, 2, 3))[:, None] + len(prompts)

    names = ("imscore", "imscore.imreward", "imscore.imreward.model")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[name].__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
    monkeypatch.setattr(sys.modules[names[-1]], "ImageReward", ImageReward, raising=False)
    report = judge_images(images[:2], PROMPTS, ["imagereward:reward"], device="cpu")
    assert report.figure("imagereward").value == pytest.approx(2 + images[:2].mean().item(), abs=1e-5)


def test_vqascore_is_called_as_t2v_metrics_offers_it(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    class VQAScore(torch.nn.Module):
        def __init__(self, model: str, device: str) -> None:
            super().__init__()
            assert (model, device) == ("clip-flant5-xl", "cpu")

        def forward(self, images: list[str], texts: list[str]) -> Tensor:
            with Image.open(images[0]) as picture:
                return torch.full((len(images), len(texts)), picture.width + len(texts[0]) / 10)

    module = ModuleType("t2v_metrics")
    module.__spec__ = SimpleNamespace(name="t2v_metrics")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "t2v_metrics", module)
    monkeypatch.setattr(module, "VQAScore", VQAScore, raising=False)
    report = judge_images(images[:2], ["cat", "mouse"], ["vqascore:clip-flant5-xl"], device="cpu")
    assert report.figure("vqascore").value == pytest.approx(32 + 0.4, abs=1e-5)


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imscore", None)
    monkeypatch.setitem(sys.modules, "t2v_metrics", None)
    for given in ("imagereward:x", "vqascore:x", "pickscore:", "hpsv2:/nowhere"):
        assert is_scorer(given)
        with pytest.raises(UsageError):
            PreferenceScorer(given, JudgeOptions([]), torch.device("cpu"))
    assert not is_scorer("emoji-judge")
    assert not is_scorer("mi:emoji-diffusion")
