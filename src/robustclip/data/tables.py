"""Image-text samples from CSV and TSV tables of paths and captions, and from image folders."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from robustclip.data.folders import captions_beside, read_folder
from robustclip.data.samples import Sample, check_share, readable
from robustclip.errors import Fault, UsageError
from robustclip.runs import rng
from robustclip.runs.files import expand_home, first_undecodable
from robustclip.runs.processes import ALONE, Place

IMAGE_COLUMNS = ("path", "filepath", "image", "image_path", "file", "filename", "file_name")
CAPTION_COLUMNS = ("caption", "text", "title")
SEPARATORS = ("\t", ",", ";", "|")


class TableSource:
    """Rows of a CSV file: the path of a picture, relative to the file's folder, and its caption.

    The columns are found by their usual names (`path`, `filepath`, `image`, ...; `caption`, `text`, `title`) and the
    separator by what splits the header, unless given. A row whose picture is not there, or that has no caption, is
    skipped and counted when its turn comes. Raises UsageError for a file that is missing, not in UTF-8, without these
    columns, or not a table in every line, which is named.
    """

    def __init__(
        self,
        table: str | os.PathLike[str],
        *,
        image_column: str | None = None,
        caption_column: str | None = None,
        separator: str | None = None,
        share: float = 1.0,
    ) -> None:
        self.table = expand_home(table)
        self.name = self.table.stem
        self.share = check_share(share)
        header, rows, separator = read_table(self.table, separator)
        image = find_column(self.table, header, image_column, IMAGE_COLUMNS, "image")
        caption = find_column(self.table, header, caption_column, CAPTION_COLUMNS, "caption")
        self.samples = [self._sample(number, row[image].strip(), row[caption].strip()) for number, row in rows]
        if not self.samples:
            raise UsageError(f"{self.table} has a header and no rows", "no_rows")
        between = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}.get(separator, repr(separator))
        self.reported = (
            f"{len(rows):,} rows of a table, between {between}: pictures of the column {header[image]!r}, captions of "
            f"{header[caption]!r}"
        )

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
        described: dict[str, Any] = {"name": self.name, "kind": "table", "file": str(self.table)}
        return described | {"samples": len(self.samples), "layout": self.reported, "left_out": []}


class FolderSource:
    """Pictures of a folder, with captions beside them or in one sub-folder per class: see `folders.read_folder`.

    The captions of a class are `templates` with its name for `{}` (each epoch draws one), and pictures of a class are
    positives of each other. Captions beside pictures are read lazily; of several, one a line or listed in a .json, each
    epoch draws one. Raises UsageError for a folder without pictures, or of another layout.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        templates: Sequence[str] = ("a photo of a {}.",),
        share: float = 1.0,
    ) -> None:
        self.folder = expand_home(folder)
        self.share = check_share(share)
        self.name = self.folder.absolute().name
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise UsageError(
                f"templates {list(templates)}: each needs one {{}} where the class name goes", "not_templates"
            )
        self.templates = tuple(templates)
        self.content = read_folder(self.folder)
        if self.content.layout == "pairs":
            self.samples = [
                Sample(name, path) for name, path in zip(self.content.ids(), self.content.pictures, strict=True)
            ]
        else:
            self.samples = [
                Sample(name, path, self._captions(label), concept)
                for name, path, (concept, label) in zip(
                    self.content.ids(), self.content.pictures, self.content.classes(), strict=True
                )
            ]

    @property
    def classes(self) -> list[tuple[str, list[Path]]]:
        """(name, pictures) of each class with pictures, in the folders' order; empty for captions beside pictures."""
        by_label: dict[int, list[Path]] = {}
        for label, path in zip(self.content.labels, self.content.pictures, strict=False):  # pairs have no labels
            by_label.setdefault(label, []).append(path)
        return [(self.content.names[label], paths) for label, paths in by_label.items()]

    def _captions(self, label: str) -> tuple[str, ...]:
        return tuple(template.replace("{}", label) for template in self.templates)

    def epoch(self, seed: int, epoch: int, place: Place = ALONE, first_round: int = 0) -> Iterator[Sample]:
        drawn = shuffled(self.samples, self.size(), seed, self.name, epoch, place)
        return map(_with_caption, drawn) if self.content.layout == "pairs" else drawn

    def size(self) -> int:
        return math.ceil(self.share * len(self.samples))

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {"name": self.name, "kind": "image folder", "folder": str(self.folder)}
        described |= {"layout": self.content.reported, "left_out": self.content.left_out, "samples": len(self.samples)}
        if self.content.layout == "classes":
            described |= {"classes": len({*self.content.labels}), "templates": list(self.templates)}
        return described


