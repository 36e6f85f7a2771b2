"""Judges of single images: aesthetic predictors on CLIP embeddings, and classifiers (timm, torchvision, WS-DAN).

Two families of aesthetic predictors are in use under one name, with different scores; reports give family and hash.

mlp     christophschuhmann's improved-aesthetic-predictor: 768 -> 1024 -> 128 -> 64 -> 16 -> 1 on OpenAI's ViT-L/14
        (`sac+logos+ava1-l14-linearMSE.pth`), without activation functions, as its code has them commented out
linear  LAION-AI's aesthetic-predictor: one linear layer, for ViT-L/14 (768) or ViT-B/32 (512)
        (`sa_0_4_vit_l_14_linear.pth`, `sa_0_4_vit_b_32_linear.pth`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.data.images import resize
from robustclip.errors import UsageError
from robustclip.referees.weights import check_finite, check_fit, load_strictly, read_weights
from robustclip.runs.files import is_file, read_json, read_lines, sha256

SIZE: Final = (512, 512)  # DOODL demo: inputs of the classifiers
FEATURES: Final = 768
LAYERS: Final = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
)
"""Layers of torchvision's InceptionV3, in the order of the port's `features`."""


class WSDAN(nn.Module):
    """InceptionV3 up to Mixed_6e, `maps` attention maps, bilinear attention pooling, a linear layer without bias."""

    def __init__(self, classes: int, maps: int = 32) -> None:
        super().__init__()
        from torchvision.models.inception import BasicConv2d, Inception3

        whole: Any = Inception3(aux_logits=False, init_weights=False)
        self.features = nn.Sequential(*(getattr(whole, name) for name in LAYERS))
        self.attentions = BasicConv2d(FEATURES, maps, kernel_size=1)
        self.fc = nn.Linear(maps * FEATURES, classes, bias=False)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        features = self.features(x)
        maps = self.attentions(features)
        pooled = torch.einsum("bmhw,bfhw->bmf", maps, features) / features.shape[-2] / features.shape[-1]
        pooled = pooled.flatten(1)
        pooled = pooled.sign() * (pooled.abs() + 1e-6).sqrt()  # the port's
        return self.fc(100 * F.normalize(pooled, dim=-1))


def load_wsdan(path: Path) -> tuple[WSDAN, int]:
    """A WS-DAN checkpoint's network and its number of classes. Raises UsageError for a file of another layout."""
    weights = {name.removeprefix("module."): one for name, one in read_weights(path).items()}
    last, attention = weights.get("fc.weight"), weights.get("attentions.conv.weight")
    maps = 0 if attention is None else attention.shape[0]
    if last is None or last.ndim != 2 or not maps or last.shape[1] != FEATURES * maps or last.shape[0] > 2**16:
        raise UsageError(
            f"{path} is not a checkpoint of WS-DAN (features.*, attentions.*, fc.weight): give one, or a folder as "
            "timm saves its classifiers",
            "not_wsdan",
        )
    with torch.device("meta"):
        model = WSDAN(last.shape[0], maps)
    kept = {name: one for name, one in weights.items() if not name.startswith("bap.")}
    for name, one in model.state_dict().items():  # missing in old checkpoints
        if name.endswith("num_batches_tracked") and name not in kept:
            kept[name] = torch.zeros(one.shape, dtype=one.dtype)
    check_fit(model, kept, source=str(path), hint="Give a checkpoint of WS-DAN with InceptionV3")
    model.load_state_dict(kept, assign=True)
    check_finite(model, source=str(path))
    return model, last.shape[0]


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
TORCHVISION: Final = "torchvision:"
NEVER: Final = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable")
"""timm arguments that a folder's config must not set: they would load other weights or run code."""
Names = Sequence[tuple[str, ...]]


