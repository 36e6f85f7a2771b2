from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from robustclip.errors import UsageError, coded
from robustclip.referees import checkpoints, openclip, recognition
from robustclip.referees.checkpoints import load_checkpoint, load_local_dir, load_timm, logit_numbers
from robustclip.referees.folder import Towers
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.registry import load_referee
from robustclip.referees.sentence import SentenceEncoder
from robustclip.referees.toy import ToyText


@pytest.fixture
def full(open_clip_model: torch.nn.Module, tmp_path: Path) -> Path:
    """A full checkpoint in a trainer's wrapper."""
    path = tmp_path / "CLIPAG_tiny.pt"
    state = {f"module.{name}": value for name, value in open_clip_model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 2}, path)
    return path


@pytest.fixture
def image_only(open_clip_model: Any, tmp_path: Path) -> Path:
    """An image tower alone, as FARE and TeCoA are released."""
    path = tmp_path / "fare.pt"
    torch.save({name: value + 0.01 for name, value in open_clip_model.visual.state_dict().items()}, path)
    return path


def test_a_full_checkpoint(full: Path, architecture: str, open_clip_model: Any, images: Tensor) -> None:
    referee = load_checkpoint(full, architecture, quick_gelu=False)
    with torch.no_grad():
        expected = open_clip_model.encode_image(referee.preprocess(images), normalize=True)
    torch.testing.assert_close(referee.embed_images(images), expected)
    assert referee.logit_scale == pytest.approx(open_clip_model.logit_scale.exp().item())
    assert referee.card.provenance == {
        "checkpoint": "CLIPAG_tiny.pt",
        "architecture": architecture,
        "preprocessing": "CLIP's own: no weights of tiny-vit are published",
    }
    assert not referee.card.architecture["quick_gelu"]


PUBLISHED = ("MobileCLIP-S1", "MobileCLIP2-S3", "ViT-B-16-SigLIP", "ViT-H-14-CLIPA", "PE-Core-B-16", "ViT-B-32", "RN50")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_bare_file_is_seen_as_the_published_weights_of_its_architecture(name: str) -> None:
    preprocess, told = checkpoints._preprocess(name, 64, None)
    assert told == f"that of the published weights of {name}"
    picture = Image.fromarray(
        torch.randint(256, (70, 90, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    )
    exact = Preprocess.from_config(preprocess.config())
    exact.exact = True
    for tag in open_clip.list_pretrained_tags_by_model(name):
        cfg = PreprocessCfg(size=64, **{key: get_pretrained_cfg(name, tag)[key] for key in openclip.SEEN})
        expected = image_transform_v2(cfg, is_train=False)(picture)
        assert ((exact(to_tensor(picture)[None])[0] - expected) * exact.std[0]).abs().max() < 1.01 / 255


def test_a_tag_says_how_a_bare_file_was_trained() -> None:
    preprocess, told = checkpoints._preprocess("ViT-L-14", 64, None)
    assert preprocess.config()["mean"][0] == pytest.approx(0.48145466)
    assert "but for laion2b_s32b_b82k (" in told
    preprocess, told = checkpoints._preprocess("ViT-L-14", 64, "laion2b_s32b_b82k")
    assert preprocess.config()["mean"] == [0.5, 0.5, 0.5]
    assert told == "that of ViT-L-14:laion2b_s32b_b82k"


def test_a_folder_is_seen_at_the_towers_size_as_by_open_clip(
    open_clip_model: Any, tiny_cfg: Any, tmp_path: Path
) -> None:
    preprocess_cfg = {"size": 48, "mean": None, "std": [0.5, 0.5, 0.5], "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": tiny_cfg, "preprocess_cfg": preprocess_cfg})
    )
    save_file(open_clip_model.state_dict(), tmp_path / "open_clip_model.safetensors")
    found = load_local_dir(tmp_path)
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").visual.preprocess_cfg
    assert found.preprocess.config() == Preprocess.from_config(theirs).config()
    assert found.card.provenance["preprocessing"].endswith("says nothing of interpolation, mean: CLIP's own")


