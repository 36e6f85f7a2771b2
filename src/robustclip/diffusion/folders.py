"""Atomic writes of model folders in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from robustclip.runs.files import new_folder

WEIGHTS: Final = "diffusion_pytorch_model.safetensors"


def save_model(model: Any, folder: Path, *, half: bool = False) -> None:
    """Write config and weights (`half`: in float16) of a model of diffusers, as its own save_pretrained would.

    Raises UsageError where something has that name.
    """
    with new_folder(folder) as draft:
        write_model(model, draft, half=half)


def write_model(model: Any, folder: Path, *, half: bool = False) -> None:
    """The same into a folder that is there."""
    model.save_config(folder)
    dtype = torch.float16 if half else torch.float32
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
