"""Detectors of drawn weights in transformers' layout: boxes and scores are those of the library by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    BertTokenizer,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
)

from robustclip.data.images import to_pil
from robustclip.errors import UsageError
from robustclip.referees.compbench import load_detector

SIDE = 64
LETTERS = [chr(code) for code in range(97, 123)]


@pytest.fixture
def picture() -> Tensor:
    return torch.rand(1, 3, 48, SIDE, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def owl(tmp_path: Path) -> Path:
    folder = tmp_path / "owl"
    folder.mkdir()
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": len(words) - 1}
    config = Owlv2Config(
        text_config=tower | text, vision_config=tower | {"image_size": SIDE, "patch_size": 16}, projection_dim=16
    )
    torch.manual_seed(0)
    model = Owlv2ForObjectDetection(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    images = Owlv2ImageProcessor(size={"height": SIDE, "width": SIDE})
    Owlv2Processor(images, CLIPTokenizer.from_pretrained(folder, local_files_only=True)).save_pretrained(folder)
    return folder


@pytest.fixture
def dino(tmp_path: Path) -> Path:
    folder = tmp_path / "dino"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "red", "a", "."]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    width = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = GroundingDinoConfig(
        backbone_config={
            "model_type": "swin",
            "image_size": SIDE,
            "patch_size": 4,
            "embed_dim": 8,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "window_size": 2,
            "out_indices": [2, 3, 4],
        },
        text_config={"model_type": "bert", **width, "vocab_size": len(words), "max_position_embeddings": 64},
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=8,
        max_text_len=32,
    )
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": SIDE, "longest_edge": 2 * SIDE})
    GroundingDinoProcessor(images, BertTokenizer(str(folder / "vocab.txt"))).save_pretrained(folder)
    return folder


def test_owlv2_finds_what_the_library_finds(owl: Path, picture: Tensor) -> None:
    labels = ["cat", "dog"]
    found = load_detector(owl).detect(picture, labels, threshold=0.0)[0]

    model = Owlv2ForObjectDetection.from_pretrained(owl).eval()
    processor = Owlv2Processor.from_pretrained(owl)
    inputs = processor(text=[["a photo of a cat", "a photo of a dog"]], images=to_pil(picture[0]), return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    wanted = processor.post_process_grounded_object_detection(outputs, threshold=0.0, target_sizes=[(48, SIDE)])[0]
    assert len(found) == len(wanted["scores"]) == 16
    assert [one.score for one in found] == sorted(wanted["scores"].tolist(), reverse=True)
    best = int(wanted["scores"].argmax())
    assert found[0].label == labels[int(wanted["labels"][best])]
    scale = torch.tensor([SIDE, 48, SIDE, 48])
    assert torch.tensor(found[0].box).allclose((wanted["boxes"][best] / scale).clamp(0, 1), atol=1e-5)
    assert load_detector(owl).detect(picture, labels, threshold=0.999) == [[]]
    assert load_detector(owl).detect(picture, []) == [[]]


def test_grounding_dino_names_what_it_was_asked_for(dino: Path, picture: Tensor) -> None:
    found = load_detector(dino).detect(picture, ["red cat", "dog"], threshold=0.0)[0]
    assert found
    assert {one.label for one in found} <= {"red cat", "dog"}
    assert all(0 <= edge <= 1 for one in found for edge in one.box)


def test_what_is_no_detector_is_refused(owl: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        load_detector(tmp_path / "nowhere")
    (owl / "model.safetensors").rename(owl / "other.safetensors")
    with pytest.raises(UsageError):
        load_detector(owl)
    (owl / "config.json").write_text(json.dumps({"architectures": ["CLIPModel"]}))
    with pytest.raises(UsageError):
        load_detector(owl)
