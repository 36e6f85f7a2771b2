"""Image-text pairs that lie in plain files: a table of paths and captions, or a folder of classes."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from robustclip import rng
from robustclip.data.batch import ALONE, Place
from robustclip.data.samples import Sample, check_share, readable
from robustclip.errors import Fault, UsageError

IMAGE_COLUMNS = ("path", "filepath", "image", "image_path", "file", "filename", "file_name")
CAPTION_COLUMNS = ("caption", "text", "title")
SEPARATORS = ("\t", ",", ";", "|")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif")


class TableSource:
    """Rows of a CSV file: the path of a picture, relative to the file's folder, and its caption.

    The columns are found by their usual names (`path`, `filepath`, `image`, ...; `caption`, `text`, `title`) and the
    separator by what splits the header, unless given. A row whose picture is not there is skipped and counted when its
    turn comes. Raises UsageError for a file that is missing, not in UTF-8, or without these columns.
    """

    def __init__(
        self,
        table: str | os.PathLike[str],
        *,
        image_column: str | None = None,
        caption_column: str | None = None,
        separator: str | None = None,
        name: str | None = None,
        share: float = 1.0,
    ) -> None:
        self.table = Path(table).expanduser()
        self.name = name or self.table.stem
        self.share = check_share(share)
        header, rows = read_table(self.table, separator)
        image = find_column(self.table, header, image_column, IMAGE_COLUMNS, "image")
        caption = find_column(self.table, header, caption_column, CAPTION_COLUMNS, "caption")
        self.samples = [
            self._sample(number, *(row[column].strip() if column < len(row) else "" for column in (image, caption)))
            for number, row in rows
        ]
        if not self.samples:
            raise UsageError(f"{self.table} has a header and no rows")

    def _sample(self, number: int, image: str, caption: str) -> Sample:
        caption = readable(caption)
        fault = None if image and caption else Fault.NO_CAPTION if image else Fault.NO_IMAGE
        captions = (caption,) if caption else ()
        return Sample(f"line-{number}", self.table.parent / image, captions, fault=fault)

    def epoch(self, seed: int, epoch: int, place: Place = ALONE, first_round: int = 0) -> Iterator[Sample]:
        return shuffled(self.samples, self.size(), seed, self.name, epoch, place)

    def size(self) -> int:
        return math.ceil(self.share * len(self.samples))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "kind": "table", "file": str(self.table), "samples": len(self.samples)}


class FolderSource:
    """Pictures in one folder a class, as torchvision's ImageFolder has them; a class's name is the folder's, with
    spaces for underscores, or its line of `classnames.txt` beside the folders, in their alphabetical order.

    The captions are `templates` with the name for `{}` (each epoch draws one), and pictures of a class are positives
    of each other. Raises UsageError for a folder without pictures.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        templates: Sequence[str] = ("a photo of a {}.",),
        name: str | None = None,
        share: float = 1.0,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.share = check_share(share)
        self.name = name or self.folder.absolute().name
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise UsageError(f"templates {list(templates)}: each needs one {{}} where the class name goes")
        self.templates = tuple(templates)
        self.classes = class_folders(self.folder)
        self.samples = [
            Sample(path.relative_to(self.folder).as_posix(), path, self._captions(label), path.parent.name)
            for label, paths in self.classes
            for path in paths
        ]

    def _captions(self, label: str) -> tuple[str, ...]:
        return tuple(template.replace("{}", label) for template in self.templates)

    def epoch(self, seed: int, epoch: int, place: Place = ALONE, first_round: int = 0) -> Iterator[Sample]:
        return shuffled(self.samples, self.size(), seed, self.name, epoch, place)

    def size(self) -> int:
        return math.ceil(self.share * len(self.samples))

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {"name": self.name, "kind": "image folder", "folder": str(self.folder)}
        counts = {"classes": len(self.classes), "samples": len(self.samples)}
        return described | counts | {"templates": list(self.templates)}


def shuffled(samples: Sequence[Sample], count: int, seed: int, name: str, epoch: int, place: Place) -> Iterator[Sample]:
    """`count` of the samples in an order of the epoch's own, dealt out to the processes."""
    order = torch.randperm(len(samples), generator=rng.generator(seed, f"order of {name}", epoch))[:count]
    return (samples[number] for number in order[place.mine(epoch)].tolist())


def read_table(table: Path, separator: str | None) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and, with their line numbers, the rows that are not blank."""
    if not table.is_file():
        raise UsageError(f"no table at {table}")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=separator or max(SEPARATORS, key=first.count))
            rows = [(reader.line_num, row) for row in reader if any(row)]
    except UnicodeDecodeError as error:
        raise UsageError(f"{table} is not in UTF-8 (byte {error.start}): save it as UTF-8") from error
    except (csv.Error, TypeError) as error:
        raise UsageError(f"{table} is not a table: {error}") from error
    if not rows:
        raise UsageError(f"{table} is empty: it needs a header, e.g. path,caption")
    (_, header), *body = rows
    return [column.strip() for column in header], body


def find_column(table: Path, header: Sequence[str], asked: str | None, usual: Sequence[str], what: str) -> int:
    """The place of the column asked for, or of the first one with a usual name."""
    names = [column.casefold() for column in header] if asked is None else list(header)
    for candidate in usual if asked is None else (asked,):
        if candidate in names:
            return names.index(candidate)
    wanted = repr(asked) if asked else f"named {', '.join(usual)}"
    raise UsageError(f"{table} has no {what} column {wanted}: its columns are {', '.join(map(repr, header))}")


def class_folders(folder: Path) -> list[tuple[str, list[Path]]]:
    """The classes of an image folder, in the order of its sub-folders' names: (class name, its pictures)."""
    if not folder.is_dir():
        raise UsageError(f"no folder at {folder}")
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    pictures = [sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS) for path in folders]
    if not any(pictures):
        raise UsageError(
            f"{folder} is no image folder: it needs one sub-folder a class, with {', '.join(ENDINGS)} in it"
        )
    listed = folder / "classnames.txt"
    names = read_lines(listed) if listed.is_file() else [path.name.replace("_", " ") for path in folders]
    if len(names) != len(folders):
        raise UsageError(f"{listed} names {len(names)} classes, but there are {len(folders)} sub-folders")
    return list(zip(names, pictures, strict=True))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without white space around them; blank lines at its end are none."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").strip().splitlines()]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not in UTF-8: save it as UTF-8") from error
