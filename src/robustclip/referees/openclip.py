"""Load open_clip models; the only importer of open_clip.

Architectures are described by open_clip's `model_cfg`, preprocessing by its `preprocess_cfg`, so that open_clip loads
the trained models.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from open_clip.factory import _find_checkpoint_in_dir, create_model, get_model_config, get_tokenizer, list_models
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP, _build_text_tower, _build_vision_tower
from open_clip.pretrained import get_pretrained_cfg, list_pretrained, list_pretrained_tags_by_model
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor, nn

from robustclip.errors import UsageError
from robustclip.referees.base import TextTower, TwoTower
from robustclip.referees.card import Card
from robustclip.referees.huggingface import refuse_remote_code
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.sentence import CONTEXT_LENGTH, MINILM, OpenClipText, SentenceEncoder
from robustclip.referees.weights import check_finite, check_fit, load_strictly
from robustclip.runs.hub import reading_hub
from robustclip.runs.plain import check_sizes, refusing

FAMILY = "open_clip"
TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language"}
"""Tokenizer options that a config may set. open_clip passes on all of them, including `trust_remote_code`, which would
run code of the config's author."""
OTHERWISE = (
    'give a checkpoint you have, load_referee("weights.safetensors", architecture="ViT-B-32"); or take an embedded '
    "referee (robustclip referees list)"
)
HUB_NAME = re.compile(r"hf-hub:([A-Za-z0-9][\w.-]{,95}/)?[A-Za-z0-9][\w.-]{,95}(@[\w./-]+)?", re.ASCII)
SEEN = ("mean", "std", "interpolation", "resize_mode")
"""Keys of a `preprocess_cfg` that depend on the weights; the size depends on the architecture."""
Config = Mapping[str, Any]


def imagenet_templates() -> tuple[str, ...]:
    """The 80 prompt templates of ImageNet that open_clip holds (Radford et al. 2021), each with a `{}`."""
    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def build_image_tower(model_cfg: Config) -> nn.Module:
    """open_clip's `visual` module for this `model_cfg`, with random weights: normalised (B,3,h,w) to (B,embed_dim).

    Keys are open_clip's without the prefix `visual.`. `timm_model_pretrained` is ignored: nothing is downloaded.
    """
    vision = model_cfg.get("vision_cfg")
    if not isinstance(vision, dict) or "embed_dim" not in model_cfg:
        message = 'a model_cfg needs "embed_dim" and "vision_cfg": {...}, as in an open_clip config'
        raise UsageError(message, "not_a_config")
    check_sizes(dict(model_cfg), "a model_cfg")
    config = deepcopy(dict(model_cfg))
    vision = config["vision_cfg"]
    if vision.get("timm_model_name") is not None:
        if not re.fullmatch(r"[\w.-]+", str(vision["timm_model_name"])):
            raise UsageError(
                f"{vision['timm_model_name']!r} is not the name of a timm model: repositories are not fetched"
            )
        vision["timm_model_pretrained"] = False
    with refusing(f"open_clip cannot build an image tower from vision_cfg {vision}"):
        return _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**vision), has_quick_gelu(config))


def image_names(model_cfg: Config) -> list[str]:
    """Names of the tensors of `build_image_tower`, built on the meta device."""
    with torch.device("meta"):
        return list(build_image_tower(model_cfg).state_dict())


def load_image_tower(model_cfg: Config, weights: Mapping[str, Tensor], *, source: str, hint: str = "") -> nn.Module:
    """build_image_tower with weights. Raises UsageError if they do not fit, RunError for NaN.

    The fit is checked on the meta device first, so that a config with excessive sizes allocates no memory.
    """
    with torch.device("meta"):
        check_fit(build_image_tower(model_cfg), weights, source=source, hint=hint)
    tower = build_image_tower(model_cfg)
    load_strictly(tower, weights, source=source, hint=hint)
    return tower


