from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor

from robustclip.errors import RunError, UsageError, coded
from robustclip.referees import openclip
from robustclip.referees.base import TwoTower
from robustclip.referees.openclip import build_image_tower, load_hub, load_tag, new_referee, tags
from robustclip.referees.sentence import OpenClipText, package_folder
from robustclip.referees.toy import ToyText

TEXTS = ["a cat", "two dogs on a lawn"]
CONFIGS = [
    {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32},
    {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 32},
    {"timm_model_name": "test_convnext", "timm_proj": "linear", "image_size": 32},
    {"timm_model_name": "test_convnext", "timm_proj": "none", "image_size": 32},
    {"timm_model_name": "test_resnet", "timm_model_pretrained": True, "timm_proj": "", "image_size": 32},
]


def normalised(images: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return (images - mean) / std


@pytest.fixture
def fake_download(
    architecture: str, open_clip_model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`tiny-vit:good` and `tiny-vit:quick` are pretrained tags whose weights are the tiny model's."""
    torch.save(open_clip_model.state_dict(), tmp_path / "tag.pt")
    known = {(name, "good"): {"quick_gelu": False} for name in (architecture, f"{architecture}-quickgelu")}
    known |= {(name, "quick"): {"quick_gelu": True, "mean": (0.5, 0.5, 0.5)} for name, _ in list(known)}
    for module in (openclip, open_clip.factory):
        monkeypatch.setattr(module, "get_pretrained_cfg", lambda *key: known.get(key, {}))
    monkeypatch.setattr(openclip, "list_pretrained_tags_by_model", lambda _: ["good", "quick"])
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(tmp_path / "tag.pt"))


@pytest.mark.parametrize("vision", CONFIGS)
def test_the_image_tower_is_open_clips_visual(vision: dict[str, object]) -> None:
    text = {"width": 16, "heads": 2, "layers": 1}
    tower = build_image_tower({"embed_dim": 12, "vision_cfg": vision, "text_cfg": text})
    plain = open_clip.model.CustomTextCLIP(12, vision | {"timm_model_pretrained": False}, text).visual
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    assert {name: value.shape for name, value in tower.state_dict().items()} == shapes
    assert type(tower) is type(plain)


@pytest.mark.parametrize(
    ("model_cfg", "check"),
    [
        ({"vision_cfg": {}}, coded("not_a_config")),
        ({"embed_dim": 3, "vision_cfg": {"colour": 1}}, coded("refused", error="TypeError")),
        ({"embed_dim": 3, "vision_cfg": {"timm_model_name": "resnet3"}}, coded("refused", error="RuntimeError")),
    ],
)
def test_configs_that_open_clip_cannot_build(model_cfg: dict[str, object], check: Any) -> None:
    with pytest.raises(UsageError, check=check):
        build_image_tower(model_cfg)


def test_a_new_referee_repeats_with_the_seed_and_describes_itself(sentence_referee: TwoTower, images: Tensor) -> None:
    assert sentence_referee.embed_images(images).shape == (3, 384)
    assert sentence_referee.card.architecture["vision_cfg"]["timm_model_name"] == "test_convnext"
    assert sentence_referee.logit_scale == sentence_referee.card.logit_scale == 20.0
    with torch.random.fork_rng():
        torch.manual_seed(4)
        again = build_image_tower(sentence_referee.card.architecture)
    for one, other in zip(again.parameters(), sentence_referee.image_tower.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_new_referee_of_another_width_is_refused(sentence_cfg: dict[str, object]) -> None:
    with pytest.raises(UsageError, check=coded("unequal_widths", text=(1, 16))):
        new_referee(sentence_cfg, {"size": 32}, ToyText(16), 20.0, "wrong")


def test_a_tags_embeddings_are_open_clips(
    fake_download: None, architecture: str, open_clip_model, images: Tensor
) -> None:
    referee = load_tag(architecture, "good")
    tokens = open_clip.get_tokenizer(architecture)(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(
            referee.embed_images(images), open_clip_model.encode_image(normalised(images), normalize=True)
        )
        torch.testing.assert_close(referee.embed_texts(TEXTS), open_clip_model.encode_text(tokens, normalize=True))
    assert referee.logit_scale == pytest.approx(open_clip_model.logit_scale.exp().item())
    assert referee.image_size == (32, 32)
    assert referee.card.name == "tiny-vit:good"
    assert not any(parameter.requires_grad for parameter in referee.parameters())


def test_the_contrastive_loss_is_open_clips(
    fake_download: None, architecture: str, open_clip_model, images: Tensor
) -> None:
    referee = load_tag(architecture, "good")
    captions = ["one", "two", "three"]
    with torch.no_grad():
        expected = ClipLoss()(*open_clip_model(normalised(images), open_clip.get_tokenizer(architecture)(captions)))
        logits = referee.logit_scale * referee.embed_images(images) @ referee.embed_texts(captions).T
    target = torch.arange(3)
    found = (
        torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
    ) / 2
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("error")
def test_the_tag_decides_on_quick_gelu_and_preprocessing(
    fake_download: None, architecture: str, images: Tensor
) -> None:
    good, quick = load_tag(architecture, "good"), load_tag(architecture, "quick")
    assert quick.card.architecture["quick_gelu"]
    assert quick.card.preprocess["mean"] == [0.5, 0.5, 0.5]
    assert not torch.allclose(good.image_tower(images), quick.image_tower(images), atol=1e-3)
    via_name = load_tag(f"{architecture}-quickgelu", "quick", quick_gelu=True)
    assert torch.equal(via_name.embed_images(images), quick.embed_images(images))


@pytest.mark.parametrize(
    ("suffix", "tag", "quick_gelu"), [("", "good", True), ("", "quick", False), ("-quickgelu", "good", None)]
)
def test_a_contradiction_about_quick_gelu_is_refused(
    fake_download: None, architecture: str, suffix: str, tag: str, quick_gelu: bool | None
) -> None:
    with pytest.raises(UsageError, check=coded("quick_gelu_contradicted", tag=tag)):
        load_tag(architecture + suffix, tag, quick_gelu=quick_gelu)


def test_a_model_of_the_hub(
    tiny_cfg: dict[str, object], open_clip_model, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny_cfg | {"quick_gelu": True}}))
    torch.save(open_clip_model.state_dict(), tmp_path / "model.bin")

    def cached(model_id: str, filename: str = "model.bin", **_: object) -> str:
        assert model_id == "some/clip"
        return str(tmp_path / filename)

    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", cached)
    referee = load_hub("hf-hub:some/clip")
    plain = open_clip.create_model("hf-hub:some/clip").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            referee.embed_images(images, normalize=False), plain.encode_image(normalised(images))
        )
    assert referee.card.provenance["source"] == "hf-hub:some/clip"