def test_quick_gelu_makes_a_difference(full: Path, architecture: str, images: Tensor) -> None:
    without = load_checkpoint(full, architecture, quick_gelu=False)
    with_it = load_checkpoint(full, architecture, quick_gelu=True)
    named = load_checkpoint(full, f"{architecture}-quickgelu")
    assert (without.embed_images(images) - with_it.embed_images(images)).abs().max() > 1e-4
    assert torch.equal(named.embed_images(images), with_it.embed_images(images))


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "RN50"])
def test_quick_gelu_is_asked_for_where_openai_was_first(name: str, full: Path) -> None:
    with pytest.raises(UsageError, check=coded("quick_gelu_unknown", architecture=name)):
        load_checkpoint(full, name)


def test_quick_gelu_is_not_asked_for_where_there_is_one_kind(full: Path) -> None:
    with pytest.raises(UsageError, check=coded("does_not_fit")):
        load_checkpoint(full, "ViT-B-32-256")


def test_quick_gelu_that_contradicts_the_architecture(full: Path, architecture: str) -> None:
    with pytest.raises(UsageError, check=coded("quick_gelu_contradicted", instead="tiny-vit")):
        load_checkpoint(full, f"{architecture}-quickgelu", quick_gelu=False)


@pytest.mark.parametrize("prefix", ["", "visual.", "module.model."])
def test_an_image_tower_alone_takes_the_rest_from_a_base(
    prefix: str, image_only: Path, full: Path, architecture: str, images: Tensor
) -> None:
    weights = torch.load(image_only, weights_only=True)
    torch.save({prefix + name: value for name, value in weights.items()}, image_only)
    referee = load_checkpoint(image_only, architecture, quick_gelu=False, pretrained=str(full))
    base = load_checkpoint(full, architecture, quick_gelu=False)
    for name, value in referee.image_tower.state_dict().items():
        assert torch.equal(value, weights[name])
    assert torch.equal(referee.embed_texts(["cat"]), base.embed_texts(["cat"]))
    assert not torch.allclose(referee.embed_images(images), base.embed_images(images))
    assert referee.logit_scale == base.logit_scale
    assert referee.card.provenance["text_tower"] == "CLIPAG_tiny"


def test_a_tag_as_base_answers_the_question_of_quick_gelu(
    image_only: Path, full: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_checkpoint(full, architecture, quick_gelu=True)
    monkeypatch.setattr(checkpoints, "tag_quick_gelu", lambda _, tag: True if tag == "openai" else None)
    monkeypatch.setattr(checkpoints, "load_tag", lambda *_: base)
    referee = load_checkpoint(image_only, architecture, pretrained="openai")
    assert referee.card.architecture["quick_gelu"]
    assert referee.text_tower is base.text_tower


def test_an_image_tower_without_a_base_says_what_is_needed(image_only: Path, full: Path, architecture: str) -> None:
    with pytest.raises(UsageError, match=r'image tower only: .*pretrained="openai"'):
        load_checkpoint(image_only, architecture, quick_gelu=True)
    with pytest.raises(UsageError, check=coded("unknown_weights", architecture="tiny-vit", pretrained="nothing")):
        load_checkpoint(image_only, architecture, quick_gelu=True, pretrained="nothing")
    with pytest.raises(UsageError, check=coded("no_text_tower", source=str(image_only))):
        load_checkpoint(image_only, architecture, quick_gelu=True, pretrained=str(image_only))


def test_a_wrong_architecture_names_those_that_fit(full: Path, architecture: str) -> None:
    with pytest.raises(
        UsageError,
        check=coded("does_not_fit", missing=[], unexpected=[], shapes=["proj (16, 12) for (16, 24)"]),
        match="shapes: tiny-vit, tiny-vit-q",
    ):
        load_checkpoint(full, "tiny-vit-wide")


def test_shapes_that_no_architecture_has(tmp_path: Path, architecture: str) -> None:
    save_file({"stem.weight": torch.ones(3)}, tmp_path / "odd.safetensors")
    with pytest.raises(UsageError, check=coded("does_not_fit", unexpected=["stem.weight"]), match="No ViT or ResNet"):
        load_checkpoint(tmp_path / "odd.safetensors", architecture, quick_gelu=False)


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32", "ViT-L-14-336"])
def test_fitting_architectures_are_found_by_shapes(name: str) -> None:
    with torch.device("meta"):
        weights = dict(openclip.build_image_tower(checkpoints.builtin_config(name)).state_dict())
    assert f" {name}" in recognition.fitting(weights, name)


@pytest.mark.parametrize("prefix", ["model.", "model._orig_mod.", "clipmodel.", "a.b.module.net."])
def test_a_full_clip_below_a_prefix_and_beside_a_head(
    prefix: str, open_clip_model: Any, architecture: str, images: Tensor, tmp_path: Path, caplog: Any
) -> None:
    state = {prefix + name: value for name, value in open_clip_model.state_dict().items()}
    torch.save({"state_dict": state | {"head.weight": torch.ones(2, 12)}}, tmp_path / "x.ckpt")
    referee = load_checkpoint(tmp_path / "x.ckpt", architecture, quick_gelu=False)
    with torch.no_grad():
        expected = open_clip_model.encode_image(referee.preprocess(images), normalize=True)
    torch.testing.assert_close(referee.embed_images(images), expected)
    assert "1 tensors belong to neither tower and are left out: head.weight" in caplog.text
    assert referee.card.provenance["left out"] == "1 tensors of neither tower: head.weight"


def test_compiled_towers_inside_a_wrapped_model(open_clip_model: Any, architecture: str, tmp_path: Path) -> None:
    """torch.compile on a tower alone puts its mark in the middle of the names."""
    state = {k.replace("visual.", "visual._orig_mod."): v for k, v in open_clip_model.state_dict().items()}
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "x.pt")
    referee = load_checkpoint(tmp_path / "x.pt", architecture, quick_gelu=False)
    assert torch.equal(referee.image_tower.proj, open_clip_model.visual.proj)


