"""Image folder layouts: class folders or captions beside pictures, recognised by rule.

Training and evaluation both read folders here, so that they find the same pictures, classes and captions.
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
from robustclip.data.shards import captions_of
from robustclip.errors import UsageError
from robustclip.runs.files import read_lines, read_text

NAMES = "classnames.txt"
BESIDES = ("classnames.txt", "zeroshot_classification_templates.txt")  # in a folder of classes, not left out
CODE = re.compile(r"\d+|n\d{8}")  # a number, or WordNet's of ImageNet: what no caption can be made of
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
NO_FOLDERS = {"__MACOSX", "@eaDir"}  # what systems put beside pictures: copies, previews
SHOWN = 3  # names of files that are left out
SAMPLED = 20  # texts that are looked into before they are taken for captions
HOW = "give a folder with one sub-folder of images a class, or one with its caption in a .txt beside each picture"


@dataclass(frozen=True)
class PictureFolder:
    """Paths and metadata of the pictures of a folder.

    layout     "classes": `labels` are places in `names`, all names of the set; "pairs": captions lie beside pictures,
               and `captions_beside` reads them.
    reported   one line that says what was recognised; `left_out` one for each kind of thing that is not read.
    """

    folder: Path
    layout: Literal["classes", "pairs"]
    pictures: list[Path]
    labels: list[int]
    names: list[str]
    reported: str
    left_out: list[str] = field(default_factory=list)

    def ids(self) -> list[str]:
        """Paths in the folder."""
        return [path.relative_to(self.folder).as_posix() for path in self.pictures]

    def classes(self) -> list[tuple[str, str]]:
        """Class folder and class name of each picture."""
        return [
            (path.relative_to(self.folder).parts[0], self.names[label])
            for path, label in zip(self.pictures, self.labels, strict=True)
        ]


@dataclass
class Found:
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
                ("files that are no pictures", others),
                ("pictures outside of class folders", loose),
            )
            if paths
        ]


def find_pictures(folder: Path, *, follow: bool = True) -> Found:
    """All files below the folder. Links to folders are followed if asked. Raises UsageError for one that leads back
    to a folder around it, which would count pictures again and again, and for a folder that cannot be read."""
    found = Found()
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=follow):
        for name in list(folders):
            path = Path(place, name)
            if hidden(name):
                folders.remove(name)
                found.hidden.append(path)
            elif follow and path.is_symlink() and Path(place).resolve().is_relative_to(path.resolve()):
                raise UsageError(f"{path} is a link back to {path.resolve()}, which it lies in: remove it")
        for name in files:
            kind = found.hidden if hidden(name) else found.pictures if is_picture(name) else found.others
            kind.append(Path(place, name))
    for paths in (found.pictures, found.others, found.hidden):
        paths.sort()
    return found


def is_picture(name: str) -> bool:
    """Whether a name has a picture's extension; the type is decided by content."""
    return name.lower().rpartition(".")[2] in ENDINGS


def hidden(name: str) -> bool:
    return name.startswith(".") or name in NO_FOLDERS


