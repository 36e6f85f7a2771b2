"""open_clip and transformers compute the same, whichever way a referee is converted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from robustclip.data.images import from_pil, to_pil
from robustclip.errors import RunError, UsageError, coded
from robustclip.referees import conversion
from robustclip.referees.base import TwoTower
from robustclip.referees.conversion import as_open_clip, as_transformers
from robustclip.referees.folder import load_referee_folder, save_full, save_referee
from robustclip.referees.registry import load_referee
from robustclip.referees.toy import toy_referee

TEXTS = ["a cat", "Two DOGS: don't wake 1 of them!", "", "naïve café 🙂 日本", "word " * 200]


def clip(folder: Path, cfg: Any, **preprocess: Any) -> TwoTower:
    """A referee of open_clip's, random but not small, as `local-dir:` loads it."""
    config = {"model_cfg": cfg, "preprocess_cfg": {"size": 32} | preprocess}
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{folder}")
        for parameter in model.parameters():
            if parameter.ndim:
                torch.nn.init.normal_(parameter, std=0.3)
    torch.save(model.state_dict(), folder / "model.pth")
    return load_referee(folder)


@pytest.fixture(params=[True, False], ids=["quick_gelu", "gelu"])
def referee(request: pytest.FixtureRequest, tiny_cfg: Any, tmp_path: Path) -> TwoTower:
    text = tiny_cfg["text_cfg"] | {"layers": 2}
    return clip(tmp_path / "clip", tiny_cfg | {"quick_gelu": request.param, "text_cfg": text})


def test_transformers_own_model_and_processor_say_what_the_referee_says(
    referee: TwoTower, images: Tensor, tmp_path: Path
) -> None:
    save_referee(as_transformers(referee), tmp_path / "hf")
    model, processor = CLIPModel.from_pretrained(tmp_path / "hf").eval(), CLIPProcessor.from_pretrained(tmp_path / "hf")
    inputs = processor(
        text=TEXTS, images=[to_pil(image) for image in images], padding=True, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        answer = model(**inputs)
    pixels = torch.stack([from_pil(to_pil(image)) for image in images])
    torch.testing.assert_close(answer.image_embeds, referee.embed_images(pixels), atol=1e-5, rtol=0)
    torch.testing.assert_close(answer.text_embeds, referee.embed_texts(TEXTS), atol=1e-5, rtol=0)
    logits = referee.logit_scale * referee.embed_images(pixels) @ referee.embed_texts(TEXTS).T
    torch.testing.assert_close(answer.logits_per_image, logits, atol=1e-4, rtol=0)
    assert processor.tokenizer.model_max_length == 77
    assert (referee.embed_texts(TEXTS) @ referee.embed_texts(TEXTS).T).fill_diagonal_(0).max() < 0.999


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_processors_pixels(interpolation: str, tiny_cfg: Any, tmp_path: Path) -> None:
    """The very pixels at the tower's size. Resized, it rounds to 8 bits: one step of 255 apart where bicubic
    resampling stays in range. Beyond it clamps, as open_clip's transform does: from that it is one step apart anywhere.
    """
    numbers: dict[str, Any] = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": interpolation}
    referee = clip(tmp_path / "clip", tiny_cfg, **numbers)
    save_referee(as_transformers(referee), tmp_path / "hf")
    drawn = torch.Generator().manual_seed(2)
    settings = open_clip.transform.PreprocessCfg(size=(32, 32), **numbers)
    theirs = open_clip.transform.image_transform_v2(settings, is_train=False)
    processors = [
        CLIPProcessor.from_pretrained(tmp_path / "hf").image_processor,
        CLIPImageProcessorPil.from_pretrained(tmp_path / "hf"),
    ]

    def steps(one: Tensor, other: Tensor) -> float:
        return ((one - other) * referee.preprocess.std * 255).abs().max().item()

    for size in [(32, 32), (64, 64), (48, 80), (20, 30)]:
        coarse = 0.2 + 0.6 * torch.rand(1, 3, 4, 4, generator=drawn)
        smooth = to_pil(torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0])
        noise = to_pil(torch.rand(3, *size, generator=drawn))
        for processor in processors:
            for picture in (smooth, noise):
                pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
                assert steps(pixels, theirs(picture)[None]) < 1.01
                ours = referee.preprocess(from_pil(picture)[None])
                if picture is smooth or size == (32, 32):
                    assert steps(pixels, ours) < (1e-3 if size == (32, 32) else 1.05)


@pytest.mark.parametrize(
    ("preprocess", "part"),
    [
        ({"resize_mode": "longest"}, "resize_mode 'longest'"),
        ({"size": [32, 24]}, "images of 32x24 pixels (only square ones)"),
    ],
)
def test_preprocessing_that_clips_processor_cannot_do(
    preprocess: Any, part: str, tiny_cfg: Any, tmp_path: Path
) -> None:
    vision = tiny_cfg["vision_cfg"] | {"image_size": preprocess.get("size", 32)}
    with pytest.raises(UsageError, check=coded("unsupported", parts=[part])):
        as_transformers(clip(tmp_path / "clip", tiny_cfg | {"vision_cfg": vision}, **preprocess))


