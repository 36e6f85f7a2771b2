"""What `export` writes is what the library of each format loads."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from robustclip.attacks.threat import ThreatModel
from robustclip.errors import UsageError, coded
from robustclip.referees.base import TwoTower, unit
from robustclip.referees.card import Card
from robustclip.referees.openclip import name_of
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.registry import list_referees, load_referee
from robustclip.referees.toy import toy_referee
from robustclip.robustification.export import FORMATS, export

TEXTS = ["a cat", "two dogs on a lawn, one of them asleep"]
TINY = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32},
    "text_cfg": {"width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUSTCLIP_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "referees"


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`TINY` under a name that open_clip knows."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-export.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    return "tiny-export"


@pytest.fixture(scope="module")
def full(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state dict of the tiny CLIP, as open_clip's trainer leaves it."""
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(architecture)
        for parameter in model.parameters():
            if parameter.ndim:
                torch.nn.init.normal_(parameter, std=0.3)
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def referee(full: Path, architecture: str) -> TwoTower:
    found = load_referee(full, architecture=architecture)
    found.card.threat = ThreatModel("l2", 1.5, 32)
    return found


def test_hf_is_a_clip_model_and_a_registered_referee(referee: TwoTower, images: Tensor, tmp_path: Path) -> None:
    folder = export(referee, name="mine", to=tmp_path / "there", format="hf")
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found = unit(model.get_image_features(pixel_values=referee.preprocess(images)).pooler_output)
    torch.testing.assert_close(found, referee.embed_images(images), atol=1e-5, rtol=0)
    again = load_referee("mine")
    torch.testing.assert_close(again.embed_images(images), referee.embed_images(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(again.embed_texts(TEXTS), referee.embed_texts(TEXTS), atol=1e-5, rtol=0)
    assert again.card.family == "transformers"
    assert again.card.threat == referee.card.threat
    assert 'CLIPModel.from_pretrained("FOLDER")' in (folder / "README.md").read_text()


def test_the_card_says_how_awkward_texts_fare_in_another_tokenizer(referee: TwoTower, tmp_path: Path) -> None:
    folder = export(referee, name="theirs", to=tmp_path / "there", format="hf")
    told = load_referee(folder).card.provenance["texts"]
    assert re.search(r"of 6 awkward ones .* [1-6] embed otherwise than before, lowest cosine 0\.\d{3}", told)
    export(referee, name="ours", to=tmp_path / "here")
    assert "texts" not in load_referee("ours").card.provenance


@pytest.mark.parametrize("options", [{"resize_to": 40}, {"interpolation": "nearest"}, {"resize_mode": "none"}])
def test_preprocessing_that_only_transformers_has(options: Any, referee: TwoTower, tmp_path: Path) -> None:
    folder = export(referee, name="theirs", to=tmp_path / "there", format="hf")
    given = load_referee(folder)
    size = given.preprocess.size
    given.preprocess = Preprocess(size, crop="floor", **options)
    again = load_referee(export(given, name="again", to=tmp_path / "again", format="hf"))
    assert again.preprocess.config() == given.preprocess.config()
    with pytest.raises(UsageError, check=coded("unsupported")):
        export(given, name="plain", to=tmp_path / "plain")


def test_a_clip_model_goes_back_to_open_clip(referee: TwoTower, images: Tensor, tmp_path: Path) -> None:
    export(referee, name="theirs", format="hf")
    folder = export(Path("theirs"), name="ours", to=tmp_path / "ours")
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_image(referee.preprocess(images), normalize=True), referee.embed_images(images)
        )
        torch.testing.assert_close(model.encode_text(tokens, normalize=True), referee.embed_texts(TEXTS))
    assert load_referee("ours").card.family == "open_clip"
    assert not {"model.safetensors", "config.json"} & {path.name for path in folder.iterdir()}


def test_timm_loads_the_tower(referee: TwoTower, images: Tensor, tmp_path: Path) -> None:
    folder = export(referee, name="mine", to=tmp_path / "there", format="timm")
    tower = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        found = unit(tower(referee.preprocess(images)))
    torch.testing.assert_close(found, referee.embed_images(images), atol=1e-5, rtol=0)
    card = Card.load(folder)
    assert (card.family, card.threat, set(card.weights)) == ("timm", referee.card.threat, {"model.safetensors"})
    assert card.text_tower is not None
    assert card.text_tower["name"] == "that of tiny, which is not in this folder"
    assert "mine" not in [entry.name for entry in list_referees()]
    with pytest.raises(UsageError, match=r"image tower for timm.*timm.create_model\(.local-dir:"):
        load_referee(folder)


def test_the_image_tower_goes_where_fare_and_tecoa_go(
    referee: TwoTower, full: Path, architecture: str, images: Tensor, tmp_path: Path
) -> None:
    folder = export(referee, name="mine", to=tmp_path / "there", format="image-tower")
    weights = torch.load(folder / "image_tower.pt", weights_only=True)
    assert type(weights) is dict
    model = open_clip.create_model(architecture).eval()
    model.visual.load_state_dict(weights)
    with torch.no_grad():
        found = model.encode_image(referee.preprocess(images), normalize=True)
    torch.testing.assert_close(found, referee.embed_images(images))
    for file in ("image_tower.pt", "image_tower.safetensors"):
        again = load_referee(folder / file, architecture=architecture, quick_gelu=True, pretrained=str(full))
        assert torch.equal(again.embed_images(images), referee.embed_images(images))
        assert torch.equal(again.embed_texts(TEXTS), referee.embed_texts(TEXTS))
        for name, value in referee.image_tower.state_dict().items():
            assert torch.equal(again.image_tower.state_dict()[name], value)
    assert weights.keys() == load_file(folder / "image_tower.safetensors").keys()
    known = name_of(referee.card.architecture)  # another test may have given the same sizes another name
    assert known is not None
    assert f'"{known}", pretrained=TAG, force_quick_gelu=True' in (folder / "README.md").read_text()
    with pytest.raises(UsageError, check=coded("no_text_tower")):
        load_referee(folder)


def test_the_image_tower_beside_the_packaged_sentence_encoder_is_a_whole_referee(tmp_path: Path) -> None:
    folder = export(Path("emoji-robust"), name="mine", to=tmp_path / "there", format="image-tower")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_referee(folder).embed_images(images), load_referee("emoji-robust").embed_images(images))


