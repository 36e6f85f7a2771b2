"""Load released robust CLIPs by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from robustclip.errors import RunError, UsageError
from robustclip.referees.base import TwoTower
from robustclip.referees.checkpoints import load_adapted, load_checkpoint, load_local_dir
from robustclip.referees.huggingface import fetch, load_folder
from robustclip.referees.openclip import byte_pairs, load_hub
from robustclip.referees.released import PREFIX, Released, find_released
from robustclip.runs.files import expand_home, sha256
from robustclip.runs.terminal import note

HUB: Final = "hf-hub:"


def load_released(name: str, pretrained: str | None = None) -> TwoTower:
    """A released robust CLIP, on the CPU, frozen and in eval mode: from `pretrained`, the file or folder that was
    downloaded, else from the hub's cache or the hub.

    The card holds the threat and the source. Raises UsageError for an unknown name, for files of another layout, and
    where there is nothing to fetch; RunError where the hub is out of reach (saying what to do offline), and for a file
    whose hash is not the published one.
    """
    entry = find_released(name)
    where = expand_home(pretrained) if pretrained is not None else _fetched(entry)
    referee = _loaded(entry, where)
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
        told = (
            f"no released weights were found (looked up in {', '.join(entry.looked_up)})"
            if entry.source is None
            else f"{entry.file} is not fetched; download it ({entry.source})"
        )
        raise UsageError(
            f'{entry.name}: {told}, and give it: load_referee("{entry.name}", pretrained="PATH")',
            "not_fetched",
            name=entry.name,
        )
    if entry.layout == "open_clip folder":
        return None
    return fetch(entry.source.removeprefix(HUB), entry.file, call=f'load_referee("{entry.name}", pretrained="PATH")')


def _loaded(entry: Released, where: Path | None) -> TwoTower:
    if where is None:
        return load_hub(entry.source or "")
    if not where.exists():
        raise UsageError(f"there is no file or folder {where}: {_needed(entry)}", "missing_file", path=str(where))
    if where.is_dir() and entry.layout != "LoRA adapter":
        if not entry.layout.endswith("folder"):
            raise UsageError(f"{where} is a folder: {_needed(entry)}", "other_layout", path=str(where))
        if entry.layout == "open_clip folder":
            return load_local_dir(where)
        return load_folder(where, byte_pairs=byte_pairs)
    if entry.architecture is None:
        raise UsageError(
            f"{where} is one file: {_needed(entry)}, because its config and tokenizer are part of the model",
            "other_layout",
            path=str(where),
        )
    if where.is_file():
        _check_hash(entry, where)
    if entry.layout == "LoRA adapter":
        return load_adapted(where, load_released(PREFIX + str(entry.base)))
    return load_checkpoint(where, entry.architecture, quick_gelu=entry.quick_gelu, pretrained=entry.base)


def _needed(entry: Released) -> str:
    what = "a folder with its config" if entry.layout.endswith("folder") else f"the file {entry.file or 'of its tower'}"
    return f"{entry.name} is an {entry.layout}, {what}".replace(" an t", " a t").replace(" an L", " a L")


def _check_hash(entry: Released, path: Path) -> None:
    """Raise RunError where a file of the published name has another hash; a note where a copy has another name."""
    if not entry.sha256:
        return
    found = sha256(path)
    if found in entry.sha256.values():
        return
    if path.name in entry.sha256:
        raise RunError(
            f"{path} is not the file that was published: its sha256 is {found}, expected is {entry.sha256[path.name]}. "
            "Download it again",
            "other_hash",
            path=str(path),
        )
    note(f"{path.name} is not byte for byte a published file of {entry.name}: converted, or another model")
