from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    SiglipImageProcessor,
    ViTImageProcessor,
)

from robustclip.errors import UsageError, coded
from robustclip.referees.huggingface import is_clip_folder, load_folder, read_preprocess
from robustclip.referees.preprocess import Preprocess

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
    referee = load_folder(copy)
    assert referee.preprocess.size == (32, 32)
    assert referee.preprocess.config()["mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert "CLIP's own: the folder has no processor_config.json" in referee.card.provenance["preprocessing"]


CROP = {"height": 32, "width": 32}
EDGE = {"shortest_edge": 32}
PROCESSORS: dict[str, dict[str, Any]] = {
    "mean and std": {"size": EDGE, "crop_size": CROP, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.5, 1.0]},
    "resize, then crop": {"size": {"shortest_edge": 41}, "crop_size": CROP},
    "squash, then crop": {"size": {"height": 37, "width": 45}, "crop_size": CROP},
    "crop with padding": {"size": {"shortest_edge": 24}, "crop_size": CROP},
    "squash": {"size": CROP, "do_center_crop": False, "crop_size": {"height": 48, "width": 48}},
    "no resize": {"do_resize": False, "crop_size": CROP},
    "no normalisation": {"size": EDGE, "crop_size": CROP, "do_normalize": False},
    "no rescaling": {"size": EDGE, "crop_size": CROP, "do_rescale": False},
    "neither": {"size": EDGE, "crop_size": CROP, "do_rescale": False, "do_normalize": False},
    "another factor": {"size": EDGE, "crop_size": CROP, "rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0]},
    "bilinear": {"size": EDGE, "crop_size": CROP, "resample": 2},
    "nearest": {"size": EDGE, "crop_size": CROP, "resample": 0},
    "numbers": {"size": 32, "crop_size": 32},
}
SHAPES = ((61, 90), (90, 61), (33, 47), (20, 31), (32, 32), (40, 200))


@pytest.mark.parametrize("whole", [False, True], ids=["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_the_librarys(name: str, whole: bool, folder: Path, tmp_path: Path) -> None:
    """On pictures of noise, in six shapes: those of transformers' PIL backend to the digit.

    The backend that AutoProcessor takes resamples by torchvision, which agrees with Pillow but for roundings between
    its passes, and pads an odd number of pixels on the other side; ours pads as it does.
    """
    processor = CLIPImageProcessor(**PROCESSORS[name])
    if whole:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(tmp_path)
    else:
        processor.save_pretrained(tmp_path)
    found, told = read_preprocess(tmp_path, 32)
    assert told == f"{'processor' if whole else 'preprocessor'}_config.json (CLIPImageProcessor)"
    assert Preprocess.from_config(found.config()).config() == found.config()
    found.exact = True
    for height, width in SHAPES:
        noise = torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(0)).byte()
        picture = Image.fromarray(noise.permute(1, 2, 0).numpy())
        backends: list[tuple[Any, float]] = [(processor, 7), (CLIPImageProcessorPil(**PROCESSORS[name]), 0.01)]
        for library, limit in backends[: 1 if name == "no resize" else 2]:
            theirs = library(images=[picture], return_tensors="pt")["pixel_values"].float()
            difference = ((found(noise[None].float() / 255) - theirs) * found.std).abs().max() * 255
            assert difference < limit, (height, width, type(library))


@pytest.mark.parametrize("kind", [SiglipImageProcessor, ViTImageProcessor, CLIPImageProcessorPil])
def test_other_kinds_of_processors_are_read_too(kind: Any, tmp_path: Path) -> None:
    processor = kind(size=CROP, image_mean=[0.5, 0.4, 0.3], do_center_crop=False)
    processor.save_pretrained(tmp_path)
    preprocess, told = read_preprocess(tmp_path, 32)
    assert preprocess.config()["mean"] == [0.5, 0.4, 0.3]
    assert preprocess.resize_mode == "squash"
    assert kind.__name__.removesuffix("Pil") in told


@pytest.mark.parametrize(
    ("values", "check"),
    [
        ({"size": EDGE, "do_center_crop": False}, coded("any_shape")),
        ({"do_resize": False, "do_center_crop": False}, coded("any_shape")),
        ({"size": EDGE, "crop_size": 48}, coded("unequal_sizes", pictures=(48, 48), tower=(32, 32))),
        ({"size": EDGE, "crop_size": 32, "resample": 1}, coded("unknown_resampling", given=1)),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}, "crop_size": 32}, coded("unknown_resize")),
        ({"size": EDGE, "crop_size": 32, "do_pad": True, "pad_size": CROP | {"width": 40}}, coded("other_pixels")),
        ({"image_processor_type": "NoSuchProcessor"}, coded("refused", error="ValueError")),
        ({"size": EDGE, "crop_size": 32, "image_std": [0, 1, 1]}, coded("too_small", argument="std")),
        ({"size": {"shortest_edge": 10**9}, "crop_size": 32}, coded("not_a_size", argument="resize_to")),
        ([], coded("not_an_object")),
    ],
)
def test_processors_that_have_no_counterpart_are_refused(values: Any, check: Any, tmp_path: Path) -> None:
    described = {"image_processor_type": "CLIPImageProcessor"} | values if isinstance(values, dict) else values
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(described))
    with pytest.raises(UsageError, check=check):
        read_preprocess(tmp_path, 32)


def test_a_folder_without_weights_or_with_others(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UsageError, check=coded("no_weights", folder=str(copy))):
        load_folder(copy)
    torch.save({"a": torch.ones(1)}, copy / "pytorch_model.bin")
    with pytest.raises(
        UsageError, check=coded("does_not_fit", source=str(copy / "pytorch_model.bin"), unexpected=["a"])
    ):
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
