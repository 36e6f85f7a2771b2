from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from robustclip.errors import UsageError
from robustclip.referees.huggingface import is_clip_folder, load_folder

TEXTS = ["a cat", "a dog and a cat and a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIPModel with tokenizer and preprocessor, as the library saves them."""
    path = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    tokenizer.save_pretrained(path)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "vocab_size": len(words)}
    config = CLIPConfig(
        text_config=text | special | {"max_position_embeddings": 20},
        vision_config=text | {"image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu"},
        projection_dim=12,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config)
        for parameter in model.vision_model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3]
    ).save_pretrained(path)
    return path


def test_embeddings_are_the_librarys(folder: Path, images: Tensor) -> None:
    referee = load_folder(folder)
    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    tokens = CLIPTokenizer.from_pretrained(folder, local_files_only=True)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        pixels = (images - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / referee.preprocess.std
        expected = model.get_image_features(pixel_values=pixels).pooler_output
        torch.testing.assert_close(referee.embed_images(images, normalize=False), expected)
        expected = model.get_text_features(**tokens).pooler_output
        torch.testing.assert_close(referee.embed_texts(TEXTS, normalize=False), expected)
    assert referee.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert referee.image_size == (32, 32)


def test_the_config_decides_on_quick_gelu(folder: Path, tmp_path: Path, images: Tensor) -> None:
    copy = copied(folder, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (copy / "config.json").write_text(json.dumps(config))
    assert (load_folder(copy).embed_images(images) - load_folder(folder).embed_images(images)).abs().max() > 1e-4


def test_without_a_preprocessor_clips_own(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    (copy / "preprocessor_config.json").unlink()
    preprocess = load_folder(copy).preprocess
    assert preprocess.size == (32, 32)
    assert preprocess.config()["mean"] == [0.48145466, 0.4578275, 0.40821073]


@pytest.mark.parametrize(
    ("values", "size", "mode"),
    [
        ({"size": 48}, (48, 48), "shortest"),
        ({"size": {"height": 16, "width": 24}, "resample": 2}, (16, 24), "squash"),
        ({"size": {"shortest_edge": 40}, "crop_size": 36}, (36, 36), "shortest"),
    ],
)
def test_the_ways_a_preprocessor_gives_its_size(
    values: Any, size: Any, mode: str, folder: Path, tmp_path: Path
) -> None:
    from robustclip.referees.huggingface import _preprocess

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    preprocess = _preprocess(tmp_path, None)
    assert preprocess.size == size
    assert preprocess.resize_mode == mode
    assert preprocess.interpolation == ("bilinear" if values.get("resample") == 2 else "bicubic")


def test_a_folder_without_weights_or_with_others(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"has a CLIP config but no model.safetensors: model.save_pretrained"):
        load_folder(copy)
    torch.save({"a": torch.ones(1)}, copy / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"pytorch_model.bin does not fit the architecture: .* 1 unexpected \(a\)"):
        load_folder(copy)


def test_which_folders_are_clips(folder: Path, tmp_path: Path) -> None:
    assert is_clip_folder(folder)
    assert not is_clip_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert not is_clip_folder(tmp_path)


def copied(folder: Path, to: Path) -> Path:
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_tokens_are_counted_uncut(folder: Path) -> None:
    tower = load_folder(folder).text_tower
    counts = tower.count_tokens(["a cat", "a cat " * 500])
    assert tower.context is not None
    assert counts[0] < tower.context < counts[1]
    assert tower.count_tokens([]) == []
    assert counts[1] - 2 == 500 * (counts[0] - 2)