def read_folder(folder: Path) -> PictureFolder:
    """Read a folder of pictures in one of two layouts: class folders, or captions beside pictures.

    pairs      a .txt (or a .json with a caption) beside at least half of the pictures, as img2dataset's "files" output
               has them; pictures without one have no caption.
    classes    one sub-folder a class, as torchvision's ImageFolder; pictures deeper in it are the class's too. Its name
               is the folder's, with spaces for underscores, or its line of classnames.txt: folder 7 is line 8 where
               folders are numbers, the line that is the folder's name where lines are names, else the line of its place
               in the alphabetical order.

    Raises UsageError for a folder of neither layout, and where it cannot be told which class has which name.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder at {folder}")
    found = find_pictures(folder)
    if not found.pictures:
        few = "; ".join(found.left_out(folder))
        raise UsageError(f"{folder} is no folder of pictures ({few or 'it is empty'}): {HOW}")
    if table := next((path for path in found.others if path.parent == folder and path.stem == "metadata"), None):
        raise UsageError(f"{table} says what the pictures of {folder} are: give a table, with columns path and caption")
    beside = _captions(found)
    if 2 * len(beside) >= len(found.pictures):
        return _pairs(folder, found, beside)
    if beside:
        raise UsageError(
            f"{folder}: {len(beside):,} of {len(found.pictures):,} pictures have a caption beside them (e.g. "
            f"{_few(folder, [*beside.values()])}): give captions to the others, or move the texts elsewhere"
        )
    return _classes(folder, found)


def captions_beside(picture: Path) -> str:
    """The caption that lies beside a picture, in lines where it has several; "" for none. Raises UsageError for a file
    that cannot be read as one."""
    text, record = picture.with_suffix(".txt"), picture.with_suffix(".json")
    if text.is_file():
        return read_text(text).strip()
    return "\n".join(_of_json(record)) if record.is_file() else ""


def caption_lines(picture: Path) -> list[str]:
    """The captions that lie beside a picture, one a line. Raises UsageError where there is none."""
    captions = [line.strip() for line in captions_beside(picture).split("\n") if line.strip()]
    if not captions:
        raise UsageError(f"{picture} has no caption beside it: all pictures of a set need one, or move it elsewhere")
    return captions


def _captions(found: Found) -> dict[Path, Path]:
    """The file that holds the caption of a picture, where there is one."""
    others = {*found.others}
    texts = {one: path for one in found.pictures if (path := one.with_suffix(".txt")) in others}
    if not texts:
        records = {one: path for one in found.pictures if (path := one.with_suffix(".json")) in others}
        return records if any(_of_json(path) for path in [*records.values()][:SAMPLED]) else {}
    if not any(re.search(r"[^\W\d_]", _readable(path)) for path in [*texts.values()][:SAMPLED]):
        raise UsageError(
            f"{next(iter(texts.values()))} and others lie beside pictures and hold no words: if they are other labels, "
            "move them elsewhere; captions are texts"
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


def _pairs(folder: Path, found: Found, beside: dict[Path, Path]) -> PictureFolder:
    kind = next(iter(beside.values())).suffix
    reported = f"{len(found.pictures):,} pairs: captions from {kind} beside each picture"
    if missing := len(found.pictures) - len(beside):
        reported += f", which {missing:,} have not"
    known = [path.with_suffix(end) for path in found.pictures for end in (".txt", ".json")]
    left_out = [*found.left_out(folder, known), *_miscounted(folder, found)]
    return PictureFolder(folder, "pairs", found.pictures, [], [], reported, left_out)


def _miscounted(folder: Path, found: Found) -> Iterator[str]:
    """Where img2dataset counted other numbers of pictures than lie there."""
    held = Counter(path.relative_to(folder).parts[0] for path in found.pictures)
    for path in found.others:
        if path.parent == folder and path.name.endswith("_stats.json"):
            part = path.name.removesuffix("_stats.json")
            lie = held[part]
            try:
                counted = json.loads(_readable(path))["successes"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if counted != lie:
                yield f"{part} holds {lie:,} pictures, and {path.name} counts {str(counted)[:20]}"


def _classes(folder: Path, found: Found) -> PictureFolder:
    held = {path: path.relative_to(folder).parts for path in found.pictures}
    loose = [path for path, parts in held.items() if len(parts) == 1]
    inside = [path for path in found.pictures if len(held[path]) > 1]
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir() and not hidden(path.name))
    full = sorted({held[path][0] for path in inside})
    if not inside:
        raise UsageError(f"nothing says what the {len(loose):,} pictures of {folder} show: {HOW}")
    if SPLITS.issuperset(name.lower() for name in full):
        raise UsageError(f"{', '.join(full)} in {folder} are parts of a data set, not classes: give {folder / full[0]}")
    names, places, how = _named(folder, folders, full)
    labels = [places[held[path][0]] for path in inside]
    reported = f"{len(inside):,} pictures of {len(full):,} classes, one sub-folder each, {how}"
    left_out = found.left_out(folder, [folder / name for name in BESIDES], loose)
    if empty := [name for name in folders if name not in full]:
        left_out.append(f"{len(empty):,} sub-folders without pictures left out ({', '.join(empty[:SHOWN])})")
    return PictureFolder(folder, "classes", inside, labels, names, reported, left_out)


def _named(folder: Path, folders: list[str], full: list[str]) -> tuple[list[str], dict[str, int], str]:
    """The names of all classes, the place there of each folder, and how that was found out."""
    listed = folder / NAMES
    names = class_names(listed)
    codes = all(CODE.fullmatch(name) for name in full)
    if not names:
        if codes:
            raise UsageError(
                f"the sub-folders of {folder} ({', '.join(full[:SHOWN])}) are numbers, which make no captions: put a "
                f"{NAMES} beside them, whose line 1 names {'folder 0' if full[0].isdecimal() else full[0]}"
            )
        return (
            [name.replace("_", " ") for name in full],
            {name: place for place, name in enumerate(full)},
            "named by it",
        )
    if all(name.isascii() and name.isdecimal() for name in full):
        numbers = {name: int(name) for name in full if len(name) < 10}
        if len({*numbers.values()}) < len(full) or max(numbers.values()) >= len(names):
            raise UsageError(
                f"{listed} names {len(names)} classes, of which line 1 is folder 0, and there are {len(full)} folders, "
                f"numbers up to {max(full, key=int)[:20]}: labels up to {max(full, key=int)[:20]} need as many names"
            )
        return names, numbers, f"folder 0 named by line 1 of {NAMES}"
    plain = {_plain(name): place for place, name in enumerate(names)}
    if all(_plain(name) in plain for name in full):
        return names, {name: plain[_plain(name)] for name in full}, f"which are names of {NAMES}"
    if len(names) != len(folders):
        raise UsageError(f"{listed} names {len(names)} classes, but there are {len(folders)} sub-folders")
    order = {name: place for place, name in enumerate(folders)}
    if moved := [name for name in full if plain.get(_plain(name), order[name]) != order[name]]:
        raise UsageError(
            f"{listed} names {moved[0]!r} in line {plain[_plain(moved[0])] + 1}, and that folder is number "
            f"{order[moved[0]] + 1} in alphabetical order: write the names in the order of the folders"
        )
    return names, order, f"named by the lines of {NAMES} in alphabetical order"


def class_names(path: Path) -> list[str]:
    """Class names, of which line i belongs to label i; none where there is no file. Raises UsageError for an empty line
    among them: it would shift all that follow."""
    if not os.path.lexists(path):
        return []
    names = read_lines(path)
    if names != [""] and "" in names:
        raise UsageError(f"{path} has no name in line {names.index('') + 1}: labels are counted by lines")
    return [] if names == [""] else names


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()


def _few(folder: Path, paths: Sequence[Path]) -> str:
    named = ", ".join(path.relative_to(folder).as_posix() for path in paths[:SHOWN])
    return f"{named}, ..." if len(paths) > SHOWN else named


def _refuse(error: OSError) -> None:
    raise UsageError(f"{error.filename} cannot be read ({error.strerror}): leave it out, or change its permissions")
