"""Load referees by name: embedded, registered, open_clip tags, folders and checkpoints.

Registered ones are in $ROBUSTCLIP_HOME/referees (~/.cache/robustclip/referees): a folder NAME, or NAME.json with the
path of a folder.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from robustclip.data import embedded
from robustclip.errors import RunError, UsageError
from robustclip.referees.base import FAMILIES, TwoTower, not_a_clip
from robustclip.referees.card import CARD_FILE, Card
from robustclip.referees.defended import by_name, split_defence
from robustclip.referees.folder import CONFIG, load_referee_folder
from robustclip.referees.lora import CONFIG as ADAPTER
from robustclip.referees.lora import WEIGHTS as ADAPTER_WEIGHTS
from robustclip.referees.released import PREFIX, Released, all_released, find_released
from robustclip.referees.smoothed import MARK, by_spec, split_spec
from robustclip.runs.devices import pick_device
from robustclip.runs.files import expand_home, read_json, write_json
from robustclip.signatures import typed

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{,99}")
RESERVED = (".json", ".partial", ".tmp")
"""Suffixes of other files in the registry."""


Kind = Literal["referee", "pair reader", "scene reader", "generator"]


@dataclass(frozen=True)
class Entry:
    """A named referee and its folder. `origin` is "embedded" (in the package) or "registered"; pair readers, scene
    readers and generators have another `kind`."""

    name: str
    folder: Path
    origin: Literal["embedded", "registered"]
    kind: Kind = "referee"

    @property
    def card(self) -> Card:
        """The referee's card. Raises RunError when the folder is gone, UsageError when it contains no card."""
        return Card.load(self.existing_folder())

    def existing_folder(self) -> Path:
        """The folder. Raises RunError when it is gone, or its entry in the registry is damaged."""
        if self.folder == _pointer(self.name):  # see _registered
            raise RunError(
                f"the entry of {self.name}, {self.folder}, is damaged: forget it with robustclip referees remove "
                f"{self.name}, and add its folder again",
                "damaged",
                name=self.name,
            )
        if not self.folder.is_dir():
            raise RunError(
                f"{self.name} is registered as {self.folder}, which is gone: put it back, or forget it with "
                f"robustclip referees remove {self.name}",
                "folder_gone",
                name=self.name,
            )
        return self.folder


def home() -> Path:
    """The folder of registered referees."""
    root = os.environ.get("ROBUSTCLIP_HOME")
    return (Path(root) if root else Path.home() / ".cache" / "robustclip") / "referees"


def list_referees() -> list[Entry]:
    """List named referees: embedded, then registered, each sorted by name."""
    return [*_embedded(), *_registered()]


def list_all() -> list[Entry | Released]:
    """`list_referees`, then embedded pair readers, scene readers and generators, then released robust CLIPs."""
    others: tuple[tuple[Kind, str], ...] = (
        ("pair reader", "pair_readers"),
        ("scene reader", "scene_readers"),
        ("generator", "generators"),
    )
    entries = [
        Entry(name, folder, "embedded", kind)
        for kind, where in others
        for name, folder in embedded.folders(where, CARD_FILE).items()
    ]
    return [*list_referees(), *entries, *all_released().values()]


def find(name: str) -> Entry | None:
    """Find a referee by name; None if absent."""
    return next((entry for entry in list_referees() if entry.name == name), None)


@typed
def load_referee(
    name: str | Path,
    *,
    device: str = "cpu",
    architecture: str | None = None,
    quick_gelu: bool | None = None,
    pretrained: str | None = None,
) -> TwoTower:
    """Load a referee, frozen and in eval mode, on `device`. `name` is one of

    - the name of an embedded or registered referee, or a referee's folder;
    - an open_clip tag, "ViT-B-32:laion2b_s34b_b79k", or a source that brings its config, "hf-hub:ORG/NAME" or
      "local-dir:FOLDER" (nothing is fetched that is not in the local cache and out of reach);
    - a checkpoint file, with its open_clip `architecture` unless the shapes of its tensors tell it, and `quick_gelu`
      where the architecture exists in both kinds; an image tower alone also needs `pretrained`, a tag or a full
      checkpoint to take the text tower from, and the folder of a LoRA adapter the model that it was trained from;
    - a transformers CLIPModel folder;
    - any of these and how to smooth it, "emoji-vanilla~smooth:0.25x16": sigma x samples (see `smoothed`);
    - any of these behind a test-time defence, "emoji-vanilla~ttc" or "emoji-vanilla~clipure:cos" (see `defended`);
    - "timm:MODEL" with `pretrained`, the file of its weights, beside the sentence encoder as text tower;
    - a released robust CLIP, "robust-clip:fare4-vit-l-14" (`robustclip referees list` names them), from the hub or
      from `pretrained`, the file or folder of it that was downloaded.

    Raises UsageError for any other name (with close matches), and for files that are unsafe or do not fit; RunError for
    files that are truncated or out of reach.
    """
    target = pick_device(device)
    options = {"architecture": architecture, "quick_gelu": quick_gelu, "pretrained": pretrained}
    return _load(str(name), {key: value for key, value in options.items() if value is not None}).to(target)


