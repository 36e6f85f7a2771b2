"""Tiny models, built by the libraries themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from robustclip.referees.base import TwoTower
from robustclip.referees.openclip import new_referee, sentence_text_cfg
from robustclip.referees.sentence import SentenceEncoder

Config = dict[str, Any]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of its own for each test, and no network."""
    monkeypatch.setenv("ROBUSTCLIP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # read from the environment at import
    return tmp_path / "home"


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def tiny_cfg() -> Config:
    """A ViT of two blocks with open_clip's own text tower."""
    vision = {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32}
    return {"embed_dim": 12, "vision_cfg": vision, "text_cfg": {"width": 16, "heads": 2, "layers": 1}}


@pytest.fixture(scope="session")
def architecture(tiny_cfg: Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`tiny_cfg` under a name that open_clip knows, and beside it the same with QuickGELU."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-vit.json").write_text(json.dumps(tiny_cfg))
    (folder / "tiny-vit-quickgelu.json").write_text(json.dumps(tiny_cfg | {"quick_gelu": True}))
    (folder / "tiny-vit-wide.json").write_text(json.dumps(tiny_cfg | {"embed_dim": 24}))
    (folder / "tiny-captioner.json").write_text(json.dumps(tiny_cfg | {"multimodal_cfg": {}}))
    open_clip.add_model_config(folder)
    return "tiny-vit"


@pytest.fixture
def open_clip_model(architecture: str) -> torch.nn.Module:
    """The tiny model as plain open_clip builds it, random but not small."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = open_clip.create_model(architecture)
        for parameter in model.visual.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="session")
def sentence_cfg() -> Config:
    """A timm tower that a projection brings to the sentence encoder's width."""
    vision = {"timm_model_name": "test_convnext", "timm_proj": "linear", "image_size": 32}
    return {"embed_dim": 384, "vision_cfg": vision, "text_cfg": sentence_text_cfg()}


@pytest.fixture(scope="session")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


@pytest.fixture
def sentence_referee(sentence_cfg: Config, encoder: SentenceEncoder) -> TwoTower:
    """Like the embedded ones: a timm image tower beside the sentence encoder."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return new_referee(sentence_cfg, {"size": 32, "interpolation": "bilinear"}, encoder, 20.0, "tiny-sentence")


@pytest.fixture(scope="session")
def tiny_clip_model() -> Callable[[Path, int], Path]:
    """Write a tiny CLIPModel of transformers, with a tokenizer of letters, in which `eos` is said to end a text."""

    def write(folder: Path, eos: int) -> Path:
        folder.mkdir(parents=True)
        letters = [chr(code) for code in range(97, 123)]
        words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        if eos == len(words) - 2:
            words[-2:] = reversed(words[-2:])
        (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        CLIPTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(folder)
        tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = {"eos_token_id": eos, "vocab_size": len(words), "max_position_embeddings": 20}
        vision = {"image_size": 32, "patch_size": 8}
        config = CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=12)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = CLIPModel(config)
            for parameter in model.parameters():
                if parameter.ndim:
                    torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)
        return folder

    return write
