"""Load checkpoint files: a full CLIP, an image tower alone, or a released robust CLIP by name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from robustclip.errors import RunError, UsageError
from robustclip.referees import lora, recognition
from robustclip.referees.base import TextTower, TwoTower
from robustclip.referees.folder import CONFIG, LOGITS, Towers, split_towers
from robustclip.referees.huggingface import cached, fetch, load_folder
from robustclip.referees.openclip import (
    SEEN,
    architectures_where,
    as_referee,
    build_text_tower,
    builtin_config,
    byte_pairs,
    exists_with_quick_gelu,
    image_names,
    load_hub,
    load_image_tower,
    load_tag,
    published_preprocess,
    refuse_captioner,
    sentence_text_cfg,
    tag_quick_gelu,
    weights_in,
)
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.released import PREFIX, Released, find_released
from robustclip.referees.sentence import SentenceEncoder
from robustclip.referees.weights import INDEX, load_strictly, read_weights, some
from robustclip.runs.files import expand_home, is_file, read_json, sha256

_log = logging.getLogger(__name__)

HUB: Final = "hf-hub:"


def load_checkpoint(
    path: Path, architecture: str | None = None, *, quick_gelu: bool | None = None, pretrained: str | None = None
) -> TwoTower:
    """A checkpoint file of one of open_clip's architectures: a full CLIP, or an image tower alone (FARE, TeCoA).

    Without `architecture` it is recognised by the shapes of its tensors (`recognition`).
    An image tower alone takes its text tower, logit scale and preprocessing from `pretrained`: a tag of the
    architecture or the file of a full CLIP. A file does not record whether it was trained with QuickGELU: for
    architectures with both variants, give `quick_gelu` (or an architecture that ends in `-quickgelu`, or a tag).
    Wrapper prefixes (DataParallel, torch.compile, a Lightning module's attribute) are removed; tensors of neither tower
    are left out with a note, and named on the card. Preprocessing is that of the architecture's published weights (of
    `pretrained`, if it is a tag). Raises UsageError for unexpected and missing keys of a tower, naming the
    architectures that fit, for two models in one file, and for a full CLIP without a logit_scale.
    """
    path = Path(path)
    weights = read_weights(path)
    architecture = recognition.named(weights, path) if architecture is None else architecture
    model_cfg = builtin_config(architecture)
    towers = recognition.towers_of(weights, image_names(model_cfg), path)
    hint = recognition.fitting(towers.image, architecture)
    if quick_gelu is None and pretrained is not None:
        quick_gelu = tag_quick_gelu(architecture, pretrained)
    model_cfg["quick_gelu"] = _decided_quick_gelu(path, architecture, model_cfg, quick_gelu)
    source = f"{path} (image tower) and {architecture}"
    image_tower = load_image_tower(model_cfg, towers.image, source=source, hint=hint)
    provenance = {"checkpoint": path.name, "architecture": architecture, **_left_out(path, towers)}
    if towers.text:
        text_tower = build_text_tower(model_cfg, towers.text, source=architecture, hint=hint)
        size = model_cfg["vision_cfg"].get("image_size", 224)
        preprocess, provenance["preprocessing"] = _preprocess(architecture, size, pretrained)
        _log.info(f"{path.name}: preprocessing is {provenance['preprocessing']}")
        scale, bias = logit_numbers(path, towers, model_cfg)
    else:
        base = _base(path, architecture, model_cfg["quick_gelu"], pretrained)
        text_tower, preprocess, scale, bias = base.text_tower, base.preprocess, base.logit_scale, base.logit_bias
        provenance |= {"text_tower": base.card.name, "preprocessing": f"that of {base.card.name}"}
    return as_referee(image_tower, text_tower, preprocess, model_cfg, path.stem, scale, bias, provenance)


def load_adapted(path: Path, base: TwoTower | None) -> TwoTower:
    """`base` with the LoRA adapter of a PEFT folder, or of its weight file, merged into its image tower.

    Raises UsageError without a base, naming the architectures that fit, and where the adapter does not fit it.
    """
    adapter = lora.find(path)
    if adapter is None:
        raise UsageError(
            f"{path} is not a LoRA adapter: give a folder with {lora.CONFIG}", "no_adapter", path=str(path)
        )
    if base is None:
        fits = architectures_where(adapter.fits)
        raise UsageError(
            f"{path} holds a LoRA adapter ({adapter}) without the model that it was trained from, and is none by "
            f"itself. Architectures it fits: {some(fits) or 'no ViT of open_clip'}. Give the base, by name or file: "
            f'load_referee("{path}", pretrained="robust-clip:tecoa4-vit-b-16-laion2b")',
            "adapter_without_base",
            path=str(path),
            fits=fits,
        )
    merged = lora.merge(adapter, base.image_tower.state_dict(), base.card.name)
    load_strictly(base.image_tower, merged, source=f"{path} merged into {base.card.name}")
    provenance = base.card.provenance | {"adapter": path.name, "adapter's base": base.card.name}
    base.card = replace(base.card, name=path.name, provenance=provenance, claims=[], weights={})
    return base


def load_local_dir(folder: Path) -> TwoTower:
    """A folder in the format of open_clip's `local-dir:`: open_clip_config.json and both towers in one weight file.

    Raises UsageError if one of the two is missing or they do not fit.
    """
    folder = Path(folder)
    path = folder / CONFIG
    if not path.is_file():
        message = f"there is no {path}: give the folder of a model that open_clip saved, or a referee's"
        raise UsageError(message, "missing_file", path=str(path))
    config = read_json(path)
    model_cfg = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model_cfg, dict):
        raise UsageError(f"{path} is not an open_clip config, a JSON object with a model_cfg", "not_a_config")
    refuse_captioner(str(path), model_cfg)
    file = _or_index(folder, weights_in(folder))
    towers = split_towers(read_weights(file), source=file) if file else Towers({}, {}, {})
    if file is None or not towers.text:
        message = f"{folder} contains {'an image tower only' if file else 'no weights'}: a CLIP needs both towers"
        raise UsageError(message, "no_text_tower" if file else "no_weights", source=str(folder))
    image_tower = load_image_tower(model_cfg, towers.image, source=f"{file} (image tower)")
    text_tower = build_text_tower(model_cfg, towers.text, source=f"local-dir:{folder}")
    reported = config.get("preprocess_cfg") or {}
    preprocess_cfg = {key: value for key, value in reported.items() if value is not None}
    preprocess_cfg["size"] = model_cfg["vision_cfg"].get("image_size", 224)  # open_clip takes the tower's, too
    silent = sorted(set(SEEN) - set(preprocess_cfg))
    scale, bias = logit_numbers(file, towers, model_cfg)
    provenance = {"source": folder.resolve().name, "preprocessing": CONFIG, **_left_out(file, towers)}
    if silent:
        provenance["preprocessing"] += f", which says nothing of {', '.join(silent)}: CLIP's own"
    name = folder.resolve().name
    return as_referee(
        image_tower, text_tower, Preprocess.from_config(preprocess_cfg), model_cfg, name, scale, bias, provenance
    )


def load_timm(
    model: str,
    path: Path | str | None,
    *,
    text_tower: TextTower | None = None,
    image_size: int = 224,
) -> TwoTower:
    """A timm image tower with weights from `path` (timm's own file, or one of open_clip's), and a text tower.

    The text tower defaults to the sentence encoder. A linear projection is added if the file has one
    (`head.proj.weight`). Raises UsageError when the file does not fit, or the towers' widths differ.
    """
    if path is None:
        raise UsageError(
            f'timm:{model} needs weights trained beside a text tower: load_referee("timm:{model}", '
            'pretrained="tower.safetensors"). To train one from random weights, see referees.openclip.new_referee',
            "no_weights",
            model=model,
        )
    text_tower = text_tower or SentenceEncoder()
    path = Path(path)
    towers = split_towers(read_weights(path), source=path)
    weights = towers.image
    if not any(name.startswith("trunk.") for name in weights):  # timm's own file: open_clip calls the tower `trunk`
        weights = {f"trunk.{name}": value for name, value in weights.items()}
    proj = "linear" if "head.proj.weight" in weights else "none"
    vision = {"timm_model_name": model, "timm_pool": "avg", "timm_proj": proj, "image_size": image_size}
    model_cfg = {"embed_dim": text_tower.width, "vision_cfg": vision, "text_cfg": sentence_text_cfg()}
    tower = load_image_tower(model_cfg, weights, source=f"{path} and timm's {model}")
    provenance = {"checkpoint": path.name, "architecture": f"timm:{model}", **_left_out(path, towers)}
    provenance["preprocessing"] = "CLIP's own, as open_clip gives towers of timm"
    return as_referee(tower, text_tower, Preprocess(image_size), model_cfg, path.stem, 100.0, None, provenance)


def logit_numbers(path: Path, towers: Towers, model_cfg: Mapping[str, Any]) -> tuple[float, float | None]:
    """Logit scale and bias of a full checkpoint (None if the architecture has no bias).

    Raises UsageError if the file lacks one of them, as open_clip does; RunError for one that is not a finite number.
    """
    needed = LOGITS if model_cfg.get("init_logit_bias") is not None else LOGITS[:1]
    if lacking := [name for name in needed if name not in towers.rest]:
        usual = {"logit_scale": "torch.tensor(100.0).log()", "logit_bias": "torch.tensor(-10.0)"}
        lines = "".join(f"weights[{name!r}] = {usual[name]}\n" for name in lacking)
        raise UsageError(
            f"{path} has no {' and no '.join(lacking)}, without which its logits have the wrong temperature. Write the "
            "training's value, 100 for most CLIPs, into a copy:\n"
            "import torch; from safetensors.torch import save_file\n"
            "from robustclip.referees.weights import read_weights\n"
            f"weights = read_weights({str(path)!r})\n{lines}"
            "save_file(weights, 'whole.safetensors')"
        )
    for name, value in towers.rest.items():
        if value.numel() != 1 or not value.isfinite().all():
            raise RunError(f"the checkpoint's {name} is not one finite number: get the file again")
    bias = towers.rest.get("logit_bias")
    return towers.rest["logit_scale"].float().exp().item(), None if bias is None else bias.float().item()


def _preprocess(architecture: str, size: Any, tag: str | None) -> tuple[Preprocess, str]:
    """Preprocessing of an architecture's published weights in open_clip's list, and a description of its origin.

    That of `tag`, if it is one of the architecture's; else the most common one; CLIP's own if none are published.
    """
    published = published_preprocess(architecture)
    if tag in published:
        return Preprocess.from_config({"size": size, **published[tag]}), f"that of {architecture}:{tag}"
    if not published:
        return Preprocess(size), f"CLIP's own: no weights of {architecture} are published"
    kinds = [str(cfg) for cfg in published.values()]
    usual = next(cfg for cfg in published.values() if str(cfg) == max(kinds, key=kinds.count))
    others = [name for name, cfg in published.items() if cfg != usual]
    reported = f"that of the published weights of {architecture}"
    if others:
        reported += f", but for {some(others)} (give pretrained=TAG if yours descend from one)"
    return Preprocess.from_config({"size": size, **usual}), reported


def _or_index(folder: Path, file: Path | None) -> Path | None:
    """The weight file, or the index of the shards that it is one of."""
    for index in sorted(folder.glob(f"*{INDEX}")):
        content = read_json(index)
        places = content.get("weight_map") if isinstance(content, dict) else None
        if file is None or (isinstance(places, dict) and file.name in places.values()):
            return index
    return file


def _left_out(path: Path, towers: Towers) -> dict[str, Any]:
    """The card's entry on tensors of neither tower, with a note on the terminal."""
    if not towers.left_out:
        return {}
    names = some(list(towers.left_out))
    _log.warning(f"{path.name}: {len(towers.left_out)} tensors belong to neither tower and are left out: {names}")
    return {"left out": f"{len(towers.left_out)} tensors of neither tower: {names}"}