@dataclass
class Classifier:
    """model: normalised pixels (B,3,h,w) -> logits (B,C); names: those of each class, empty if unknown."""

    name: str
    model: nn.Module
    size: tuple[int, int]
    names: Names
    classes: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """Logits of pictures in [0,1], resized to `size`."""
        mean, std = (torch.tensor(one, device=images.device).view(1, 3, 1, 1) for one in (self.mean, self.std))
        return self.model((resize(images, self.size) - mean) / std).float()

    def index(self, text: str) -> int:
        """Index of a class by its number from 0, or by one of its names (case-insensitive). Raises UsageError, with
        close matches, for an unknown one."""
        if text.isdecimal():
            if int(text) < self.classes:
                return int(text)
            message = f"{self.name} has the classes 0 to {self.classes - 1}, and none is {text[:20]}"
            raise UsageError(message, "unknown_class", given=text, classes=self.classes)
        by_name = {name.casefold(): place for place, names in reversed(list(enumerate(self.names))) for name in names}
        if (place := by_name.get(text.strip().casefold())) is not None:
            return place
        near = get_close_matches(text.casefold(), by_name, n=3, cutoff=0.5)
        also = f": did you mean {' or '.join(near)}?" if near else f": give a number from 0 to {self.classes - 1}"
        unnamed = "" if by_name else ", since its class names are unknown (give --classes FILE, one name per line)"
        message = f"{self.name} has no class {text[:60]!r}{unnamed}{also}"
        raise UsageError(message, "unknown_class", given=text, near=near, names=self.names)


def load_classifier(source: str, device: str | torch.device = "cpu", *, classes: Path | None = None) -> Classifier:
    """Load a frozen classifier: a folder as timm saves it (config.json and model.safetensors), a WS-DAN checkpoint, or
    published weights of timm (NAME) or torchvision (torchvision:NAME). `classes` is a file of class names, one per
    line.

    Raises UsageError for anything else, for weights that cannot be fetched or do not fit, and for another number of
    names than of classes.
    """
    path = Path(source)
    if path.is_dir():
        classifier = _of_folder(path)
    elif is_file(source):
        model, count = load_wsdan(path)
        classifier = Classifier(path.name, model, SIZE, [], count)
    elif source.startswith(TORCHVISION):
        classifier = _of_torchvision(source.removeprefix(TORCHVISION))
    else:
        classifier = _of_timm(source)
    if classes is not None:
        lines = read_lines(classes)
        if len(lines) != classifier.classes:
            raise UsageError(
                f"{classes} has {len(lines)} lines, and {classifier.name} {classifier.classes} classes: one line each",
                "wrong_number_of_names",
                names=len(lines),
                classes=classifier.classes,
            )
        classifier.names = [(line,) for line in lines]
    classifier.model.to(device).eval().requires_grad_(False)
    return classifier


def _of_folder(folder: Path) -> Classifier:
    import timm

    for name in ("config.json", "model.safetensors"):
        if not is_file(folder / name):
            message = f"{folder} has no {name}: give a folder as timm.models.save_for_hf(...) writes it"
            raise UsageError(message, "missing_file", path=str(folder / name))
    config = read_json(folder / "config.json")
    try:
        architecture, reported = str(config["architecture"]), config["pretrained_cfg"]
        arguments = {key: value for key, value in config.get("model_args", {}).items() if key not in NEVER}
        arguments["num_classes"] = int(config["num_classes"])
        facts = (tuple(reported["input_size"][1:]), tuple(reported["mean"]), tuple(reported["std"]))
        if not timm.is_model(architecture):  # else it might name a download
            raise UsageError(f"timm has no model {architecture[:100]}")
        with torch.device("meta"):
            bare: Any = timm.create_model(architecture, **arguments)
        model: Any = timm.create_model(architecture, **arguments)
    except Exception as error:  # an invalid config may raise anything
        raise UsageError(
            f"{folder / 'config.json'} is not a config of a classifier ({str(error)[:200]})",
            "not_a_config",
        ) from error
    weights = read_weights(folder / "model.safetensors")
    check_fit(bare, weights, source=str(folder), hint="Give a folder as timm.models.save_for_hf(...) writes it")
    model.load_state_dict(weights)
    check_finite(model, source=str(folder))
    described = config.get("label_descriptions") or {}
    names = [(str(name), *_several(described.get(name, ""))) for name in config.get("label_names") or []]
    return Classifier(folder.name, model, facts[0], names, arguments["num_classes"], facts[1], facts[2])


def _of_timm(name: str) -> Classifier:
    import timm
    from timm.data.imagenet_info import ImageNetInfo

    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        also = f", e.g. {' or '.join(near)}" if near else ""
        raise UsageError(
            f"there is no classifier {name[:100]!r}: give a folder, a checkpoint of WS-DAN, torchvision:NAME, or a "
            f"model of timm{also}",
            "unknown_classifier",
            given=name,
            near=near,
        )
    try:
        model: Any = timm.create_model(name, pretrained=True)
    except Exception as error:  # network errors, or no such weights
        raise UsageError(
            f"the weights of {name} cannot be fetched ({str(error)[:200]}): save it on a machine with a network, by "
            "timm.models.save_for_hf(model, FOLDER, safe_serialization=True), and give that folder"
        ) from error
    reported = model.pretrained_cfg
    info = ImageNetInfo() if model.num_classes == 1000 else None
    names = [tuple(_several(info.index_to_description(row))) for row in range(1000)] if info else []
    return Classifier(
        name, model, tuple(reported["input_size"][1:]), names, model.num_classes, reported["mean"], reported["std"]
    )


