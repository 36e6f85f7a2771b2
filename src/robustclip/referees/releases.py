"""Load released robust CLIPs by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from robustclip.errors import RunError, UsageError
from robustclip.referees.base import TwoTower
from robustclip.referees.checkpoints import load_adapted, load_checkpoint, load_local_dir
from robustclip.referees.huggingface import cached, fetch, load_folder
from robustclip.referees.openclip import byte_pairs, load_hub
from robustclip.referees.released import PREFIX, Released, find_released
from robustclip.runs.files import expand_home, is_file, sha256
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
    if entry.layout == "LoRA adapter":
        return load_adapted(where, load_released(PREFIX + str(entry.base)))
    return load_checkpoint(where, entry.architecture, quick_gelu=entry.quick_gelu, pretrained=entry.base)


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
        note(f"{file.name} is not byte for byte a published file of {entry.name}: converted, or another model")
