"""A set of judged pictures: their prompts, keys, and who guided them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustclip.data.examples import read_examples
from robustclip.data.folders import hidden, is_picture
from robustclip.data.images import ENDINGS, advice, picture_size
from robustclip.data.pictures import Images, Stored
from robustclip.data.pictures import Pictures as Decoded
from robustclip.data.tables import table_rows
from robustclip.errors import RunError, Skip, UsageError
from robustclip.runs.files import is_file, is_folder, read_json, read_text
from robustclip.synthesis.pictures import read_facts
from robustclip.synthesis.prompts import Prompt


@dataclass(frozen=True)
class Pictures:
    """N images of one size in [0,1] with ids and prompts.

    prompts    texts for the judges: without weights and negative prompts.
    seeds      of synthesis; None if unknown.
    guides     the referees that guided any of them, {"name", "fingerprint"}, as recorded in the pictures or the run.
    generators fingerprints of the diffusion models that made any of them, likewise.
    notes      caveats.
    """

    name: str
    images: Images
    prompts: list[str]
    ids: list[str]
    seeds: list[int | None] = field(default_factory=list)
    guides: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    generators: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        lengths = len(self.images), len(self.prompts), len(self.ids), len(self.seeds or self.ids)
        if len(set(lengths)) > 1:
            raise UsageError(
                f"{self.name} has {lengths[0]} images, {lengths[1]} prompts and {lengths[2]} ids: give one each"
            )
        if not self.ids:
            raise UsageError(f"there are no pictures in {self.name}", "no_pictures")
        if twice := [name for name, count in Counter(self.ids).items() if count > 1]:
            raise UsageError(
                f"{self.name} has two pictures with the id {twice[0]!r}: rename one of them", "id_twice", id=twice[0]
            )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def keys(self) -> list[str]:
        """Keys by which pictures of two methods are paired: prompt, seed and, for repetitions, their number."""
        repeats: Counter[tuple[str, int | None]] = Counter()
        keys = []
        for prompt, seed in zip(self.prompts, self.seeds or [None] * len(self), strict=True):
            keys.append(json.dumps([prompt, seed, repeats[prompt, seed]], ensure_ascii=False))
            repeats[prompt, seed] += 1
        return keys


def from_tensor(images: Float[Tensor, "n 3 h w"], prompts: Sequence[str], *, name: str = "pictures") -> Pictures:
    """Wrap images in memory with their prompts; ids are their indices."""
    return Pictures(name, images, list(prompts), [str(place) for place in range(len(images))])


def places_of(pictures: Pictures, prompts: Sequence[str]) -> list[int]:
    """Indices of the pictures whose prompt is one of `prompts`."""
    wanted = set(prompts)
    return [place for place, prompt in enumerate(pictures.prompts) if prompt in wanted]


def chosen(pictures: Pictures, places: Sequence[int]) -> Pictures:
    """A subset in the order of `places`; images are read lazily."""
    return replace(
        pictures,
        images=_Chosen(pictures.images, torch.tensor(places, dtype=torch.long)),
        prompts=[pictures.prompts[place] for place in places],
        ids=[pictures.ids[place] for place in places],
        seeds=[pictures.seeds[place] for place in places] if pictures.seeds else [],
    )


@final
class _Chosen:
    """A lazy subset of images, in the order of `places`."""

    def __init__(self, images: Images, places: Int[Tensor, " m"]) -> None:
        self.images, self.places = images, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, indices: Tensor, /) -> Float[Tensor, "b 3 h w"]:
        return self.images[self.places[indices]]


LISTS: Final = ("pictures.jsonl", "prompts.jsonl", "prompts.csv")
"""Prompt lists in a folder, used if the pictures have no provenance."""
LONGEST_LIST: Final = 2**28  # bytes


def read_pictures(folder: str | Path, *, prompts: Path | None = None, size: int | None = None) -> Pictures:
    """Read the pictures of a `synthesize` run (FOLDER/images/*.png with provenance), or of any folder.

    prompts    prompts of pictures without provenance, as JSON lines ({"id" or "file", "prompt"}, "seed" if known) or
               CSV with these columns; default: pictures.jsonl, prompts.jsonl or prompts.csv in the folder. Taken
               literally, without prompt weights.
    size       resize and crop pictures to this height and width; None: keep theirs, which must be equal.

    Raises UsageError for a missing or empty folder, for pictures without prompt and prompts without picture, and for
    different sizes.
    """
    folder = Path(folder)
    if not is_folder(folder):
        message = f"no folder of pictures at {str(folder)[:200]!r}: give the folder of a synthesis, or of images"
        raise UsageError(message, "missing_folder", folder=folder)
    home = folder / "images" if is_folder(folder / "images") else folder
    files = image_files(home)
    if not files:
        raise UsageError(f"{home} contains no pictures ({', '.join(ENDINGS)})", "no_pictures", folder=home)
    provenance = _provenance(files)
    guides, notes = _guides(folder, provenance)
    if provenance and prompts is None:
        return Pictures(
            folder.as_posix(),
            _decoded(files, size),
            [_positive(str(facts.get("prompt", "")), file) for facts, file in zip(provenance, files, strict=True)],
            [file.stem for file in files],
            [_seed(facts.get("seed")) for facts in provenance],
            guides,
            notes + _unfinished(folder, files),
            _generators(provenance),
        )
    listed = prompts or next((folder / name for name in LISTS if is_file(folder / name)), None)
    if listed is None:
        raise UsageError(
            f"the pictures of {folder} have no prompts: put a prompts.jsonl beside them, one line per picture such as "
            '{"file": "cat.png", "prompt": "a cat"}, or give it as --prompts FILE',
            "no_prompts",
        )
    entries = list(_entries(listed))
    chosen = [_file(entry, files, home, folder, listed) for entry in entries]
    if left := len(set(files) - set(chosen)):
        notes.append(f"{left} of {len(files)} pictures in {folder} are not in {listed.name}, and are not judged")
    return Pictures(
        folder.as_posix(),
        _decoded(chosen, size),
        [entry["prompt"] for entry in entries],
        [file.name for file in chosen],
        [_seed(entry.get("seed")) for entry in entries],
        guides,
        notes,
    )


def read_named(folder: str | Path, *, size: int | None = None) -> Pictures:
    """Pictures named PROMPT_NUMBER.png, as in T2I-CompBench, in the folder or in its samples/. Their ids are their
    names, and their prompts are parsed from them.

    Raises UsageError for a folder without pictures, and a picture with another name.
    """
    folder = Path(folder)
    home = folder / "samples" if is_folder(folder / "samples") else folder
    files = image_files(home)
    if not files:
        raise UsageError(f"{home} contains no pictures ({', '.join(ENDINGS)})", "no_pictures", folder=home)
    names = [re.fullmatch(r"(.*\S)\s*_\d+", file.stem) for file in files]
    if odd := [file.name for file, name in zip(files, names, strict=True) if name is None]:
        raise UsageError(
            f"{odd[0][:200]!r} in {home} has no prompt: name it PROMPT_NUMBER.png, such as 'a red bench_000007.png', "
            "or put a prompts.jsonl beside it",
            "odd_picture_name",
            name=odd[0],
        )
    note = f"the guides of the pictures of {folder} are unknown: it is assumed that no judge was among them"
    prompts = [name[1] for name in names if name]
    return Pictures(folder.as_posix(), _decoded(files, size), prompts, [file.name for file in files], [], [], [note])


def read_reference(reference: str | Path, *, size: int | None = None) -> Pictures:
    """Real images: a split of the embedded set, class folders, shards, or a plain folder of images.

    Their prompts are their labels, or else their first captions, or empty. `size` as in `read_pictures`. Raises
    UsageError if there are no such images.
    """
    folder = Path(reference)
    if is_folder(folder) and (files := image_files(folder)):
        return Pictures(folder.as_posix(), _decoded(files, size), [""] * len(files), [file.name for file in files])
    data = read_examples(reference, size=size)
    if data.label_names:
        prompts = [data.label_names[label] for label in data.labels.tolist()]
    else:
        prompts = [captions[0] for captions in data.captions] or [""] * len(data)
    return Pictures(data.name, data.images, prompts, data.ids)


def says_prompts(folder: str | Path) -> bool:
    """Whether the first picture of a folder has its prompt as provenance."""
    folder = Path(folder)
    home = folder / "images" if is_folder(folder / "images") else folder
    return bool(_provenance(image_files(home)[:1])) if is_folder(home) else False


def image_files(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted by name, without hidden files."""
    return sorted(path for path in folder.iterdir() if is_picture(path.name) and not hidden(path.name))


def _provenance(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The provenance of the pictures; empty if none has one. Raises UsageError if only some have one."""
    provenance, errors = [], []
    for file in files:
        try:
            provenance.append(read_facts(file))
        except UsageError as error:
            errors.append(error)
    if provenance and errors:
        raise errors[0]
    return provenance


def _guides(folder: Path, provenance: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, str]], list[str]]:
    """The pictures' guides, as recorded in the pictures or else in the run; and a note if some are unknown."""
    run = _record(folder).get("referees")
    guides: dict[str, dict[str, str]] = {}
    unknown = not provenance
    for facts in provenance:
        named = facts.get("referees") or run
        entries = [one for one in named if isinstance(one, dict)] if isinstance(named, list) else []
        known = [one for one in entries if isinstance(one.get("fingerprint"), str)]
        unknown |= not known or len(known) < len(entries)
        guides |= {
            one["fingerprint"]: {"name": str(one.get("name")), "fingerprint": one["fingerprint"]} for one in known
        }
    note = f"the guides of the pictures of {folder} are unknown: it is assumed that no judge was among them"
    return list(guides.values()), [note] if unknown else []


def _generators(provenance: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fingerprints of the diffusion models that made the pictures."""
    named = [facts["generator"] for facts in provenance if isinstance(facts.get("generator"), dict)]
    return list(dict.fromkeys(str(one.get("fingerprint")) for one in named))


def _unfinished(folder: Path, files: Sequence[Path]) -> list[str]:
    """A note if the run has fewer pictures than planned."""
    planned = _record(folder).get("pictures")
    if not isinstance(planned, int) or planned == len(files):
        return []
    return [f"{folder} holds {len(files)} of its {planned} planned pictures"]


def _record(folder: Path) -> Mapping[str, Any]:
    """The notes of the folder's run.json, if there is one."""
    record = read_json(folder / "run.json") if is_file(folder / "run.json") else None
    notes = record.get("notes") if isinstance(record, dict) else None
    return notes if isinstance(notes, dict) else {}


def _positive(prompt: str, file: Path) -> str:
    """The texts of positive weight of a prompt. Raises UsageError if there are none."""
    texts = [part.content for part in Prompt.parse(prompt).parts if part.weight > 0 and part.kind == "text"]
    if not texts:
        message = f"{file} has a prompt of pictures only ({prompt}): there is no text to judge it by"
        raise UsageError(message, "no_text", prompt=prompt)
    return ", ".join(texts)


def _entries(listed: Path) -> Iterator[dict[str, Any]]:
    """The entries of a prompt list. Raises UsageError naming an invalid line."""
    text = read_text(listed, LONGEST_LIST)
    rows: Iterator[tuple[int, Any]]
    if listed.suffix.lower() == ".csv":
        table = table_rows(StringIO(text, newline=""), listed)
        header = [name.strip() for name in next(table, (1, []))[1]]
        rows = ((number, dict(zip(header, row, strict=True))) for number, row in table)
    else:
        rows = ((number, _json(line)) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    for number, row in rows:
        name = (row.get("file") or row.get("id")) if isinstance(row, dict) else None
        prompt = row.get("prompt") if isinstance(row, dict) else None
        if not (isinstance(name, str) and name and isinstance(prompt, str) and prompt.strip()):
            message = f'{listed}, line {number}, is not of the form {{"file": "cat.png", "prompt": "a cat"}}'
            raise UsageError(message, "not_an_entry", line=number)
        yield row | {"prompt": prompt.strip()}


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _file(entry: dict[str, Any], files: Sequence[Path], home: Path, folder: Path, listed: Path) -> Path:
    """The picture of an entry: by its path in the folder, its file name, or its id."""
    name = Path(entry.get("file") or f"{entry['id']}")
    for path in (folder / name, home / name.name, *(home / f"{name}.{ending}" for ending in ENDINGS)):
        if path in files:
            return path
    raise UsageError(
        f"{listed} names {str(name)!r}, and there is no such picture in {home}", "missing_picture", name=str(name)
    )


def _seed(seed: object) -> int | None:
    if isinstance(seed, str):
        return int(seed) if seed.isascii() and seed.isdecimal() and len(seed) < 20 else None
    return seed if isinstance(seed, int) else None


def _decoded(files: Sequence[Path], size: int | None) -> Decoded:
    return Decoded([Stored(file) for file in files], (size, size) if size else _one_size(files))


def _one_size(files: Sequence[Path]) -> tuple[int, int]:
    """The common height and width, from the headers. Raises UsageError if sizes differ, RunError for an unreadable
    picture."""
    sizes: dict[tuple[int, int], Path] = {}
    for file in files:
        try:
            sizes.setdefault(picture_size(file), file)
        except Skip as error:
            raise RunError(
                f"{file} contains no readable picture: {error} ({advice(error.fault)})", "not_a_picture", path=file
            ) from error
    if len(sizes) > 1:
        (first, one), (second, other), *_ = sizes.items()
        raise UsageError(
            f"{one.name} has {first[0]}x{first[1]} pixels and {other.name} {second[0]}x{second[1]}: give one size for "
            "all, e.g. --size 224",
            "unequal_sizes",
            sizes={one.name: first, other.name: second},
        )
    return next(iter(sizes))