def build_text_tower(
    model_cfg: Config, weights: Mapping[str, Tensor], *, source: str, folder: Path | None = None, hint: str = ""
) -> TextTower:
    """The text tower of a `model_cfg` with the given weights (keys below open_clip's `text.`).

    `source` is an argument of open_clip.get_tokenizer: an architecture or `local-dir:FOLDER`. The config of a
    transformers text tower (and the tokenizer of the sentence encoder) are read from `folder`, else found by name.
    Raises UsageError if the weights do not fit, ending in `hint`; RunError if a config cannot be fetched.
    """
    if not isinstance(model_cfg.get("text_cfg"), dict):
        raise UsageError(f'the model_cfg of {source} needs a "text_cfg": {{...}}, as in an open_clip config')
    text = deepcopy(dict(model_cfg["text_cfg"]))
    if has_sentence_encoder(model_cfg):
        return SentenceEncoder(folder, weights=weights, context_length=text.get("context_length", CONTEXT_LENGTH))
    if text.get("hf_model_name") is not None:
        text |= {"hf_model_pretrained": False, "hf_model_name": str(folder or text["hf_model_name"])}

    def build() -> nn.Module:
        with refusing(f"open_clip cannot build a text tower from text_cfg {text}"):
            return _build_text_tower(model_cfg["embed_dim"], CLIPTextCfg(**text), has_quick_gelu(model_cfg))

    named = f"the text tower of {source}"
    fetches = folder is None and any(text.get(name) is not None for name in ("hf_model_name", "hf_tokenizer_name"))
    with reading_hub(f"the text tower's config or tokenizer of {source}", OTHERWISE, ask=fetches):
        if text.get("hf_model_name") is not None:
            refuse_remote_code(text["hf_model_name"])
        with torch.device("meta"):
            check_fit(build(), weights, source=named, hint=hint)
        tower, tokenizer = build(), _tokenizer(source)
    load_strictly(tower, weights, source=named, hint=hint)
    return OpenClipText(tower, tokenizer, model_cfg["embed_dim"])


def _tokenizer(source: str) -> Callable[[list[str]], Tensor]:
    """open_clip's tokenizer of a `source` (see `build_text_tower`). Raises UsageError for a config that would run code,
    and for invalid tokenizer files."""
    text = (get_model_config(source) or {}).get("text_cfg") or {}
    refused = sorted(set(text.get("tokenizer_kwargs") or {}) - TOKENIZER_OPTIONS)
    if refused:
        raise UsageError(
            f"{source} is refused: its tokenizer_kwargs ask for {', '.join(refused)}, which could run code of the "
            f"config's author; allowed are {', '.join(sorted(TOKENIZER_OPTIONS))}"
        )
    options = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
    try:
        return get_tokenizer(source, **options)
    except ValueError as error:  # transformers' error for remote code, and for broken files
        raise UsageError(f"{source} has no tokenizer that can be read: {str(error).strip().splitlines()[0]}") from error


def bare_text_tower(model_cfg: Config) -> nn.Module:
    """open_clip's text tower for this `model_cfg`, with random weights and without a tokenizer: token ids
    (T, context_length) to (T, embed_dim). Not for text towers of transformers, whose configs are fetched."""
    text = CLIPTextCfg(**model_cfg["text_cfg"])
    return _build_text_tower(model_cfg["embed_dim"], text, has_quick_gelu(model_cfg))


def text_weights(text_tower: TextTower) -> dict[str, Tensor]:
    """The tensors of a text tower, with open_clip's keys below `text.`."""
    module = text_tower.tower if isinstance(text_tower, OpenClipText) else text_tower
    return dict(module.state_dict())


def save_text_files(text_tower: TextTower, folder: Path) -> bool:
    """Write tokenizer and config files of a transformers text tower or tokenizer for open_clip; returns whether they
    include a config."""
    if isinstance(text_tower, SentenceEncoder):
        text_tower.tokenizer.save_pretrained(folder)
        text_tower.transformer.config.save_pretrained(folder)
        return True
    if not isinstance(text_tower, OpenClipText):
        raise UsageError(f"open_clip has no text tower like {type(text_tower).__name__}: it cannot be exported")
    if isinstance(text_tower.tokenizer, HFTokenizer):
        text_tower.tokenizer.save_pretrained(folder)
    if isinstance(text_tower.tower, HFTextEncoder):
        text_tower.tower.config.save_pretrained(folder)
        return True
    return False


def has_sentence_encoder(model_cfg: Config) -> bool:
    """Whether the config's text tower is the frozen sentence encoder of the installed package."""
    return bool(model_cfg.get("text_cfg", {}).get("hf_model_name") == MINILM)


def has_custom_text(model_cfg: Config) -> bool:
    """Whether open_clip builds a CustomTextCLIP for this config, with keys under `text.`."""
    return bool(model_cfg.get("custom_text", False) or "hf_model_name" in model_cfg.get("text_cfg", {}))


def spelt_out(model_cfg: Config) -> dict[str, Any]:
    """The config with all settings of its towers, including open_clip's defaults."""
    towers: dict[str, Any] = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg}
    return dict(model_cfg) | {name: asdict(kind(**model_cfg.get(name, {}))) for name, kind in towers.items()}


def byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's tokenizer: tokens with their ids (the last two are start and end of text), and merges."""
    plain = SimpleTokenizer()
    return dict(plain.encoder), list(plain.bpe_ranks)