@typed
def describe(name: Annotated[str, "name or folder"]) -> Card | dict[str, Any]:
    """Card of a referee or pair reader, by name or folder; for a generator, its card.json; for a released robust CLIP,
    what is known of it; for a weight file, what it is recognised as."""
    if name.startswith(PREFIX):
        return asdict(find_released(name))
    if find(name) is None and ((path := _path(name)).is_file() or (path / ADAPTER).is_file()):
        from robustclip.referees.recognition import recognise

        return asdict(recognise(path))
    entry = next((entry for entry in list_all() if isinstance(entry, Entry) and entry.name == name), None)
    if entry is not None and entry.kind == "generator":
        return dict(read_json(entry.folder / CARD_FILE))
    return (entry or entry_of(name)).card


@typed
def add(
    folder: Annotated[Path, "a referee's folder"], *, name: Annotated[str | None, "name; default: the card's"] = None
) -> Entry:
    """Register a referee's folder under a name; the folder stays where it is.

    Raises UsageError when it is not a referee's folder, or the name is unsafe or taken.
    """
    card = Card.load(folder)
    name = check_name(card.name if name is None else name)
    write_json(_pointer(name), {"folder": str(Path(folder).resolve())})
    return Entry(name, Path(folder).resolve(), "registered")


@typed
def remove(name: str) -> Path:
    """Unregister a referee and return its folder: deleted if inside the registry, else kept."""
    entry = find(name)
    if entry is None:
        raise UsageError(_unknown(name, [entry.name for entry in _registered()]), "unknown_referee", given=name)
    if entry.origin == "embedded":
        raise UsageError(
            f"{name} comes with the package and cannot be removed; registered ones can", "not_removable", name=name
        )
    if _pointer(name).is_file():
        _pointer(name).unlink()
    elif entry.folder.is_symlink():  # made by hand: keep its target
        entry.folder.unlink()
    else:
        shutil.rmtree(entry.folder)
    return entry.folder


def check_safe(name: str) -> str:
    """Return `name` if it is a safe name for a referee. Raises UsageError for one that could be a path, a flag or a
    file of the registry."""
    if not SAFE_NAME.fullmatch(name) or name.endswith(RESERVED):
        raise UsageError(
            f"{name[:100]!r} cannot name a referee: use letters, digits, '.', '_' and '-' (up to 100, and no ending "
            f"{' or '.join(RESERVED)}), e.g. clipag-vit-b32",
            "unsafe_name",
            name=name,
        )
    return name


RefereeName = Annotated[str, AfterValidator(check_safe)]
"""The type of a recipe's `name`, validated before the training."""


def check_name(name: str) -> str:
    """Return `name` if it is safe and free, else raise UsageError."""
    check_safe(name)
    taken = next((entry for entry in list_all() if entry.name == name and isinstance(entry, Entry)), None)
    if taken is not None:
        alternative = "" if taken.origin == "embedded" else f", or remove that one: robustclip referees remove {name}"
        message = f"{name} is the name of a referee already ({taken.folder}): take another name{alternative}"
        raise UsageError(message, "name_taken", name=name, origin=taken.origin)
    return name


def _load(name: str, options: dict[str, Any]) -> TwoTower:
    if not name.strip():
        raise UsageError(_unknown("", []), "unknown_referee", given="")
    if (split := split_defence(name)) is not None:
        return by_name(_load(split[0], options), split[1])
    if MARK in name:
        base, smoothing = split_spec(name)
        return by_spec(_load(base, options), smoothing)
    entry = find(name)
    path = _path(name)
    if entry is None and (path / ADAPTER).is_file():
        return _load_checkpoint(path, options)
    if entry is not None or path.is_dir():
        _refuse(options, name, ())
        return _load_folder(path if entry is None else entry.existing_folder())
    if name.startswith("local-dir:"):
        from robustclip.referees.checkpoints import load_local_dir

        _refuse(options, name, ())
        return load_local_dir(_path(name.removeprefix("local-dir:")))
    if name.startswith("hf-hub:"):
        from robustclip.referees.openclip import load_hub

        _refuse(options, name, ())
        return load_hub(name)
    if name.startswith(PREFIX):
        from robustclip.referees.checkpoints import load_released

        _refuse(options, name, ("pretrained",))
        return load_released(name, options.get("pretrained"))
    if name.startswith("timm:"):
        from robustclip.referees.checkpoints import load_timm

        _refuse(options, name, ("pretrained",))
        return load_timm(name.removeprefix("timm:"), options.get("pretrained"))
    from robustclip.referees.weights import SUFFIXES

    if path.is_file() or path.name.endswith(SUFFIXES):  # an index of shards, too
        return _load_checkpoint(path, options)
    if name in (readers := embedded.folders("pair_readers", CARD_FILE)):
        raise not_a_clip(readers[name])
    if ":" in name:
        from robustclip.referees.openclip import load_tag

        _refuse(options, name, ("quick_gelu",))
        architecture, tag = name.split(":", 1)
        return load_tag(architecture, tag, **options)
    raise UsageError(_unknown(name, [entry.name for entry in list_referees()]), "unknown_referee", given=name)