def _of_torchvision(name: str) -> Classifier:
    from torchvision import models

    if name not in models.list_models(models):
        near = get_close_matches(name, models.list_models(models), n=3)
        message = f"torchvision has no classifier {name[:100]!r}: e.g. {' or '.join(near or ['resnet50'])}"
        raise UsageError(message, "unknown_classifier", given=name, near=near)
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
    """Names of `tiger shark, Galeocerdo cuvieri`: the whole text, and each part."""
    parts = [part.strip() for part in text.split(",")]
    return [name for name in dict.fromkeys([text, *parts]) if name]


Family = Literal["mlp", "linear"]

WIDTHS: Final = (1024, 128, 64, 16, 1)
DROPOUTS: Final = (0.2, 0.2, 0.1)
LARGEST: Final = 65_536
"""Maximal width of an embedding, since files are untrusted."""


class AestheticsMLP(nn.Module):
    """(N,D) -> (N,): five linear layers with dropout between the first four, and no activations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for place, (before, after) in enumerate(zip((width, *WIDTHS), WIDTHS, strict=False)):
            modules.append(nn.Linear(before, after))
            modules += [nn.Dropout(DROPOUTS[place])] if place < len(DROPOUTS) else []
        self.layers = nn.Sequential(*modules)

    def forward(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return self.layers(embeddings)[:, 0]


class AestheticsLinear(nn.Linear):
    """(N,D) -> (N,)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)

    def forward(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return super().forward(embeddings)[:, 0]


@dataclass(frozen=True)
class Aesthetics:
    """An aesthetic predictor, with the name and SHA-256 of its file."""

    name: str
    family: Family
    sha256: str
    width: int
    head: nn.Module

    @torch.no_grad()
    def __call__(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Scores, about 1 to 10 and not clipped, of unit embeddings of the CLIP that the head was trained on.

        Raises UsageError for embeddings of another width; those of another CLIP of the same width are not detected.
        """
        if embeddings.shape[-1] != self.width:
            raise UsageError(
                f"the aesthetics head {self.name} reads embeddings of {self.width} numbers, and the judge's have "
                f"{embeddings.shape[-1]}: judge with the CLIP it was trained on ({_clip(self.width)})",
                "unequal_widths",
                head=self.width,
                judge=embeddings.shape[-1],
            )
        return self.head(embeddings.float())

    def describe(self) -> str:
        """File, family and hash, for reports."""
        return f"{self.name} ({self.family}), sha256 {self.sha256}"


def load_aesthetics(path: str | Path) -> Aesthetics:
    """Read a head of either family, recognised by its keys, from the released file (.pth) or safetensors.

    Raises UsageError for a missing or unsafe file and for keys or shapes of neither family, RunError for a damaged file
    and non-finite weights.
    """
    path = Path(path)
    weights = read_weights(path)
    family: Family = "linear" if set(weights) == {"weight", "bias"} else "mlp"
    width = _width(weights, "weight" if family == "linear" else "layers.0.weight", path)
    head = AestheticsLinear(width) if family == "linear" else AestheticsMLP(width)
    load_strictly(head, weights, source=str(path), hint=_layouts())
    return Aesthetics(path.name, family, sha256(path), width, head.eval().requires_grad_(False))


def _width(weights: Mapping[str, Tensor], key: str, path: Path) -> int:
    first = weights.get(key)
    if first is None or first.ndim != 2 or not 0 < first.shape[1] <= LARGEST:
        raise UsageError(f"{path} is not an aesthetics head: {_layouts()}")
    return first.shape[1]


def _layouts() -> str:
    return "one has the keys layers.{0,2,4,6,7}.{weight,bias} (768-1024-128-64-16-1), or weight and bias alone"


def _clip(width: int) -> str:
    return {768: "OpenAI's ViT-L/14", 512: "OpenAI's ViT-B/32"}.get(width, f"one of width {width}")