def has_byte_pairs(text_tower: TextTower) -> bool:
    """Whether a text tower uses CLIP's own tokenizer, unmodified."""
    tokenizer = text_tower.tokenizer if isinstance(text_tower, OpenClipText) else None
    if not isinstance(tokenizer, SimpleTokenizer) or tokenizer.reduction_fn is not None:
        return False
    plain = SimpleTokenizer()
    return bool(tokenizer.encoder == plain.encoder and tokenizer.clean_fn is plain.clean_fn)


def sentence_text_cfg() -> dict[str, Any]:
    """The open_clip `text_cfg` of the sentence encoder: no projection, mean pooling."""
    return {
        "hf_model_name": MINILM,
        "hf_tokenizer_name": MINILM,
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": None,
        "context_length": CONTEXT_LENGTH,
    }


def new_referee(
    model_cfg: Config,
    preprocess_cfg: Config,
    text_tower: TextTower,
    logit_scale: float,
    name: str,
    *,
    logit_bias: float | None = None,
) -> TwoTower:
    """A referee with a randomly initialised image tower.

    The weights come from torch's global generator: seed it inside a `torch.random.fork_rng()` to repeat them.
    """
    tower = build_image_tower(model_cfg)
    preprocess = Preprocess.from_config(preprocess_cfg)
    return as_referee(tower, text_tower, preprocess, model_cfg, name, logit_scale, logit_bias)


def load_tag(architecture: str, tag: str, *, quick_gelu: bool | None = None) -> TwoTower:
    """One of open_clip's pretrained models, e.g. ("ViT-B-32", "laion2b_s34b_b79k"); the tag determines QuickGELU.

    Raises UsageError for an unknown architecture or tag (naming near ones) or a contradicting `quick_gelu`, RunError
    when the weights are neither cached nor within reach.
    """
    model_cfg = builtin_config(architecture)
    needed = tag_quick_gelu(architecture, tag)
    if needed is None:
        known = list_pretrained_tags_by_model(architecture)
        near = get_close_matches(tag, known, n=3, cutoff=0.3) or known[:5]
        message = f"open_clip has no weights {architecture}:{tag}; it has the tags {', '.join(near) or 'none'}"
        raise UsageError(message, "unknown_weights", architecture=architecture, pretrained=tag)
    if (quick_gelu is not None and quick_gelu != needed) or (model_cfg.get("quick_gelu", False) and not needed):
        plain = architecture.removesuffix("-quickgelu")
        raise UsageError(
            f"{tag} was trained {'with' if needed else 'without'} QuickGELU, the call says the opposite: "
            f'load_referee("{plain}:{tag}") chooses what the weights were trained with',
            "quick_gelu_contradicted",
            tag=tag,
        )
    name = f"{architecture}:{tag}"
    with reading_hub(name, OTHERWISE):
        model, tokenizer = _fetched(name, architecture, pretrained=tag, force_quick_gelu=needed)
    model_cfg["quick_gelu"] = needed
    return _wrapped(model, tokenizer, model_cfg, name)


def load_hub(name: str, otherwise: str = OTHERWISE) -> TwoTower:
    """Load `hf-hub:ORG/NAME` with its own config; errors as load_tag (out of reach: with the way out `otherwise`), and
    UsageError for an invalid name."""
    if not HUB_NAME.fullmatch(name) or ".." in name or "--" in name:
        raise UsageError(
            f"{name[:200]!r} names no model of the Hugging Face hub: give hf-hub:ORG/NAME (letters, digits, '-', '_' "
            "and single '.'), or local-dir:FOLDER for a folder",
            "not_a_hub_name",
        )
    with reading_hub(name, otherwise):
        model_cfg = get_model_config(name)
        if not isinstance(model_cfg, dict):
            raise UsageError(f"{name} has no open_clip config: give hf-hub:ORG/NAME of a model that has one")
        refuse_captioner(name, model_cfg)
        has_quick_gelu(model_cfg)
        model, tokenizer = _fetched(name, name, require_pretrained=True)
    return _wrapped(model, tokenizer, model_cfg, name)


def builtin_config(architecture: str) -> dict[str, Any]:
    """A copy of the `model_cfg` of one of open_clip's architectures. Raises UsageError for an unknown one."""
    model_cfg = get_model_config(architecture) if architecture in list_models() else None
    if model_cfg is None:
        near = get_close_matches(architecture, list_models(), n=3, cutoff=0.5)
        hint = f"near ones: {', '.join(near)}" if near else "open_clip.list_models() lists them"
        message = f"open_clip has no architecture {architecture!r}; {hint}"
        raise UsageError(message, "unknown_architecture", architecture=architecture)
    refuse_captioner(architecture, model_cfg)
    return dict(model_cfg)


def architectures_where(fits: Callable[[dict[str, Any]], bool]) -> list[str]:
    """Names of open_clip architectures whose `model_cfg` passes a test."""
    return [name for name in list_models() if fits(get_model_config(name))]