def test_there_and_back_is_bit_equal(referee: TwoTower, images: Tensor, tmp_path: Path) -> None:
    save_referee(as_transformers(referee), tmp_path / "hf")
    back = as_open_clip(load_referee(tmp_path / "hf"))
    assert back.card.family == "open_clip"
    for name, value in referee.image_tower.state_dict().items():
        assert torch.equal(back.image_tower.state_dict()[name], value)
    save_full(back, tmp_path / "back")
    loaded = load_referee_folder(tmp_path / "back")
    assert torch.equal(loaded.embed_images(images), referee.embed_images(images))
    assert torch.equal(loaded.embed_texts(TEXTS), referee.embed_texts(TEXTS))
    assert loaded.logit_scale == referee.logit_scale
    model = open_clip.create_model(f"local-dir:{tmp_path / 'back'}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'back'}")(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(tokens, normalize=True), referee.embed_texts(TEXTS))


@pytest.mark.parametrize("eos", [53, 2, 52])
def test_a_clip_model_with_its_own_tokenizer(eos: int, tiny_clip_model: Any, images: Tensor, tmp_path: Path) -> None:
    """Texts are pooled at the token that the config names: the last of the vocabulary, another, or (2) the largest."""
    from robustclip.referees.huggingface import load_folder

    folder = tiny_clip_model(tmp_path / "hf", eos)
    referee = load_folder(folder)
    texts = ["a cat", "dog and dog", ""]
    converted = as_open_clip(referee)
    torch.testing.assert_close(converted.embed_texts(texts), referee.embed_texts(texts), atol=1e-6, rtol=0)
    torch.testing.assert_close(converted.embed_images(images), referee.embed_images(images), atol=1e-6, rtol=0)
    save_full(converted, tmp_path / "oc")
    loaded = load_referee_folder(tmp_path / "oc")
    torch.testing.assert_close(loaded.embed_texts(texts), referee.embed_texts(texts), atol=1e-6, rtol=0)
    assert (tmp_path / "oc" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"vision_cfg": {"timm_model_name": "test_convnext", "image_size": 32}}, "test_convnext"),
        ({"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}}, "a ResNet"),
        ({"vision_cfg": {"layers": 1, "ls_init_value": 0.1}}, "ls_init_value=0.1"),
        ({"vision_cfg": {"layers": 1, "pool_type": "avg"}}, "pool_type='avg'"),
        ({"text_cfg": {"hf_model_name": "bert-base"}}, "bert-base"),
        ({"text_cfg": {"no_causal_mask": True}}, "no_causal_mask=True"),
        ({"init_logit_bias": -10.0}, "a logit bias"),
    ],
)
def test_what_a_clip_model_has_no_place_for(change: Any, fault: str, tiny_cfg: Any) -> None:
    from robustclip.referees.openclip import spelt_out

    with pytest.raises(UsageError, check=coded("unsupported"), match=fault):
        conversion.clip_config(spelt_out(tiny_cfg | change), spelt_out({}), eos=1)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"hidden_act": "gelu"}, "gelu and quick_gelu"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps 1e-06"),
    ],
)
def test_what_open_clip_has_no_place_for(change: Any, fault: str, tiny_cfg: Any, tmp_path: Path) -> None:
    referee = as_transformers(clip(tmp_path, tiny_cfg | {"quick_gelu": True}))
    referee.card.architecture["config"]["vision_config"].update(change)
    with pytest.raises(UsageError, check=coded("unsupported"), match=fault):
        as_open_clip(referee)


def test_another_tokenizer_and_another_family(tiny_cfg: Any, tmp_path: Path) -> None:
    text = tiny_cfg["text_cfg"] | {"tokenizer_kwargs": {"clean": "canonicalize"}}
    with pytest.raises(UsageError, check=coded("unsupported"), match="tokenizer_kwargs="):
        as_transformers(clip(tmp_path, tiny_cfg | {"text_cfg": text}))
    for convert in (as_transformers, as_open_clip):
        with pytest.raises(UsageError, check=coded("unsupported_family", family="toy")):
            convert(toy_referee())


def test_a_conversion_that_changes_numbers_is_refused(
    tiny_cfg: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    referee = clip(tmp_path, tiny_cfg)
    swapped = conversion.BLOCK | {"ln_1": "layer_norm2", "ln_2": "layer_norm1"}
    monkeypatch.setattr(conversion, "BLOCK", swapped)
    with pytest.raises(RunError, check=coded("embeds_differently")):
        as_transformers(referee)
    assert conversion.TOLERANCE == 1e-5