def _load_folder(folder: Path) -> TwoTower:
    if (folder / CARD_FILE).is_file():
        return load_referee_folder(folder)
    if (folder / CONFIG).is_file():
        from robustclip.referees.checkpoints import load_local_dir

        return load_local_dir(folder)
    from robustclip.referees import huggingface

    if huggingface.is_clip_folder(folder):
        from robustclip.referees.openclip import byte_pairs

        return huggingface.load_folder(folder, byte_pairs=byte_pairs)
    from robustclip.referees.blip2_full import is_library_folder

    if is_library_folder(folder):
        raise not_a_clip(folder)
    raise UsageError(
        f"{folder} contains no referee: neither {CARD_FILE}, nor {CONFIG}, nor the config.json of a "
        "transformers CLIPModel. A run's folder becomes a referee by robustclip export RUN --name NAME",
        "no_referee",
        folder=str(folder),
    )


def _load_checkpoint(path: Path, given: dict[str, Any]) -> TwoTower:
    if not path.exists():
        raise UsageError(f"there is no file {path}", "missing_file", path=str(path))
    from robustclip.referees.checkpoints import load_adapted, load_checkpoint

    if path.is_file() and not path.name.startswith(ADAPTER_WEIGHTS):
        return load_checkpoint(path, **given)
    base = given.pop("pretrained", None)
    return load_adapted(path, None if base is None else _load(base, given))


def _refuse(options: dict[str, Any], name: str, allowed: tuple[str, ...]) -> None:
    extra = sorted(set(options) - set(allowed))
    if extra:
        message = f"{name} needs no {', '.join(extra)}: leave out what belongs to checkpoint files"
        raise UsageError(message, "not_needed", name=name, options=extra)


def _embedded() -> Iterator[Entry]:
    for name, folder in embedded.folders("referees", CARD_FILE).items():
        yield Entry(name, folder, "embedded")


def _registered() -> Iterator[Entry]:
    """Folders and pointers to folders; an unreadable pointer becomes an entry of its own path, so that it can be
    removed."""
    for path in sorted(home().glob("*")):
        if not SAFE_NAME.fullmatch(path.name.removesuffix(".json")):
            continue
        if path.is_dir() and (path / CARD_FILE).is_file():
            yield Entry(path.name, path, "registered", _kind(path))
        elif path.suffix == ".json" and not path.is_dir():
            try:
                folder = Path(read_json(path)["folder"])
            except (UsageError, TypeError, KeyError):
                folder = path
            yield Entry(path.stem, folder, "registered", _kind(folder))


def _kind(folder: Path) -> Kind:
    with suppress(UsageError):  # its folder is gone, or the card is broken
        return "pair reader" if Card.load(folder).family in FAMILIES else "referee"
    return "referee"


def _pointer(name: str) -> Path:
    return home() / f"{name}.json"


def _path(text: str) -> Path:
    """A path from a caller. Raises UsageError for an invalid one."""
    try:
        path = expand_home(text)
        path.is_file()
    except (OSError, ValueError) as error:  # too long; a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{text[:100]!r} is neither a referee's name nor a path: {reason}") from error
    return path


def entry_of(name: str) -> Entry:
    """The referee of that name or folder. Raises UsageError if there is none."""
    entry = find(name)
    if entry is not None:
        return entry
    path = _path(name)
    if (path / CARD_FILE).is_file():
        return Entry(path.resolve().name, path, "registered")
    raise UsageError(_unknown(name, [entry.name for entry in list_referees()]), "unknown_referee", given=name)


def _unknown(name: str, names: list[str]) -> str:
    if not name or len(name) > 200:
        return f"a referee's name or folder is needed, not a text of {len(name)} characters"
    near = get_close_matches(name, names, n=3, cutoff=0.4) or _near_tags(name)
    hint = f"near ones: {', '.join(near)}" if near else f"known names: {', '.join(names) or 'none'}"
    return (
        f"there is no referee {name!r}; {hint}. Folders, checkpoints and open_clip tags (ViT-B-32:openai) work too"
        f"{embedded.hint(name)}"
    )


def _near_tags(name: str) -> list[str]:
    from robustclip.referees.openclip import tags

    return get_close_matches(name, tags(), n=3, cutoff=0.5)
