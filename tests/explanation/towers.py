"""Small referees of every family whose towers are mapped, with random weights and texts that mean nothing."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel

from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card
from robustclip.referees.huggingface import VisionTower
from robustclip.referees.openclip import new_referee
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.toy import ToyText

WIDTH = 16
VIT = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
CONVNEXT = {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"}
TIMM_VIT = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}
TIMM_RESNET = {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear"}


def referee_of(vision: dict[str, Any], size: int | tuple[int, int] = 32, mode: str = "squash") -> TwoTower:
    """A referee with the tower that open_clip builds of this `vision_cfg`."""
    config = {"embed_dim": WIDTH, "vision_cfg": {**vision, "image_size": size}, "text_cfg": {}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return new_referee(config, {"size": size, "resize_mode": mode}, ToyText(WIDTH), 10.0, "small")


def transformers_referee(size: int = 32) -> TwoTower:
    """A referee with the vision tower of a small CLIPModel, 8x8 patches."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPConfig(
            projection_dim=WIDTH,
            vision_config={**vision, "image_size": size, "patch_size": 8},
            text_config={**vision, "vocab_size": 99},
        )
        tower = VisionTower(CLIPModel(config))
    preprocess = Preprocess(size, resize_mode="squash")
    card = Card(name="small", family="transformers", architecture={}, preprocess=preprocess.config(), logit_scale=10.0)
    return TwoTower(tower, ToyText(WIDTH), preprocess, card=card).eval().requires_grad_(False)
