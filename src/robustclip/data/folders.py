"""Image folder layouts: class folders or captions beside pictures, recognised by rule.

Used by training and evaluation, so that both read the same pictures, classes and captions.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from robustclip.data.images import ENDINGS
from robustclip.data.samples import readable
from robustclip.data.shards import captions_of
from robustclip.errors import UsageError
from robustclip.runs.files import read_lines, read_text

NAMES = "classnames.txt"
BESIDES = ("classnames.txt", "zeroshot_classification_templates.txt")  # in a folder of classes, not left out
CODE = re.compile(r"\d+|n\d{8}")  # a number or a WordNet id of ImageNet, from which no caption can be made
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
NO_FOLDERS = {"__MACOSX", "@eaDir"}  # folders that systems put beside pictures: copies, previews
SHOWN = 3  # example names of ignored files
SAMPLED = 20  # texts that are checked before they are taken for captions
HOW = "give a folder with one sub-folder of images a class, or one with its caption in a .txt beside each picture"


@dataclass(frozen=True)
class PictureFolder:
    """Paths and metadata of the pictures of a folder.

    layout     "classes": `labels` are indices into `names`, all names of the set; "pairs": captions are files beside
               pictures, read by `captions_beside`.
    reported   one line that describes the layout; `left_out` has one for each kind of ignored file.
    """

    folder: Path
    layout: Literal["classes", "pairs"]
    pictures: list[Path]
    labels: list[int]
    names: list[str]
    reported: str
    left_out: list[str] = field(default_factory=list)

    def ids(self) -> list[str]:
        """Paths relative to the folder."""
        return [path.relative_to(self.folder).as_posix() for path in self.pictures]

    def classes(self) -> list[tuple[str, str]]:
        """Class folder and class name of each picture."""
        return [
            (path.relative_to(self.folder).parts[0], self.names[label])
            for path, label in zip(self.pictures, self.labels, strict=True)
        ]


@dataclass
class FolderFiles:
    """Files below a folder by path; `hidden` are dot files and system files."""

    pictures: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)

    def left_out(self, folder: Path, but: Sequence[Path] = (), loose: Sequence[Path] = ()) -> list[str]:
        """One line per kind of ignored file, with example names."""
        known = {*but}
        others = [path for path in self.others if path not in known]
        return [
            f"{len(paths):,} {what} left out ({_few(folder, paths)})"
            for what, paths in (
                ("hidden files or folders", self.hidden),
                ("files that are not pictures", others),
                ("pictures outside of class folders", loose),
            )
            if paths
        ]


def find_pictures(folder: Path, *, follow: bool = True) -> FolderFiles:
    """All files below the folder, with `follow` also through links to folders. Raises UsageError for a link to one of
    its parents, which would count pictures repeatedly, and for an unreadable folder."""
    files = FolderFiles()
    for place, folders, file_names in os.walk(folder, onerror=_refuse, followlinks=follow):
        for name in list(folders):
            path = Path(place, name)
            if hidden(name):
                folders.remove(name)
                files.hidden.append(path)
            elif follow and path.is_symlink() and Path(place).resolve().is_relative_to(path.resolve()):
                raise UsageError(f"{path} is a link back to {path.resolve()}, which it lies in: remove it")
        for name in file_names:
            kind = files.hidden if hidden(name) else files.pictures if is_picture(name) else files.others
            kind.append(Path(place, name))
    for paths in (files.pictures, files.others, files.hidden):
        paths.sort()
    return files


def is_picture(name: str) -> bool:
    """Whether a name has a picture's extension; the type is decided by content."""
    return name.lower().rpartition(".")[2] in ENDINGS


def hidden(name: str) -> bool:
    return name.startswith(".") or name in NO_FOLDERS