def name_of(model_cfg: Config) -> str | None:
    """open_clip's name of this architecture, regardless of QuickGELU; None if it has none."""

    def towers(cfg: Config) -> tuple[Any, ...]:
        full = spelt_out(cfg)
        return cfg.get("embed_dim"), full["vision_cfg"], full["text_cfg"]

    wanted = towers(model_cfg)
    return next(iter(architectures_where(lambda cfg: towers(cfg) == wanted)), None)


def published_preprocess(architecture: str) -> dict[str, dict[str, Any]]:
    """{tag: mean, std, interpolation and resize_mode} of an architecture's published weights."""
    published = {tag: get_pretrained_cfg(architecture, tag) for tag in list_pretrained_tags_by_model(architecture)}
    return {tag: {key: cfg[key] for key in SEEN if cfg.get(key) is not None} for tag, cfg in published.items()}


def has_quick_gelu(model_cfg: Config) -> bool:
    """Whether a `model_cfg` sets QuickGELU. Raises UsageError for texts but "true": open_clip takes all as true."""
    value = model_cfg.get("quick_gelu", False)
    if isinstance(value, str) and value.lower() != "true":  # FARE's and TeCoA's configs on the hub say "TRUE"
        reason = f'the model_cfg has "quick_gelu": "{value[:20]}", a text, which open_clip reads as true'
        raise UsageError(f"{reason}: write true or false without quotes, as the model was trained", "quick_gelu_text")
    return bool(value)


def exists_with_quick_gelu(architecture: str) -> bool:
    """Whether an architecture exists with and without QuickGELU, so that a file can be either."""
    return f"{architecture}-quickgelu" in list_models()


def tag_quick_gelu(architecture: str, tag: str) -> bool | None:
    """Whether a tag's weights were trained with QuickGELU; None when the architecture has no such tag."""
    cfg = get_pretrained_cfg(architecture, tag)
    return bool(cfg.get("quick_gelu", False)) if cfg else None


def weights_in(folder: Path) -> Path | None:
    """The weight file that open_clip takes from a `local-dir:` folder."""
    path = _find_checkpoint_in_dir(folder)
    return None if path is None else Path(path)


def tags() -> list[str]:
    """All `architecture:tag` names of open_clip's pretrained models."""
    return list(list_pretrained(as_str=True))


def as_referee(
    image_tower: nn.Module,
    text_tower: TextTower,
    preprocess: Preprocess,
    model_cfg: Config,
    name: str,
    logit_scale: float,
    logit_bias: float | None = None,
    provenance: dict[str, Any] | None = None,
) -> TwoTower:
    """Combine towers into a frozen referee in eval mode, with a card of their provenance."""
    card = Card(
        name=name,
        family=FAMILY,
        architecture=deepcopy(dict(model_cfg)),
        preprocess=preprocess.config(),
        logit_scale=float(logit_scale),
        logit_bias=logit_bias,
        provenance=provenance or {},
    )
    referee = TwoTower(image_tower, text_tower, preprocess, card=card, logit_scale=logit_scale, logit_bias=logit_bias)
    return referee.eval().requires_grad_(False)


def _fetched(name: str, model_name: str, **options: Any) -> tuple[CustomTextCLIP, Callable[[list[str]], Tensor]]:
    try:
        model = create_model(model_name, force_custom_text=True, pretrained_text=False, **options)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UsageError(
            f"{name} is refused: its weights hold a pickle that could run code when opened ({reason}). Download the "
            "file, convert it to safetensors on a machine you trust, and give the result with architecture=...",
            "unsafe_pickle",
            path=name,
        ) from error
    return model, _tokenizer(model_name)


def _wrapped(model: CustomTextCLIP, tokenizer: Callable[[list[str]], Tensor], model_cfg: Config, name: str) -> TwoTower:
    text = OpenClipText(model.text, tokenizer, model_cfg["embed_dim"])
    check_finite(model, source=name)
    bias = None if model.logit_bias is None else model.logit_bias.item()
    preprocess = Preprocess.from_config(dict(model.visual.preprocess_cfg))
    scale = model.logit_scale.exp().item()
    provenance = {"source": name, "preprocessing": f"open_clip's for {name}"}
    return as_referee(model.visual, text, preprocess, model_cfg, name, scale, bias, provenance)


def refuse_captioner(name: str, model_cfg: Config) -> None:
    """Raise UsageError for a captioner's config (CoCa)."""
    if "multimodal_cfg" in model_cfg:
        message = f"{name} is a captioner (CoCa); a referee has two towers: take a CLIP or SigLIP architecture"
        raise UsageError(message, "captioner", name=name)