def _with_caption(sample: Sample) -> Sample:
    assert isinstance(sample.image, Path)
    try:
        lines = captions_beside(sample.image).split("\n")
    except UsageError:
        return replace(sample, fault=Fault.NOT_UTF8)
    captions = tuple(caption for line in lines if (caption := readable(line)))
    return replace(sample, captions=captions, fault=None if captions else Fault.NO_CAPTION)


def shuffled(samples: Sequence[Sample], count: int, seed: int, name: str, epoch: int, place: Place) -> Iterator[Sample]:
    """This process's part of `count` samples in the epoch's random order."""
    order = torch.randperm(len(samples), generator=rng.generator(seed, f"order of {name}", epoch))[:count]
    return (samples[number] for number in order[place.mine(epoch)].tolist())


def read_table(table: Path, separator: str | None) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """The header, the rows with the numbers of their lines, and the separator. Raises UsageError as `table_rows`."""
    if not table.is_file():
        raise UsageError(f"no table at {table}", "missing_file", path=table)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            separator = separator or max(SEPARATORS, key=first.count)
            rows = list(table_rows(file, table, separator))
    except UnicodeDecodeError as error:
        message = f"{table}, line {first_undecodable(table)}: is not UTF-8 text: save it as UTF-8"
        raise UsageError(message, "not_utf8", line=first_undecodable(table)) from error
    if not rows:
        raise UsageError(f"{table} is empty: it needs a header, e.g. path,caption", "empty")
    (_, header), *body = rows
    return [column.strip() for column in header], body, separator


def find_column(table: Path, header: Sequence[str], requested: str | None, usual: Sequence[str], what: str) -> int:
    """Index of the requested column, or of the first one with a usual name."""
    names = [column.casefold() for column in header] if requested is None else list(header)
    for candidate in usual if requested is None else (requested,):
        if candidate in names:
            return names.index(candidate)
    wanted = repr(requested) if requested else f"named {', '.join(usual)}"
    message = f"{table} has no {what} column {wanted}: its columns are {', '.join(map(repr, header))}"
    raise UsageError(message, "no_column", what=what, columns=list(header))


def table_rows(lines: Iterable[str], source: object, separator: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV table with the number (from 1) of their first line, the header first; empty rows are skipped.
    `lines` keep their line ends, as those of a file or StringIO opened with newline="".

    Raises UsageError, naming the line, for unclosed or misplaced quotes, rows of another length than the header, and
    duplicate columns.
    """
    if len(separator) != 1:
        message = f"{source} is not a table with the separator {separator!r}: give one character"
        raise UsageError(message, "not_a_separator", separator=separator)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    width = 0
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UsageError(
                f"{source}, line {number}: is not a row of a table ({error}): put texts with quotes or separators in "
                'quotes, and write a quote in them twice ("")',
                "not_a_row",
                line=number,
            ) from error
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        if not width:
            width, names = len(row), Counter(cell.strip().casefold() for cell in row)
            if twice := [name for name, count in names.items() if name and count > 1]:
                message = f"{source}, line {number}: names the column {twice[0][:100]!r} twice: which one is meant?"
                raise UsageError(message, "column_twice", line=number, column=twice[0])
        if len(row) != width:
            message = f"{source}, line {number}: has {len(row)} values for {width} columns: quote texts with separators"
            raise UsageError(message, "not_a_row", line=number)
        yield number, row