def read_folder(folder: Path) -> PictureFolder:
    """Read a folder of pictures in one of two layouts: class folders, or captions beside pictures.

    pairs      a .txt (or a .json with a caption) beside at least half of the pictures, as in img2dataset's "files"
               output; pictures without one have no caption.
    classes    one sub-folder per class, as in torchvision's ImageFolder, including nested pictures. The class name is
               the folder's, with spaces for underscores, or a line of classnames.txt: line 8 for folder 7 if folders
               are numbers, the line equal to the folder's name if there is one, else the line at its alphabetical
               position.

    Raises UsageError for a folder of neither layout, and if class names are ambiguous.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder at {folder}", "missing_folder", path=folder)
    files = find_pictures(folder)
    if not files.pictures:
        few = "; ".join(files.left_out(folder))
        raise UsageError(
            f"{folder} is not a folder of pictures ({few or 'it is empty'}): {HOW}", "no_pictures", path=folder
        )
    if table := next((path for path in files.others if path.parent == folder and path.stem == "metadata"), None):
        raise UsageError(f"{table} says what the pictures of {folder} are: give a table, with columns path and caption")
    beside = _captions(files)
    if 2 * len(beside) >= len(files.pictures):
        return _pairs(folder, files, beside)
    if beside:
        raise UsageError(
            f"{folder}: {len(beside):,} of {len(files.pictures):,} pictures have a caption beside them (e.g. "
            f"{_few(folder, [*beside.values()])}): give captions to the others, or move the texts elsewhere",
            "few_captions",
            captions=len(beside),
            pictures=len(files.pictures),
        )
    return _classes(folder, files)


def captions_beside(picture: Path) -> str:
    """The caption beside a picture, one per line if there are several; "" for none. Raises UsageError for an unreadable
    file."""
    text, record = picture.with_suffix(".txt"), picture.with_suffix(".json")
    if text.is_file():
        return read_text(text).strip()
    return "\n".join(_of_json(record)) if record.is_file() else ""


def caption_lines(picture: Path) -> list[str]:
    """The captions beside a picture, one per line. Raises UsageError if there is none."""
    captions = [line.strip() for line in captions_beside(picture).split("\n") if line.strip()]
    if not captions:
        raise UsageError(f"{picture} has no caption beside it: add one, or move the picture elsewhere")
    return captions


def _captions(files: FolderFiles) -> dict[Path, Path]:
    """The caption file of each picture that has one."""
    others = {*files.others}
    texts = {one: path for one in files.pictures if (path := one.with_suffix(".txt")) in others}
    if not texts:
        records = {one: path for one in files.pictures if (path := one.with_suffix(".json")) in others}
        return records if any(_of_json(path) for path in [*records.values()][:SAMPLED]) else {}
    if not any(re.search(r"[^\W\d_]", _readable(path)) for path in [*texts.values()][:SAMPLED]):
        raise UsageError(
            f"{next(iter(texts.values()))} and others lie beside pictures and contain no words: if they are other "
            "labels, move them elsewhere; captions are texts",
            "no_words",
        )
    return texts


def _readable(path: Path) -> str:
    try:
        return read_text(path)
    except UsageError:
        return ""


def _of_json(path: Path) -> tuple[str, ...]:
    try:
        record = json.loads(_readable(path))
    except (ValueError, RecursionError):
        return ()
    return captions_of(record, "") if isinstance(record, dict) else ()


def _pairs(folder: Path, files: FolderFiles, beside: dict[Path, Path]) -> PictureFolder:
    kind = next(iter(beside.values())).suffix
    reported = f"{len(files.pictures):,} pairs: captions from {kind} beside each picture"
    if missing := len(files.pictures) - len(beside):
        reported += f", which {missing:,} have not"
    known = [path.with_suffix(end) for path in files.pictures for end in (".txt", ".json")]
    left_out = [*files.left_out(folder, known), *_miscounted(folder, files)]
    return PictureFolder(folder, "pairs", files.pictures, [], [], reported, left_out)


def _miscounted(folder: Path, files: FolderFiles) -> Iterator[str]:
    """Folders whose number of pictures differs from img2dataset's count."""
    counts = Counter(path.relative_to(folder).parts[0] for path in files.pictures)
    for path in files.others:
        if path.parent == folder and path.name.endswith("_stats.json"):
            part = path.name.removesuffix("_stats.json")
            try:
                expected = json.loads(_readable(path))["successes"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if expected != counts[part]:
                yield f"{part} holds {counts[part]:,} pictures, and {path.name} counts {str(expected)[:20]}"


def _classes(folder: Path, files: FolderFiles) -> PictureFolder:
    held = {path: path.relative_to(folder).parts for path in files.pictures}
    loose = [path for path, parts in held.items() if len(parts) == 1]
    inside = [path for path in files.pictures if len(held[path]) > 1]
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir() and not hidden(path.name))
    full = sorted({held[path][0] for path in inside})
    if not inside:
        raise UsageError(
            f"nothing says what the {len(loose):,} pictures of {folder} show: {HOW}", "no_labels", pictures=len(loose)
        )
    if SPLITS.issuperset(name.lower() for name in full):
        message = f"{', '.join(full)} in {folder} are parts of a data set, not classes: give {folder / full[0]}"
        raise UsageError(message, "parts_not_classes", instead=folder / full[0])
    names, places, how = _named(folder, folders, full)
    labels = [places[held[path][0]] for path in inside]
    reported = f"{len(inside):,} pictures of {len(full):,} classes, one sub-folder each, {how}"
    left_out = files.left_out(folder, [folder / name for name in BESIDES], loose)
    if empty := [name for name in folders if name not in full]:
        left_out.append(f"{len(empty):,} sub-folders without pictures left out ({', '.join(empty[:SHOWN])})")
    return PictureFolder(folder, "classes", inside, labels, names, reported, left_out)


