"""Load transformers CLIPModel folders."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.utils.hub import cached_file

from robustclip.data.images import to_pil
from robustclip.errors import UsageError
from robustclip.referees.base import TextTower, TwoTower, of_transformers
from robustclip.referees.card import Card
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.weights import INDEX, check_fit, load_strictly, read_weights, weights_file, write_weights
from robustclip.runs.files import is_file, read_json, write_json
from robustclip.runs.hub import reading_hub
from robustclip.runs.plain import check_sizes, refusing

FAMILY = "transformers"
WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
PROCESSORS = ("processor_config.json", PREPROCESSOR)
"""Where transformers looks for the settings of an image processor, in its order (transformers 5 writes the first)."""
BytePairs = Callable[[], tuple[dict[str, int], list[tuple[str, str]]]]
"""`openclip.byte_pairs`, which gives CLIP's own."""
TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer_config.json")
RESAMPLING = {3: "bicubic", 2: "bilinear", 0: "nearest"}
"""PIL's resampling numbers (`resample` in both files)."""
ROUNDING = 2.5 / 255
"""Largest pixel difference due to rounding to 8 bits in two passes."""


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
        """Number of tokens per text without truncation, including start and end tokens."""
        with self._tokenizing:
            return of_transformers(self.tokenizer, texts)

    def forward(self, texts: list[str]) -> Float[Tensor, "t d"]:
        """Embed texts, not normalised, truncated to the model's context length; an empty list gives (0,D)."""
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
    """Raise UsageError if loading a model's config would run its code (or prompt for permission); OSError if the config
    is out of reach."""
    try:
        AutoConfig.from_pretrained(name, trust_remote_code=False)
    except ValueError as error:
        raise UsageError(f"{name} is refused: {str(error).strip().splitlines()[0]}") from error


def fetch(repository: str, file: str | None, *, call: str) -> Path:
    """A file of a repository of the Hugging Face hub, or a folder of a CLIPModel's config and weights, from the local
    cache or the hub. Raises RunError where neither has it; `call` is the way out that the error names."""
    with reading_hub(f"{file or 'the folder'} of {repository}", f"download it elsewhere, and {call}"):
        found = Path(str(cached_file(repository, file or "config.json")))
        if file is not None:
            return found
        index = cached_file(repository, f"{WEIGHTS}{INDEX}", _raise_exceptions_for_missing_entries=False)
        shards = {WEIGHTS} if index is None else set(read_json(index)["weight_map"].values())
        for shard in sorted(shards):
            cached_file(repository, str(shard))
        return found.parent


