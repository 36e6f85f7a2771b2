"""CLIPModel folders of transformers as referees."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer

from robustclip.errors import UsageError
from robustclip.files import read_json, write_json
from robustclip.referees.base import TextTower, TwoTower
from robustclip.referees.card import Card
from robustclip.referees.plain import check_sizes, refusing
from robustclip.referees.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from robustclip.referees.tokens import of_transformers
from robustclip.referees.weights import check_fit, load_strictly, read_weights, weights_file, write_weights

FAMILY = "transformers"
WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
BICUBIC, BILINEAR = 3, 2
"""PIL's numbers, which preprocessor_config.json calls `resample`."""


@final
class VisionTower(nn.Module):
    """CLIPModel's vision model and projection; keys as in CLIPModel."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        self.visual_projection = model.visual_projection

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Normalised pixels to embeddings, not normalised."""
        return self.visual_projection(self.vision_model(pixel_values=pixels).pooler_output)


@final
class CLIPText(TextTower):
    """CLIPModel's text model, projection and tokenizer; keys as in CLIPModel."""

    def __init__(self, model: Any, tokenizer: Any, batch: int = 256) -> None:
        super().__init__()
        self.text_model = model.text_model
        self.text_projection = model.text_projection
        self.tokenizer = tokenizer
        self.width = int(model.config.projection_dim)
        self.context = int(model.config.text_config.max_position_embeddings)
        self.batch = batch
        self._tokenizing = threading.Lock()  # a fast tokenizer keeps its padding and truncation as state

    def count_tokens(self, texts: list[str]) -> list[int]:
        """How many tokens each text has, uncut, with the two around it."""
        with self._tokenizing:
            return of_transformers(self.tokenizer, texts)

    def forward(self, texts: list[str]) -> Float[Tensor, "t d"]:
        """Embed texts, not normalised, cut at the model's number of positions; an empty list gives (0,D)."""
        device = self.text_projection.weight.device
        rows = [self._embed(texts[i : i + self.batch], device) for i in range(0, len(texts), self.batch)]
        return torch.cat(rows) if rows else torch.empty(0, self.width, device=device)

    def _embed(self, texts: list[str], device: torch.device) -> Float[Tensor, "t d"]:
        with self._tokenizing:
            tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self.context, return_tensors="pt")
        ids, mask = tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
        return self.text_projection(self.text_model(input_ids=ids, attention_mask=mask).pooler_output)


def is_clip_folder(folder: Path) -> bool:
    """Whether a folder is a transformers one of model type `clip`."""
    path = Path(folder) / "config.json"
    config = read_json(path) if path.is_file() else None
    return isinstance(config, dict) and config.get("model_type") == "clip"


def refuse_remote_code(name: str) -> None:
    """Raise UsageError where transformers would have to run code that comes with a model's config, or to ask whether to
    (at a terminal it asks); OSError where the config is out of reach."""
    try:
        AutoConfig.from_pretrained(name, trust_remote_code=False)
    except ValueError as error:
        raise UsageError(f"{name} is refused: {str(error).strip().splitlines()[0]}") from error


def load_folder(folder: Path, card: Card | None = None) -> TwoTower:
    """A transformers CLIPModel folder: config.json, weights, tokenizer files and preprocessor_config.json.

    The activation (QuickGELU or not) is the config's. Without a preprocessor_config.json, CLIP's own mean, std
    and bicubic resizing. Only local files are read. Raises UsageError when weights are missing or do not fit.
    """
    folder = Path(folder)
    check_sizes(read_json(folder / "config.json"), f"{folder}/config.json")
    with refusing(f"{folder} is no folder of a CLIPModel"):
        config = CLIPConfig.from_pretrained(folder, local_files_only=True)
    path = weights_file(folder, ("model", "pytorch_model")) if card is None else folder / next(iter(card.weights))
    if path is None:
        raise UsageError(
            f"{folder} has a CLIP config but no {WEIGHTS}: model.save_pretrained({str(folder)!r}) writes it"
        )
    stale = "embeddings.position_ids"  # a buffer that older versions of transformers saved
    weights = {name: value for name, value in read_weights(path).items() if not name.endswith(stale)}
    with torch.device("meta"), refusing(f"{folder}/config.json describes no CLIPModel"):
        check_fit(CLIPModel(config), weights, source=str(path))  # before memory is asked for
    model = CLIPModel(config)
    load_strictly(model, weights, source=str(path))
    preprocess = _preprocess(folder, config)
    scale = model.logit_scale.exp().item() if card is None else card.logit_scale
    with refusing(f"{folder} has no tokenizer that can be read"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    name = folder.resolve().name
    return _referee(model, tokenizer, preprocess, scale, card or _card(name, config, preprocess, scale))


def new_clip(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    tokenizer: Any,
    preprocess: Preprocess,
    logit_scale: float,
    name: str,
) -> TwoTower:
    """A CLIPModel as a referee, from what CLIPConfig takes and the tensors of both towers.

    Raises UsageError when they do not fit, or CLIPModel's image processor cannot do the preprocessing.
    """
    _preprocessor_config(preprocess)
    clip_config = CLIPConfig(**config)
    model = CLIPModel(clip_config)
    scale = {"logit_scale": torch.tensor(logit_scale).log()}
    load_strictly(model, {**weights, **scale}, source=f"{name} as a CLIPModel")
    return _referee(model, tokenizer, preprocess, logit_scale, _card(name, clip_config, preprocess, logit_scale))


def clip_tokenizer(tokens: Mapping[str, int], merges: list[tuple[str, str]], length: int) -> Any:
    """CLIP's tokenizer as transformers has it, from open_clip's tokens, of which the last two open and close a text.

    It does not mend texts as open_clip's does (curly quotes, HTML entities, mojibake): such texts get other tokens.
    """
    *words, first, last = tokens
    opening, closing = "<|startoftext|>", "<|endoftext|>"
    vocabulary = {word: tokens[word] for word in words} | {opening: tokens[first], closing: tokens[last]}
    pairs: Any = merges  # which transformers annotates as lists of texts
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=length)