def test_an_embedded_referee_for_timm_and_the_one_it_cannot_be(tmp_path: Path) -> None:
    folder = export(Path("emoji-robust"), name="mine", to=tmp_path / "there", format="timm")
    tower = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    referee = load_referee("emoji-robust")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(unit(tower(referee.preprocess(images))), referee.embed_images(images))
    with pytest.raises(UsageError, check=coded("unsupported"), match=r"timm \(resnet10t\)"):
        export(Path("emoji-robust"), name="mine", to=tmp_path / "hf", format="hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("format", ["timm", "image-tower"])
def test_a_tower_alone_is_not_registered(format: Any, referee: TwoTower, home: Path) -> None:
    with pytest.raises(UsageError, check=coded("tower_alone", format=format)):
        export(referee, name="mine", format=format)
    assert not home.exists()


@pytest.mark.skipif(os.name == "nt", reason="no modes there")
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_follows_the_umask(format: Any, referee: TwoTower, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = export(referee, name="mine", to=tmp_path / "there", format=format)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}
    assert folder.stat().st_mode & 0o777 == 0o750


def test_half_precision_in_every_format(referee: TwoTower, tmp_path: Path) -> None:
    for format in FORMATS:
        folder = export(referee, name="mine", to=tmp_path / format, format=format, half=True, register=False)  # type: ignore[arg-type]
        weights = load_file(next(folder.glob("*.safetensors")))
        assert {value.dtype for value in weights.values()} == {torch.float16}
    pickled = torch.load(tmp_path / "image-tower" / "image_tower.pt", weights_only=True)
    assert {value.dtype for value in pickled.values()} == {torch.float16}


@pytest.mark.parametrize("format", FORMATS)
def test_the_card_says_how_it_is_loaded(format: Any, referee: TwoTower, tmp_path: Path) -> None:
    folder = export(referee, name="mine", to=tmp_path / "there", format=format, register=False)
    text = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "README.md", "exec")
    card = Card.load(folder)
    assert card.name == "mine"
    assert all((folder / name).is_file() for name in card.weights)
    assert len(card.weights) == len(list(folder.glob("*.safetensors")) + list(folder.glob("*.pt")))


def test_the_cards_code_runs(referee: TwoTower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for format in ("open_clip", "hf", "timm"):
        folder = export(referee, name=f"my-{format}", to=tmp_path / format, format=format)  # type: ignore[arg-type]
        (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        names: dict[str, Any] = {}
        exec(code.replace("FOLDER", str(folder)), names)
        assert {"model", "tower"} & set(names)


@pytest.mark.parametrize("format", ["hf", "timm", "image-tower"])
def test_a_toy_has_no_place_elsewhere(format: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("unsupported_family", family="toy")):
        export(toy_referee(), name="mine", to=tmp_path / "there", format=format)
    assert not list(tmp_path.glob("*there*"))


def test_an_unknown_format_is_told_from_near_ones(referee: TwoTower) -> None:
    with pytest.raises(UsageError, match=r"openclip.*open_clip"):
        export(referee, name="mine", format="openclip")  # type: ignore[arg-type]


def test_a_clip_model_folder_that_nobody_here_wrote(tmp_path: Path, images: Tensor) -> None:
    """With a tokenizer of letters: open_clip gets it as a tokenizer of transformers."""
    folder = tmp_path / "clip"
    folder.mkdir()
    words = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(folder)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"eos_token_id": len(words) - 1, "vocab_size": len(words), "max_position_embeddings": 20}
    vision = {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=12)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    theirs = load_referee(folder)
    ours = export(folder, name="ours", to=tmp_path / "ours", register=False)
    model = open_clip.create_model(f"local-dir:{ours}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{ours}")(["a cat", "dogs"])
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_text(tokens, normalize=True), theirs.embed_texts(["a cat", "dogs"]), atol=1e-5, rtol=0
        )