def cached(repository: str, file: str) -> Path | None:
    """A file of a repository in the local cache; None where it is not there. Nothing is fetched."""
    found = cached_file(repository, file, local_files_only=True, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(str(found))


def load_folder(folder: Path, card: Card | None = None, *, byte_pairs: BytePairs | None = None) -> TwoTower:
    """A transformers CLIPModel folder: config.json, weights, tokenizer and image processor.

    The activation (QuickGELU or not) is the config's, preprocessing that of the folder's image processor
    (`read_preprocess`). A folder without tokenizer files whose vocabulary has the size of `byte_pairs()` gets the
    tokenizer of these, as LEAF's are used with CLIP's. Only local files are read. Raises UsageError when weights are
    missing or do not fit.
    """
    folder = Path(folder)
    check_sizes(read_json(folder / "config.json"), f"{folder}/config.json")
    with refusing(f"{folder} is not a folder of a CLIPModel"):
        config = CLIPConfig.from_pretrained(folder, local_files_only=True)
    path = weights_file(folder, ("model", "pytorch_model")) if card is None else folder / next(iter(card.weights))
    if path is None:
        message = f"{folder} has a CLIP config but no {WEIGHTS}: model.save_pretrained({str(folder)!r}) writes it"
        raise UsageError(message, "no_weights", folder=str(folder))
    stale = "embeddings.position_ids"  # a buffer that older versions of transformers saved
    weights = {name: value for name, value in read_weights(path).items() if not name.endswith(stale)}
    with torch.device("meta"), refusing(f"{folder}/config.json describes no CLIPModel"):
        check_fit(CLIPModel(config), weights, source=str(path))  # before allocating memory
    model = CLIPModel(config)
    load_strictly(model, weights, source=str(path))
    vision: Any = config.vision_config
    preprocess, reported = read_preprocess(folder, vision.image_size)
    scale = model.logit_scale.exp().item() if card is None else card.logit_scale
    tokenizer = _tokenizer(folder, config, byte_pairs)
    name = folder.resolve().name
    card = card or replace(
        _card(name, config, preprocess, scale), provenance={"source": name, "preprocessing": reported}
    )
    return _referee(model, tokenizer, preprocess, scale, card)


def _tokenizer(folder: Path, config: Any, byte_pairs: BytePairs | None) -> Any:
    if byte_pairs is not None and not any(is_file(folder / name) for name in TOKENIZERS):
        tokens, merges = byte_pairs()
        if config.text_config.vocab_size == len(tokens):
            return clip_tokenizer(tokens, merges, config.text_config.max_position_embeddings)
    with refusing(f"{folder} has no tokenizer that can be read"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def new_clip(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    tokenizer: Any,
    preprocess: Preprocess,
    logit_scale: float,
    name: str,
) -> TwoTower:
    """Build a CLIPModel referee from CLIPConfig arguments and the tensors of both towers.

    Raises UsageError when they do not fit, or CLIPModel's image processor cannot do the preprocessing.
    """
    _preprocessor_config(preprocess)
    clip_config = CLIPConfig(**config)
    model = CLIPModel(clip_config)
    scale = {"logit_scale": torch.tensor(logit_scale).log()}
    load_strictly(model, {**weights, **scale}, source=f"{name} as a CLIPModel")
    return _referee(model, tokenizer, preprocess, logit_scale, _card(name, clip_config, preprocess, logit_scale))


def clip_tokenizer(tokens: Mapping[str, int], merges: list[tuple[str, str]], length: int) -> Any:
    """transformers' CLIP tokenizer from open_clip's tokens, of which the last two are start and end of text.

    Unlike open_clip's it does not clean texts (curly quotes, HTML entities, mojibake), which then get other tokens.
    """
    *words, first, last = tokens
    opening, closing = "<|startoftext|>", "<|endoftext|>"
    vocabulary = {word: tokens[word] for word in words} | {opening: tokens[first], closing: tokens[last]}
    pairs: Any = merges  # annotated as lists of texts in transformers
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=length)


def save_folder(referee: TwoTower, folder: Path, *, half: bool) -> list[str]:
    """Write a transformers CLIPModel folder; returns the names of the weight files."""
    text_tower = referee.text_tower
    if not isinstance(text_tower, CLIPText):
        raise UsageError(
            f"{referee.card.name} has the image tower of a CLIPModel beside another text tower: transformers has no "
            "folder for that",
            "text_tower_unsupported",
        )
    weights = {**referee.image_tower.state_dict(), **text_tower.state_dict()}
    weights["logit_scale"] = torch.tensor(referee.logit_scale).log()
    write_weights(folder / WEIGHTS, weights, half=half)
    CLIPConfig.from_dict(referee.card.architecture["config"]).save_pretrained(folder)
    text_tower.tokenizer.save_pretrained(folder)
    (folder / PROCESSORS[0]).unlink(missing_ok=True)  # it would be read instead
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


def read_preprocess(folder: Path, image_size: int) -> tuple[Preprocess, str]:
    """The preprocessing of a transformers folder, and a description of its origin.

    From the folder's image processor (processor_config.json before preprocessor_config.json), whose pixels are compared
    with the result's on pictures of three shapes; without either file CLIP's own. Raises UsageError for a processor
    that does more than resize, crop, rescale and normalise, and for an output size other than `image_size`.
    """
    file = processor_file(folder)
    if file is None:
        return Preprocess(image_size, crop="floor"), f"CLIP's own: the folder has no {' and no '.join(PROCESSORS)}"
    with refusing(f"{folder / file} describes no image processor"):
        processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        values = processor.to_dict()
    kind = type(processor).__name__
    preprocess = _as_preprocess(values, f"{folder / file} ({kind})")
    if preprocess.size != (image_size, image_size):
        height, width = preprocess.size
        raise UsageError(
            f"{folder / file} yields pictures of {height}x{width} pixels, and the image tower takes {image_size}x"
            f"{image_size}: set size and crop_size to the tower's",
            "unequal_sizes",
            pictures=preprocess.size,
            tower=(image_size, image_size),
        )
    _refuse_other_pixels(processor, preprocess, f"{folder / file} ({kind})")
    return preprocess, f"{file} ({kind})"


def processor_file(folder: Path) -> str | None:
    """The image processor's settings file of a transformers folder, if any."""
    return next((name for name in PROCESSORS if _describes_images(folder / name)), None)


def _describes_images(path: Path) -> bool:
    if not is_file(path):
        return False
    values = read_json(path)
    if not isinstance(values, dict):
        raise UsageError(f"{path} is not a JSON object", "not_an_object", path=str(path))
    return path.name == PREPROCESSOR or isinstance(values.get("image_processor"), dict)


def _as_preprocess(values: Mapping[str, Any], source: str) -> Preprocess:
    """Convert transformers' settings. Raises UsageError for settings without a counterpart."""
    size = {key: value for key, value in dict(values.get("size") or {}).items() if value is not None}
    crop: dict[str, Any] = dict(values.get("crop_size") or {})
    resizes, crops = bool(values.get("do_resize")), bool(values.get("do_center_crop"))
    squashes = set(size) == {"height", "width"}
    target: Any = (size["height"], size["width"]) if squashes else (size.get("shortest_edge"),) * 2
    resample: Any = values.get("resample")
    if resizes and not squashes and set(size) != {"shortest_edge"}:
        message = f"{source} resizes to {size}; known are a shortest_edge, or a height and width"
        raise UsageError(message, "unknown_resize", given=size)
    if resizes and resample not in RESAMPLING:
        message = f"{source} resamples by Pillow's number {resample}; known are {RESAMPLING}"
        raise UsageError(message, "unknown_resampling", given=resample)
    if not crops and not (resizes and squashes):
        raise UsageError(
            f"{source} yields pictures of any shape (do_resize {resizes}, do_center_crop {crops}), and the tower takes "
            'one size: set "do_center_crop": true with a crop_size, or "size" to a height and width',
            "any_shape",
        )
    factor = 255 * float(values["rescale_factor"]) if values.get("do_rescale") else 255.0
    mean, std = (values["image_mean"], values["image_std"]) if values.get("do_normalize") else ((0.0,) * 3, (1.0,) * 3)
    output: Any = (crop.get("height"), crop.get("width")) if crops else target
    return Preprocess(
        output,
        mean=_channels(mean, factor),
        std=_channels(std, factor),
        interpolation=RESAMPLING[resample] if resizes else "bicubic",
        resize_mode="none" if not resizes else "squash" if squashes else "shortest",
        resize_to=target if resizes else None,
        crop="floor" if crops else "round",
    )


def _channels(numbers: Any, factor: float) -> tuple[float, ...]:
    """One number per channel, on the [0,1] scale."""
    numbers = [numbers] * 3 if isinstance(numbers, int | float) else numbers
    return tuple(number / factor for number in numbers)


@torch.no_grad()
def _refuse_other_pixels(processor: Any, preprocess: Preprocess, source: str) -> None:
    """Raise UsageError if our pixels differ from the library's by more than rounding to 8 bits."""
    exact = Preprocess.from_config(preprocess.config())
    exact.exact = True
    for height, width in ((61, 84), (84, 61), preprocess.size):
        coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        with refusing(f"{source} cannot be run"):
            theirs = processor(images=[to_pil(image[0])], return_tensors="pt")["pixel_values"].float()
        ours = exact(image)
        difference = ((theirs - ours) * exact.std).abs().max().item() if theirs.shape == ours.shape else 1.0
        if not difference <= ROUNDING:
            raise UsageError(
                f"{source} does more than resize, crop, rescale and normalise: its pixels of an image of {height}x"
                f"{width} differ by {255 * difference:.0f}/255. Set its other options (do_pad, ...) to false",
                "other_pixels",
            )


def _preprocessor_config(preprocess: Preprocess) -> dict[str, Any]:
    height, width = preprocess.size
    mode, target = preprocess.resize_mode, preprocess.resize_to
    if mode == "longest" or (mode == "shortest" and target[0] != target[1]):
        raise UsageError(
            f"transformers' CLIPImageProcessor cannot bring images to {height}x{width} by the mode {mode!r} (only "
            "'squash', and 'shortest' to a square): export with --format open_clip",
            "unsupported",
            parts=[f"resize_mode {mode!r}"],
        )
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": mode != "none",
        "size": {"height": target[0], "width": target[1]} if mode == "squash" else {"shortest_edge": max(target)},
        "do_center_crop": mode != "squash" or target != preprocess.size,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": preprocess.statistics["mean"],
        "image_std": preprocess.statistics["std"],
        "resample": next(number for number, name in RESAMPLING.items() if name == preprocess.interpolation),
    }