def save_folder(referee: TwoTower, folder: Path, *, half: bool) -> list[str]:
    """Write what transformers loads again as a CLIPModel; returns the names of the weight files."""
    text_tower = referee.text_tower
    if not isinstance(text_tower, CLIPText):
        raise UsageError(
            f"{referee.card.name} has the image tower of a CLIPModel beside another text tower: transformers has no "
            "folder for that"
        )
    weights = {**referee.image_tower.state_dict(), **text_tower.state_dict()}
    weights["logit_scale"] = torch.tensor(referee.logit_scale).log()
    write_weights(folder / WEIGHTS, weights, half=half)
    CLIPConfig.from_dict(referee.card.architecture["config"]).save_pretrained(folder)
    text_tower.tokenizer.save_pretrained(folder)
    write_json(folder / PREPROCESSOR, _preprocessor_config(referee.preprocess))
    return [WEIGHTS]


def _referee(model: Any, tokenizer: Any, preprocess: Preprocess, scale: float, card: Card) -> TwoTower:
    referee = TwoTower(VisionTower(model), CLIPText(model, tokenizer), preprocess, card=card, logit_scale=scale)
    return referee.eval().requires_grad_(False)


def _card(name: str, config: Any, preprocess: Preprocess, scale: float) -> Card:
    kind = f"transformers CLIPModel, {config.vision_config.hidden_act}"
    return Card(
        name=name,
        family=FAMILY,
        architecture={"name": kind, "config": config.to_dict()},
        preprocess=preprocess.config(),
        logit_scale=scale,
    )


def _preprocess(folder: Path, config: Any) -> Preprocess:
    path = folder / PREPROCESSOR
    if not path.is_file():
        return Preprocess(config.vision_config.image_size)
    values = read_json(path)
    if not isinstance(values, dict):
        raise UsageError(f"{path} is not a JSON object")
    size = values.get("crop_size") or values.get("size") or config.vision_config.image_size
    squash = isinstance(values.get("size"), Mapping) and "shortest_edge" not in values["size"]
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        size = (size.get("height", edge), size.get("width", edge))
    return Preprocess(
        size,
        mean=tuple(values.get("image_mean", CLIP_MEAN)),
        std=tuple(values.get("image_std", CLIP_STD)),
        interpolation="bilinear" if values.get("resample") == BILINEAR else "bicubic",
        resize_mode="squash" if squash else "shortest",
    )


def _preprocessor_config(preprocess: Preprocess) -> dict[str, Any]:
    values = preprocess.config()
    height, width = values["size"]
    if preprocess.resize_mode == "longest" or (preprocess.resize_mode == "shortest" and height != width):
        raise UsageError(
            f"transformers' CLIPImageProcessor cannot bring images to {height}x{width} by the mode "
            f"{preprocess.resize_mode!r} (only 'squash', and 'shortest' to a square): export with --format open_clip"
        )
    both = {"height": height, "width": width}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": both if preprocess.resize_mode == "squash" else {"shortest_edge": max(height, width)},
        "do_center_crop": preprocess.resize_mode != "squash",
        "crop_size": both,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": values["mean"],
        "image_std": values["std"],
        "resample": BILINEAR if preprocess.interpolation == "bilinear" else BICUBIC,
    }
