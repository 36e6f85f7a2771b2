from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import BertConfig, BertModel

from robustclip.attacks.threat import ThreatModel
from robustclip.data.images import load_image
from robustclip.errors import UsageError, coded
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Claim
from robustclip.referees.folder import save_referee
from robustclip.referees.openclip import new_referee, sentence_text_cfg
from robustclip.referees.registry import entry_of, list_referees, load_referee
from robustclip.referees.sentence import SentenceEncoder, package_folder
from robustclip.referees.toy import toy_referee
from robustclip.robustification.export import export

TEXTS = ["a cat", "two dogs on a lawn, one of them asleep"]
AWKWARD = {
    "plain": "Two DOGS on a lawn",
    "nothing": "",
    "spaces": " \t\n ",
    "lines": "a cat\r\n\ton  a mat",
    "curly quotes": "the dog’s “bone”",
    "an entity": "cat &amp; dog",
    "an entity twice": "cat &amp;amp; dog",
    "an entity and a bracket": "cat &lt;3",
    "a ligature": "ﬁsh ﬂoating",
    "mojibake": "the dogâ€™s bone, cafÃ©",
    "wide letters": "ＣＡＴ　ａｎｄ　ＤＯＧ",
    "accents apart": "cafe\u0301",
    "no-break and zero-width": "a\u00a0cat\u200bon\ufeff a mat",
    "emoji": "👩‍👩‍👧 and 🏳️‍🌈",
    "right to left": "חתול и кот 猫",
    "control characters": "a\x00cat\x1b[31m",
    "special tokens": "[CLS] a [PAD] cat [SEP] [MASK] <|endoftext|> <start_of_text>",
    "padding alone": "[PAD]",
    "too long": "a very long text " * 40,
    "long by entities": "&amp; " * 80,
}
PREPROCESS = {"size": 32, "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
CLAIM = Claim("top-5", 0.41, 0.38, 0.44, 1000, 0, "emoji/unseen-styles", None, "2025-01-31")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUSTCLIP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "home" / "referees"


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def beside(encoder: SentenceEncoder) -> TwoTower:
    """Like the embedded referees: a timm image tower beside a sentence encoder."""
    vision = {"timm_model_name": "test_convnext", "timm_proj": "linear", "image_size": 32}
    model_cfg = {"embed_dim": encoder.width, "vision_cfg": vision, "text_cfg": sentence_text_cfg()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return new_referee(model_cfg, PREPROCESS, encoder, 17.3, "untrained")


@pytest.fixture(scope="module")
def with_sentences(tmp_path_factory: pytest.TempPathFactory) -> TwoTower:
    """A timm image tower beside a tiny sentence encoder with MiniLM's tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        BertModel(BertConfig(**small)).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(package_folder() / file, folder)
    return beside(SentenceEncoder(folder))


@pytest.fixture(scope="module")
def plain_clip(tmp_path_factory: pytest.TempPathFactory) -> TwoTower:
    """Both towers open_clip's own, with QuickGELU and a bias."""
    vision = {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32}
    model_cfg = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": {"width": 16, "heads": 2, "layers": 1}}
    folder = tmp_path_factory.mktemp("clip")
    config = {"model_cfg": model_cfg | {"quick_gelu": True, "init_logit_bias": -3.0}, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(open_clip.create_model(f"local-dir:{folder}").state_dict(), folder / "model.pth")
    return load_referee(folder)


@pytest.fixture(params=["with_sentences", "plain_clip"])
def referee(request: pytest.FixtureRequest) -> TwoTower:
    found: TwoTower = request.getfixturevalue(request.param)
    return found


def same(one: TwoTower, other: TwoTower, images: Tensor) -> bool:
    return torch.equal(one.embed_images(images), other.embed_images(images)) and torch.equal(
        one.embed_texts(TEXTS), other.embed_texts(TEXTS)
    )


@pytest.mark.parametrize("given", ["name", "folder", "moved"])
def test_reloaded_embeddings_are_bit_equal(given: str, referee: TwoTower, images: Tensor, tmp_path: Path) -> None:
    folder = export(referee, name="mine", to=tmp_path / "there")
    assert folder == tmp_path / "there"
    if given == "moved":
        folder = folder.rename(tmp_path / "elsewhere")
    loaded = load_referee("mine" if given == "name" else folder)
    assert same(loaded, referee, images)
    assert (loaded.logit_scale, loaded.logit_bias) == (referee.logit_scale, referee.logit_bias)
    assert loaded.card.name == "mine"


def test_plain_open_clip_loads_it(referee: TwoTower, images: Tensor, tmp_path: Path) -> None:
    folder = export(referee, name="mine", to=tmp_path / "there")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    model.eval()
    with torch.no_grad():
        image_embeddings = model.encode_image(referee.preprocess(images), normalize=True)
        text_embeddings = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(image_embeddings, referee.embed_images(images))
    torch.testing.assert_close(text_embeddings, referee.embed_texts(TEXTS), atol=1e-5, rtol=1e-4)
    assert model.logit_scale.exp().item() == pytest.approx(referee.logit_scale)
    assert (None if model.logit_bias is None else model.logit_bias.item()) == referee.logit_bias
    normalise = preprocess.transforms[-1]
    assert list(normalise.mean) == [0.5, 0.5, 0.5]
    assert model.visual.image_size == (32, 32)


def test_plain_open_clip_reads_awkward_texts_equally(referee: TwoTower, tmp_path: Path) -> None:
    folder = export(referee, name="mine", to=tmp_path / "there")
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        theirs = model.encode_text(tokenizer(list(AWKWARD.values())), normalize=True)
    cosines = (referee.embed_texts(list(AWKWARD.values())) * theirs).sum(1)
    assert {name: c for name, c in zip(AWKWARD, cosines.tolist(), strict=True) if c < 1 - 1e-5} == {}


def test_the_card_says_what_other_transforms_change(referee: TwoTower, tmp_path: Path) -> None:
    """Its line of code for transparent pictures, and `exact`, give the embeddings of open_clip's own pixels."""
    folder = export(referee, name="mine", to=tmp_path / "there")
    told = load_referee(folder).card.provenance
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    values = np.random.default_rng(0).integers(0, 256, (50, 83, 4), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "clear.png")
    p = Image.open(tmp_path / "clear.png")
    opaque = eval(told["transparency"].partition("The same for them: ")[2], {"Image": Image, "p": p})
    with torch.no_grad():
        theirs = model.eval().encode_image(preprocess(opaque)[None], normalize=True)
        dropped = model.encode_image(preprocess(p)[None], normalize=True)
    exact = load_referee(folder)
    exact.preprocess.exact = True
    ours = exact.embed_images(load_image(tmp_path / "clear.png")[None])
    assert (ours * theirs).sum() > 0.99999
    assert (ours * dropped).sum() < (ours * theirs).sum() - 1e-4
    assert re.search(r"\d+\.[1-9]/255 and cosine [01]\.\d{4} \(noise of 48x96\)", told["resizing"])


@pytest.mark.slow
def test_plain_open_clip_loads_it_in_a_process_without_a_network(tmp_path: Path) -> None:
    folder = export(beside(SentenceEncoder()), name="mine", to=tmp_path / "there")
    script = (
        "import socket, sys; socket.socket.connect = None; socket.getaddrinfo = None\n"
        "import open_clip\n"
        f"model, _, _ = open_clip.create_model_and_transforms('local-dir:{folder}')\n"
        f"tokens = open_clip.get_tokenizer('local-dir:{folder}')(['a cat'])\n"
        "print(tuple(model.eval().encode_text(tokens).shape), 'robustclip' in sys.modules)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert output.stdout.strip() == "(1, 384) False"


def test_the_weights_of_the_text_tower_come_from_the_folder(with_sentences: TwoTower, tmp_path: Path) -> None:
    folder = export(with_sentences, name="mine", to=tmp_path / "there")
    config = json.loads((folder / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["hf_model_name"] == str(folder.resolve())
    named = [path.name for path in folder.iterdir() if str(tmp_path) in path.read_bytes().decode(errors="ignore")]
    assert named == ["open_clip_config.json"]
    assert set(load_referee("mine").card.weights) == {"open_clip_model.safetensors"}


def test_a_run_becomes_a_named_referee_with_its_story(with_sentences: TwoTower, images: Tensor, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "emoji-1"
    threat = ThreatModel("l2", 1.5, 64)
    card = replace(with_sentences.card, threat=threat, provenance={"recipe": "emoji"}, claims=[CLAIM])
    save_referee(with_sentences, run / "referee", card=card)
    folder = export(run, name="robust")
    assert folder == tmp_path / "home" / "referees" / "robust"
    assert same(load_referee("robust"), with_sentences, images)
    exported = entry_of("robust").card
    assert exported.threat == threat
    assert exported.claims == [CLAIM]
    assert exported.provenance["recipe"] == "emoji"
    assert "exported" in exported.provenance


def test_an_exported_referee_is_exported_again_by_folder_and_by_name(
    with_sentences: TwoTower, images: Tensor, tmp_path: Path
) -> None:
    first = export(with_sentences, name="first")
    second = export(first, name="second", to=tmp_path / "second")
    third = export(Path("second"), name="third", to=tmp_path / "third")
    shutil.rmtree(first)
    shutil.rmtree(second)
    assert same(load_referee(third), with_sentences, images)
    assert open_clip.create_model(f"local-dir:{third}") is not None


def test_half_precision_loses_the_claims(with_sentences: TwoTower, images: Tensor) -> None:
    signed = replace(with_sentences.card, claims=[CLAIM])
    referee = TwoTower(
        with_sentences.image_tower, with_sentences.text_tower, with_sentences.preprocess, card=signed, logit_scale=2.0
    )
    full, half = export(referee, name="full"), export(referee, name="small", half=True)
    assert entry_of("full").card.claims == [CLAIM]
    assert entry_of("small").card.claims == []
    sizes = [(folder / "open_clip_model.safetensors").stat().st_size for folder in (half, full)]
    assert sizes[0] < 0.6 * sizes[1]
    torch.testing.assert_close(
        load_referee("small").embed_images(images), referee.embed_images(images), atol=5e-3, rtol=0
    )


@pytest.mark.parametrize("spec", ["~smooth:0.25x4", "~ttc"])
@pytest.mark.parametrize("format", ["open_clip", "image-tower"])
def test_a_smoothed_or_defended_referee_is_refused(
    spec: str, format: Any, plain_clip: TwoTower, tmp_path: Path
) -> None:
    export(plain_clip, name="base")
    with pytest.raises(UsageError, check=coded("wrapped")):
        export(Path(f"base{spec}"), name="mine", to=tmp_path / "there", format=format)
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("name", ["../mine", "a/b", "a b"])
def test_unsafe_names(name: str, plain_clip: TwoTower) -> None:
    with pytest.raises(UsageError, check=coded("unsafe_name", name=name)):
        export(plain_clip, name=name)


def test_nothing_is_overwritten(plain_clip: TwoTower, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, check=coded("exists", path=tmp_path / "there"), match=r"there-1$"):
        export(plain_clip, name="mine", to=tmp_path / "there")
    export(plain_clip, name="mine")
    with pytest.raises(UsageError, check=coded("name_taken", name="mine"), match="robustclip referees remove mine"):
        export(plain_clip, name="mine", to=tmp_path / "other")


def test_an_export_can_stay_out_of_the_registry(plain_clip: TwoTower, images: Tensor, tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        export(plain_clip, name="mine", to=folder, register=False)
        assert same(load_referee(folder), plain_clip, images)
    assert "mine" not in [entry.name for entry in list_referees()]
    with pytest.raises(UsageError, check=coded("no_folder")):
        export(plain_clip, name="mine", register=False)


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("no_such_run", folder=str(tmp_path / "none"))):
        export(tmp_path / "none", name="mine")
    (tmp_path / "run.json").write_text(
        json.dumps({"recipe": "emoji", "status": "failed", "arguments": {}, "started": "2025-01-31T00:00:00+00:00"})
    )
    with pytest.raises(UsageError, check=coded("no_trained_referee", status="failed")):
        export(tmp_path, name="mine")
    with pytest.raises(UsageError, check=coded("not_a_run")):
        export(toy_referee(), name="mine", checkpoint="best")


def test_a_failed_export_leaves_nothing(plain_clip: TwoTower, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("robustclip.referees.folder.write_weights", fail)
    with pytest.raises(OSError, match="disk full"):
        export(plain_clip, name="mine")
    assert not any(home.iterdir())
    assert "mine" not in [entry.name for entry in list_referees()]


def test_a_toy_has_no_place_in_open_clip_but_in_the_registry(images: Tensor) -> None:
    export(toy_referee(), name="toy-one")
    assert same(load_referee("toy-one"), toy_referee(), images)