def _decided_quick_gelu(path: Path, architecture: str, model_cfg: Mapping[str, Any], quick_gelu: bool | None) -> bool:
    own = bool(model_cfg.get("quick_gelu", False))
    if own and quick_gelu is False:
        plain = architecture.removesuffix("-quickgelu")
        raise UsageError(
            f"the architecture {architecture} has QuickGELU, the call says quick_gelu=False: "
            f"give architecture={plain!r}",
            "quick_gelu_contradicted",
            instead=plain,
        )
    if own or quick_gelu is not None:
        return own or bool(quick_gelu)
    if exists_with_quick_gelu(architecture):
        raise UsageError(
            f"{path} does not say whether it was trained with QuickGELU, {architecture} exists in both kinds, and the "
            "wrong one loads without a word but embeds badly. Say which: "
            f'load_referee("{path}", architecture="{architecture}", quick_gelu=True) for weights that descend from '
            "OpenAI's (FARE and TeCoA do), quick_gelu=False for those that descend from LAION's (CLIPAG does)",
            "quick_gelu_unknown",
            architecture=architecture,
        )
    return False


def _base(path: Path, architecture: str, quick_gelu: bool, pretrained: str | None) -> TwoTower:
    if pretrained is None:
        raise UsageError(
            f"{path} holds an image tower only: say where its text tower comes from, a tag of open_clip or the file of "
            f'a full CLIP: load_referee("{path}", architecture="{architecture}", quick_gelu={quick_gelu}, '
            'pretrained="openai")'
        )
    if tag_quick_gelu(architecture, pretrained) is not None:
        return load_tag(architecture, pretrained)
    if not Path(pretrained).is_file():
        message = f"pretrained={pretrained!r} is neither a tag of {architecture} nor a file"
        raise UsageError(message, "unknown_weights", architecture=architecture, pretrained=pretrained)
    base = Path(pretrained)
    if not split_towers(read_weights(base), source=base).text:
        message = f"pretrained={pretrained!r} holds an image tower only too: give the file of a full CLIP"
        raise UsageError(message, "no_text_tower", source=pretrained)
    return load_checkpoint(base, architecture, quick_gelu=quick_gelu)


