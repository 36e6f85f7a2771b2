"""timm and torchvision classifiers as guides: images in [0,1] to logits and class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.data.images import resize
from robustclip.errors import UsageError
from robustclip.referees import wsdan
from robustclip.referees.weights import check_finite, check_fit, read_weights
from robustclip.runs.files import is_file, read_json

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
TORCHVISION: Final = "torchvision:"
NEVER: Final = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable")
"""Arguments of timm that a folder's config does not decide: what would be loaded or run instead of its weights."""
Names = Sequence[tuple[str, ...]]


@dataclass
class Classifier:
    """model: normalised pixels (B,3,h,w) -> logits (B,C); names: those of each class, none where nobody knows them."""

    name: str
    model: nn.Module
    size: tuple[int, int]
    names: Names
    classes: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """Of pictures in [0,1], resized to `size`."""
        mean, std = (torch.tensor(one, device=images.device).view(1, 3, 1, 1) for one in (self.mean, self.std))
        return self.model((resize(images, self.size) - mean) / std).float()

    def index(self, text: str) -> int:
        """A class by its number from 0, or by a name of it, whatever the case. Raises UsageError, with near names, for
        another one."""
        if text.isdecimal():
            if int(text) < self.classes:
                return int(text)
            raise UsageError(f"{self.name} has the classes 0 to {self.classes - 1}, and none is {text[:20]}")
        known = {name.casefold(): place for place, names in reversed(list(enumerate(self.names))) for name in names}
        if (found := known.get(text.strip().casefold())) is not None:
            return found
        near = get_close_matches(text.casefold(), known, n=3, cutoff=0.5)
        also = f": did you mean {' or '.join(near)}?" if near else f": give a number from 0 to {self.classes - 1}"
        unnamed = "" if known else ", for nobody says what its classes are called (--classes FILE does, a name a line)"
        raise UsageError(f"{self.name} has no class {text[:60]!r}{unnamed}{also}")


def load_classifier(given: str, device: str | torch.device = "cpu", *, classes: Path | None = None) -> Classifier:
    """A frozen classifier: a folder as timm saves it (config.json and model.safetensors), a checkpoint of WS-DAN, a
    model of timm by name, or of torchvision as torchvision:NAME, with their published weights. `classes` is a file of
    their names, one a line.

    Raises UsageError for what is none of these, weights that cannot be fetched or do not fit, and another number of
    names than of classes.
    """
    path = Path(given)
    if path.is_dir():
        found = _of_folder(path)
    elif is_file(given):
        model, count = wsdan.load_wsdan(path)
        found = Classifier(path.name, model, wsdan.SIZE, [], count)
    elif given.startswith(TORCHVISION):
        found = _of_torchvision(given.removeprefix(TORCHVISION))
    else:
        found = _of_timm(given)
    if classes is not None:
        lines = classes.read_text(encoding="utf-8").splitlines()
        if len(lines) != found.classes:
            raise UsageError(f"{classes} has {len(lines)} lines, and {found.name} {found.classes} classes: one a line")
        found.names = [(line.strip(),) for line in lines]
    found.model.to(device).eval().requires_grad_(False)
    return found


def _of_folder(folder: Path) -> Classifier:
    import timm

    for name in ("config.json", "model.safetensors"):
        if not is_file(folder / name):
            raise UsageError(f"{folder} has no {name}: give a folder as timm.models.save_for_hf(...) writes it")
    config = read_json(folder / "config.json")
    try:
        architecture, told = str(config["architecture"]), config["pretrained_cfg"]
        given = {key: value for key, value in config.get("model_args", {}).items() if key not in NEVER}
        given["num_classes"] = int(config["num_classes"])
        facts = (tuple(told["input_size"][1:]), tuple(told["mean"]), tuple(told["std"]))
        if not timm.is_model(architecture):  # which else might name a download
            raise UsageError(f"timm has no model {architecture[:100]}")
        with torch.device("meta"):
            bare: Any = timm.create_model(architecture, **given)
        model: Any = timm.create_model(architecture, **given)
    except Exception as error:  # an odd config ends in any exception
        raise UsageError(f"{folder / 'config.json'} is no config of a classifier ({str(error)[:200]})") from error
    weights = read_weights(folder / "model.safetensors")
    check_fit(bare, weights, source=str(folder), hint="Give a folder as timm.models.save_for_hf(...) writes it")
    model.load_state_dict(weights)
    check_finite(model, source=str(folder))
    described = config.get("label_descriptions") or {}
    names = [(str(name), *_several(described.get(name, ""))) for name in config.get("label_names") or []]
    return Classifier(folder.name, model, facts[0], names, given["num_classes"], facts[1], facts[2])


def _of_timm(name: str) -> Classifier:
    import timm
    from timm.data.imagenet_info import ImageNetInfo

    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        also = f", e.g. {' or '.join(near)}" if near else ""
        raise UsageError(
            f"there is no classifier {name[:100]!r}: give a folder, a checkpoint of WS-DAN, torchvision:NAME, or a "
            f"model of timm{also}"
        )
    try:
        model: Any = timm.create_model(name, pretrained=True)
    except Exception as error:  # of the network, or no such weights
        raise UsageError(
            f"the weights of {name} cannot be fetched ({str(error)[:200]}): save it where there is a network, by "
            "timm.models.save_for_hf(model, FOLDER, safe_serialization=True), and give that folder"
        ) from error
    told = model.pretrained_cfg
    info = ImageNetInfo() if model.num_classes == 1000 else None
    names = [tuple(_several(info.index_to_description(row))) for row in range(1000)] if info else []
    return Classifier(name, model, tuple(told["input_size"][1:]), names, model.num_classes, told["mean"], told["std"])


def _of_torchvision(name: str) -> Classifier:
    from torchvision import models

    if name not in models.list_models(models):
        near = get_close_matches(name, models.list_models(models), n=3)
        raise UsageError(f"torchvision has no classifier {name[:100]!r}: e.g. {' or '.join(near or ['resnet50'])}")
    weights: Any = models.get_model_weights(name).DEFAULT
    try:
        model: Any = models.get_model(name, weights=weights)
    except Exception as error:
        raise UsageError(
            f"the weights of torchvision's {name} cannot be fetched ({str(error)[:200]}): give a folder of timm"
        ) from error
    looks = weights.transforms()
    names = [(one,) for one in weights.meta["categories"]]
    size = looks.crop_size * 2 if len(looks.crop_size) == 1 else looks.crop_size
    return Classifier(name, model, tuple(size), names, len(names), tuple(looks.mean), tuple(looks.std))


def _several(text: str) -> list[str]:
    """`tiger shark, Galeocerdo cuvieri` by each name, and by all."""
    parts = [part.strip() for part in text.split(",")]
    return [name for name in dict.fromkeys([text, *parts]) if name]