def test_unknown_architectures_and_tags_name_near_ones(architecture: str) -> None:
    with pytest.raises(
        UsageError, check=coded("unknown_architecture", architecture="ViT-B32"), match=r"near ones: .*ViT-B-32"
    ):
        load_tag("ViT-B32", "openai")
    with pytest.raises(
        UsageError,
        check=coded("unknown_weights", architecture="ViT-B-32", pretrained="laion2b_s34b"),
        match="laion2b_s34b_b79k",
    ):
        load_tag("ViT-B-32", "laion2b_s34b")
    with pytest.raises(UsageError, match=r"open_clip.list_models"):
        load_tag("zzz", "openai")
    with pytest.raises(UsageError, check=coded("captioner", name="tiny-captioner")):
        load_tag("tiny-captioner", "x")


def test_out_of_reach_says_what_and_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise OSError("offline")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", fail)
    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", fail)
    with pytest.raises(
        RunError,
        check=coded("unreachable", what="ViT-B-32:laion2b_s34b_b79k"),
        match=r"offline.*HF_HOME.*architecture=",
    ):
        load_tag("ViT-B-32", "laion2b_s34b_b79k")
    with pytest.raises(RunError, match=r"could not fetch hf-hub:some/clip"):
        load_hub("hf-hub:some/clip")


def test_a_fetched_pickle_that_could_run_code_is_refused(
    fake_download: None, architecture: str, tmp_path: Path
) -> None:
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "tag.pt")
    with pytest.raises(UsageError, check=coded("unsafe_pickle", path="tiny-vit:good"), match="architecture="):
        load_tag(architecture, "good")


def test_all_tags_are_listed() -> None:
    assert "ViT-B-32:laion2b_s34b_b79k" in tags()


def test_texts_in_batches_and_threads(fake_download: None, architecture: str) -> None:
    text_tower = load_tag(architecture, "good").text_tower
    many = [f"text {i}" for i in range(7)]
    with torch.no_grad():
        expected = text_tower(many)
        text_tower.batch = 3  # type: ignore[assignment]
        torch.testing.assert_close(text_tower(many), expected)
        with ThreadPoolExecutor(4) as pool:
            rows = list(pool.map(lambda text: text_tower([text])[0], many))
    torch.testing.assert_close(torch.stack(rows), expected)
    assert text_tower([]).shape == (0, 12)


def test_tokens_are_counted_uncut() -> None:
    tower = OpenClipText(torch.nn.Linear(1, 1), SimpleTokenizer(), width=1)
    assert tower.context == 77
    assert tower.count_tokens(["", "a green turtle", "turtle " * 500]) == [2, 5, 502]
    folder = str(package_folder())
    for mode, around in ((None, 2), ("clips", 3)):
        tokenizer = HFTokenizer(folder, context_length=64, tokenizer_mode=mode)
        other = OpenClipText(torch.nn.Linear(1, 1), tokenizer, width=1)
        assert other.count_tokens([]) == []
        assert (other.context, other.count_tokens(["a cat", "turtle " * 300])) == (64, [2 + around, 300 + around])
    unknown = OpenClipText(torch.nn.Linear(1, 1), lambda texts: torch.zeros(len(texts), 8), width=1)
    assert unknown.context is None


@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc/x", "a/b/c", "", "a b/c", "a/../b", "a--b/c", "org/name\n", "x" * 500, "org/", "https://x/y"],
)
def test_names_that_no_hub_has_are_refused_before_a_network_is_asked_for(name: str) -> None:
    with pytest.raises(UsageError, check=coded("not_a_hub_name")):
        load_hub(f"hf-hub:{name}")


@pytest.mark.parametrize("name", ["org/name", "name", "org/na.me_1-x@main", "org/name@refs/pr/1"])
def test_names_that_a_hub_may_have_are_asked_for(name: str) -> None:
    with pytest.raises(RunError, check=coded("unreachable")):
        load_hub(f"hf-hub:{name}")