def load_released(name: str, pretrained: str | None = None) -> TwoTower:
    """A released robust CLIP, on the CPU, frozen and in eval mode: from `pretrained`, the file or folder that was
    downloaded, else from the hub's cache or the hub.

    The card holds the threat and the source. Raises UsageError for an unknown name, for files of another layout, and
    where there is nothing to fetch; RunError where the hub is out of reach (saying what to do offline), and for a file
    whose hash is not the published one.
    """
    entry = find_released(name)
    where = expand_home(pretrained) if pretrained is not None else _fetched(entry)
    if where is not None:
        _check_hashes(entry, _files(entry, where))
    referee = _loaded(entry, where)
    if where is None:  # now in the hub's cache
        _check_hashes(entry, _files(entry, None))
    referee.card = replace(
        referee.card,
        name=name.removeprefix(PREFIX),
        threat=entry.threat_model,
        provenance=referee.card.provenance
        | {"released as": name, "robust towers": ", ".join(entry.towers), "trained for": entry.threat}
        | ({"licence": entry.licence} if entry.licence else {}),
    )
    return referee


def _fetched(entry: Released) -> Path | None:
    """The downloaded file or folder; None for what open_clip itself fetches."""
    if entry.source is None or not entry.source.startswith(HUB):
        reason = (
            f"no released weights were found (looked up in {', '.join(entry.looked_up)})"
            if entry.source is None
            else f"{entry.file} is not fetched; download it ({entry.source})"
        )
        message = f"{entry.name}: {reason}, and give it: {_by_file(entry)}"
        raise UsageError(message, "not_fetched", name=entry.name)
    if entry.layout == "open_clip folder":
        return None
    return fetch(entry.source.removeprefix(HUB), entry.file, call=_by_file(entry))