def _named(folder: Path, folders: list[str], full: list[str]) -> tuple[list[str], dict[str, int], str]:
    """(names of all classes, index of each folder among them, a description of the naming rule)."""
    listed = folder / NAMES
    names = class_names(listed)
    codes = all(CODE.fullmatch(name) for name in full)
    if not names:
        if codes:
            raise UsageError(
                f"the sub-folders of {folder} ({', '.join(full[:SHOWN])}) are numbers, which make no captions: put a "
                f"{NAMES} beside them, whose line 1 names {'folder 0' if full[0].isdecimal() else full[0]}",
                "no_class_names",
            )
        return (
            [readable(name.replace("_", " ")) for name in full],
            {name: place for place, name in enumerate(full)},
            "named by it",
        )
    if all(name.isascii() and name.isdecimal() for name in full):
        numbers = {name: int(name) for name in full if len(name) < 10}
        if len({*numbers.values()}) < len(full) or max(numbers.values()) >= len(names):
            raise UsageError(
                f"{listed} names {len(names)} classes, of which line 1 is folder 0, and there are {len(full)} folders, "
                f"numbers up to {max(full, key=int)[:20]}: labels up to {max(full, key=int)[:20]} need as many names",
                "too_few_names",
                names=len(names),
            )
        return names, numbers, f"folder 0 named by line 1 of {NAMES}"
    plain = {_plain(name): place for place, name in enumerate(names)}
    if all(_plain(name) in plain for name in full):
        return names, {name: plain[_plain(name)] for name in full}, f"which are names of {NAMES}"
    if len(names) != len(folders):
        message = f"{listed} names {len(names)} classes, but there are {len(folders)} sub-folders"
        raise UsageError(message, "unequal_counts", names=len(names), folders=len(folders))
    order = {name: place for place, name in enumerate(folders)}
    if moved := [name for name in full if plain.get(_plain(name), order[name]) != order[name]]:
        raise UsageError(
            f"{listed} names {moved[0]!r} in line {plain[_plain(moved[0])] + 1}, and that folder is number "
            f"{order[moved[0]] + 1} in alphabetical order: write the names in the order of the folders",
            "other_order",
            name=moved[0],
            line=plain[_plain(moved[0])] + 1,
        )
    return names, order, f"named by the lines of {NAMES} in alphabetical order"


def class_names(path: Path) -> list[str]:
    """Class names by label, one per line; empty if there is no file. Raises UsageError for an empty line, which would
    shift the following labels."""
    if not os.path.lexists(path):
        return []
    names = read_lines(path)
    if names != [""] and "" in names:
        message = f"{path} has no name in line {names.index('') + 1}: labels are counted by lines"
        raise UsageError(message, "no_name", line=names.index("") + 1)
    return [] if names == [""] else names


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()


def _few(folder: Path, paths: Sequence[Path]) -> str:
    named = ", ".join(path.relative_to(folder).as_posix() for path in paths[:SHOWN])
    return f"{named}, ..." if len(paths) > SHOWN else named


def _refuse(error: OSError) -> None:
    raise UsageError(f"{error.filename} cannot be read ({error.strerror}): leave it out, or change its permissions")