@pytest.mark.parametrize("prefix", ["backbone.", "encoder.image.", "model.net."])
def test_an_image_tower_alone_below_any_prefix_and_beside_a_head(
    prefix: str, image_only: Path, full: Path, architecture: str, caplog: Any
) -> None:
    weights = torch.load(image_only, weights_only=True)
    torch.save({prefix + k: v for k, v in weights.items()} | {"fc.weight": torch.ones(2, 12)}, image_only)
    referee = load_checkpoint(image_only, architecture, quick_gelu=False, pretrained=str(full))
    assert torch.equal(referee.image_tower.proj, weights["proj"])
    assert "left out: fc.weight" in caplog.text


@pytest.mark.parametrize("visual", ["", "visual."])
def test_two_models_in_one_file_are_refused_and_the_way_out_works(
    visual: str, open_clip_model: Any, full: Path, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = open_clip_model.state_dict() if visual else open_clip_model.visual.state_dict()
    both = {f"{part}.{k}": v + i for i, part in enumerate(("ema_model", "online_model")) for k, v in state.items()}
    torch.save(both, tmp_path / "two.pt")
    with pytest.raises(UsageError, check=coded("several_models", below=["ema_model.", "online_model."])) as refusal:
        load_checkpoint(tmp_path / "two.pt", architecture, quick_gelu=False, pretrained=str(full))
    monkeypatch.chdir(tmp_path)
    exec("\n".join(str(refusal.value).splitlines()[1:]), {})
    referee = load_checkpoint(Path("one.safetensors"), architecture, quick_gelu=False, pretrained=str(full))
    assert torch.equal(referee.image_tower.proj, open_clip_model.visual.proj)


def test_a_full_clip_without_its_scale_is_refused_and_the_way_out_works(
    open_clip_model: Any, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {f"clip.{name}": value for name, value in open_clip_model.state_dict().items() if name != "logit_scale"}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UsageError, match="has no logit_scale") as refusal:
        load_checkpoint(tmp_path / "x.pt", architecture, quick_gelu=False)
    monkeypatch.chdir(tmp_path)
    exec("\n".join(str(refusal.value).splitlines()[1:]), {})
    referee = load_checkpoint(Path("whole.safetensors"), architecture, quick_gelu=False)
    assert referee.logit_scale == pytest.approx(100.0)
    assert "left out" not in referee.card.provenance


def test_a_bias_that_the_architecture_has_is_asked_for() -> None:
    towers = Towers({}, {}, {"logit_scale": torch.tensor(2.0)})
    with pytest.raises(UsageError, match="has no logit_bias"):
        logit_numbers(Path("x.pt"), towers, {"init_logit_bias": -10})
    assert logit_numbers(Path("x.pt"), towers, {})[1] is None


@pytest.mark.parametrize("given", ["index", "folder"])
def test_shards_of_a_full_clip(
    given: str, open_clip_model: Any, architecture: str, tiny_cfg: Any, tmp_path: Path
) -> None:
    state, places = open_clip_model.state_dict(), {}
    for i, names in enumerate((list(state)[::2], list(state)[1::2])):
        save_file({name: state[name] for name in names}, tmp_path / f"model-{i}.safetensors")
        places |= dict.fromkeys(names, f"model-{i}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny_cfg}))
    options: Any = {"architecture": architecture, "quick_gelu": False} if given == "index" else {}
    referee = load_referee(index if given == "index" else tmp_path, **options)
    assert torch.equal(referee.image_tower.proj, open_clip_model.visual.proj)


def test_a_text_tower_with_a_hole_is_refused(open_clip_model: Any, architecture: str, tmp_path: Path) -> None:
    state = open_clip_model.state_dict()
    del state["ln_final.weight"]
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(
        UsageError, check=coded("does_not_fit", source="the text tower of tiny-vit", missing=["ln_final.weight"])
    ):
        load_checkpoint(tmp_path / "x.pt", architecture, quick_gelu=False)


def test_a_folder_that_open_clip_saved(open_clip_model: Any, tiny_cfg: Any, images: Tensor, tmp_path: Path) -> None:
    config = {"model_cfg": tiny_cfg | {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "size": 32}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(open_clip_model.state_dict(), tmp_path / "open_clip_model.safetensors")
    referee = load_local_dir(tmp_path)
    plain = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a cat"])
    with torch.no_grad():
        expected = plain.encode_image((images - 0.5) / referee.preprocess.std)
        torch.testing.assert_close(referee.embed_images(images, normalize=False), expected)
        torch.testing.assert_close(referee.embed_texts(["a cat"], normalize=False), plain.encode_text(tokens))
    assert referee.logit_scale == pytest.approx(plain.logit_scale.exp().item())


def test_a_folder_that_open_clip_cannot_have_saved(open_clip_model: Any, tiny_cfg: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("missing_file", path=str(tmp_path / "open_clip_config.json"))):
        load_local_dir(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("[]")
    with pytest.raises(UsageError, check=coded("not_a_config")):
        load_local_dir(tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny_cfg}))
    with pytest.raises(UsageError, check=coded("no_weights")):
        load_local_dir(tmp_path)
    save_file(open_clip_model.visual.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UsageError, check=coded("no_text_tower")):
        load_local_dir(tmp_path)


def test_a_timm_tower_beside_a_text_tower(tmp_path: Path, images: Tensor) -> None:
    tower = timm.create_model("test_convnext", num_classes=0).eval()
    save_file(tower.state_dict(), tmp_path / "tower.safetensors")
    referee = load_timm(
        "test_convnext", tmp_path / "tower.safetensors", text_tower=ToyText(tower.num_features), image_size=32
    )
    with torch.no_grad():
        expected = tower(referee.preprocess(images))
    torch.testing.assert_close(referee.embed_images(images, normalize=False), expected)


def test_a_timm_tower_with_a_projection_beside_the_sentence_encoder(
    tmp_path: Path, sentence_referee: Any, encoder: SentenceEncoder, images: Tensor
) -> None:
    save_file(sentence_referee.image_tower.state_dict(), tmp_path / "tower.safetensors")
    referee = load_timm("test_convnext", tmp_path / "tower.safetensors", text_tower=encoder, image_size=32)
    assert torch.equal(
        referee.image_tower(referee.preprocess(images)), sentence_referee.image_tower(referee.preprocess(images))
    )


def test_a_timm_tower_of_another_width_or_without_weights(tmp_path: Path) -> None:
    save_file(timm.create_model("test_convnext", num_classes=0).state_dict(), tmp_path / "tower.safetensors")
    with pytest.raises(UsageError, check=coded("unequal_widths", image=(1, 64), text=(1, 8))):
        load_timm("test_convnext", tmp_path / "tower.safetensors", text_tower=ToyText(8), image_size=32)
    with pytest.raises(UsageError, match=r'timm:test_convnext needs weights .*pretrained="tower.safetensors"'):
        load_timm("test_convnext", None)