def _loaded(entry: Released, where: Path | None) -> TwoTower:
    if where is None:
        return load_hub(entry.source or "", f"download it elsewhere, and {_by_file(entry)}")
    if not where.exists():
        raise UsageError(f"there is no file or folder {where}: {_needed(entry)}", "missing_file", path=str(where))
    if where.is_dir() and entry.layout != "LoRA adapter":
        if not entry.layout.endswith("folder"):
            raise UsageError(f"{where} is a folder: {_needed(entry)}", "other_layout", path=str(where))
        if entry.layout == "open_clip folder":
            return load_local_dir(where)
        return load_folder(where, byte_pairs=byte_pairs)
    if entry.architecture is None:
        message = f"{where} is one file: {_needed(entry)}, because its config and tokenizer are part of the model"
        raise UsageError(message, "other_layout", path=str(where))
    if entry.layout == "LoRA adapter":
        return load_adapted(where, load_released(PREFIX + str(entry.base)))
    return load_checkpoint(where, entry.architecture, quick_gelu=entry.quick_gelu, pretrained=entry.base)


def _by_file(entry: Released) -> str:
    return f'load_referee("{entry.name}", pretrained="PATH")'


def _needed(entry: Released) -> str:
    what = "a folder with its config" if entry.layout.endswith("folder") else f"the file {entry.file or 'of its tower'}"
    return f"{entry.name} is an {entry.layout}, {what}".replace(" an t", " a t").replace(" an L", " a L")


def _files(entry: Released, where: Path | None) -> list[Path]:
    """The file, or those of a folder or of the hub's cache that have a published hash."""
    if where is not None and where.is_file():
        return [where]
    if where is not None:
        return [where / name for name in entry.sha256 if is_file(where / name)]
    return [path for name in entry.sha256 if (path := cached(str(entry.source).removeprefix(HUB), name)) is not None]


def _check_hashes(entry: Released, files: list[Path]) -> None:
    """Raise RunError where a file of a published name has another hash; print a note for a file of another name."""
    for file in files if entry.sha256 else []:
        found = sha256(file)
        if found in entry.sha256.values():
            continue
        if file.name in entry.sha256:
            raise RunError(
                f"{file} is not the file that was published: its sha256 is {found}, expected is "
                f"{entry.sha256[file.name]}. Download it again",
                "other_hash",
                path=str(file),
            )
        _log.warning(f"{file.name} is not byte for byte a published file of {entry.name}: converted, or another model")
