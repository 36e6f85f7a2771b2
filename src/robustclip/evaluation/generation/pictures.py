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
from robustclip.errors import RunError, Skip, UsageError
from robustclip.runs.files import is_file, is_folder, read_json, read_text, table_rows
from robustclip.synthesis.pictures import read_facts
from robustclip.synthesis.prompts import Prompt


@dataclass(frozen=True)
class Pictures:
    """N images of one size in [0,1] with ids and prompts.

    prompts    the text that a judge is asked about: without weights, and without what was to be avoided.
    seeds      what each was painted with; None where nothing says it.
    guides     the referees that guided any of them, {"name", "fingerprint"}, as far as pictures or run say.
    generators fingerprints of the diffusion models that made any of them, likewise.
    notes      what to know before believing a number.
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
            raise UsageError(f"there are no pictures in {self.name}: nothing to judge")
        if twice := [name for name, count in Counter(self.ids).items() if count > 1]:
            raise UsageError(f"{self.name} has two pictures with the id {twice[0]!r}: which is which, nobody could say")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def keys(self) -> list[str]:
        """What pictures of two methods are paired by: prompt and seed, and where these come again, how often before."""
        seen: Counter[tuple[str, int | None]] = Counter()
        found = []
        for prompt, seed in zip(self.prompts, self.seeds or [None] * len(self), strict=True):
            found.append(json.dumps([prompt, seed, seen[prompt, seed]], ensure_ascii=False))
            seen[prompt, seed] += 1
        return found


def from_tensor(images: Float[Tensor, "n 3 h w"], prompts: Sequence[str], *, name: str = "pictures") -> Pictures:
    """Wrap images in memory with their prompts; ids are their indices."""
    return Pictures(name, images, list(prompts), [str(place) for place in range(len(images))])


def places_of(pictures: Pictures, prompts: Sequence[str]) -> list[int]:
    """Where the pictures are that are to show one of `prompts`."""
    known = set(prompts)
    return [place for place, prompt in enumerate(pictures.prompts) if prompt in known]


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
    """Some of the images, in the order of their places."""

    def __init__(self, images: Images, places: Int[Tensor, " m"]) -> None:
        self.images, self.places = images, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, indices: Tensor, /) -> Float[Tensor, "b 3 h w"]:
        return self.images[self.places[indices]]


LISTS: Final = ("pictures.jsonl", "prompts.jsonl", "prompts.csv")
"""Where a folder says what its pictures are to show, where the pictures do not say it themselves."""
LONGEST_LIST: Final = 2**28  # bytes


def read_pictures(folder: str | Path, *, prompts: Path | None = None, size: int | None = None) -> Pictures:
    """Read the pictures of a `synthesize` run (FOLDER/images/*.png with provenance), or of any folder.

    prompts    a list of what the pictures of another folder are to show, as JSON lines ({"id" or "file", "prompt"},
               "seed" if known) or CSV with these columns; without it pictures.jsonl, prompts.jsonl or prompts.csv in
               the folder. Its prompts are taken literally.
    size       height and width that pictures are resized and cut to; None: as they are, all alike.

    Raises UsageError where there is no folder or picture in it, a picture has no prompt or a prompt no picture, and
    where sizes differ.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise UsageError(
            f"no folder of pictures at {str(folder)[:200]!r}: give the folder of a synthesis, or of images"
        )
    home = folder / "images" if is_folder(folder / "images") else folder
    files = image_files(home)
    if not files:
        raise UsageError(f"{home} holds no pictures ({', '.join(ENDINGS)})")
    told = _told(files)
    guides, notes = _guides(folder, told)
    if told and prompts is None:
        return Pictures(
            folder.as_posix(),
            _decoded(files, size),
            [_wanted(str(facts.get("prompt", "")), file) for facts, file in zip(told, files, strict=True)],
            [file.stem for file in files],
            [_seed(facts.get("seed")) for facts in told],
            guides,
            notes + _unfinished(folder, files),
            _generators(told),
        )
    listed = prompts or next((folder / name for name in LISTS if is_file(folder / name)), None)
    if listed is None:
        raise UsageError(
            f"nothing says what the pictures of {folder} are to show: put a prompts.jsonl beside them, a line a "
            'picture such as {"file": "cat.png", "prompt": "a cat"}, or give it as --prompts FILE'
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
    """Pictures that are called by what they show and a number, PROMPT_NUMBER.png, as T2I-CompBench has them, in the
    folder or in its samples/. Their ids are their names, and their prompts what the names say.

    Raises UsageError for a folder without pictures, and a picture with another name.
    """
    folder = Path(folder)
    home = folder / "samples" if is_folder(folder / "samples") else folder
    files = image_files(home)
    if not files:
        raise UsageError(f"{home} holds no pictures ({', '.join(ENDINGS)})")
    names = [re.fullmatch(r"(.*\S)\s*_\d+", file.stem) for file in files]
    if odd := [file.name for file, name in zip(files, names, strict=True) if name is None]:
        raise UsageError(
            f"nothing says what {odd[0][:200]!r} in {home} is to show: name it PROMPT_NUMBER.png, such as "
            "'a red bench_000007.png', or put a prompts.jsonl beside it",
            "odd_picture_name",
            name=odd[0],
        )
    note = f"nothing says who guided the pictures of {folder}: that no judge did is taken on trust"
    prompts = [name[1] for name in names if name]
    return Pictures(folder.as_posix(), _decoded(files, size), prompts, [file.name for file in files], [], [], [note])


def read_reference(reference: str | Path, *, size: int | None = None) -> Pictures:
    """Real images: a split of the embedded set, class folders, shards, or a plain folder of images.

    Their prompts are their labels, or else their first captions; empty where nothing is known of them. `size` as in
    `read_pictures`. Raises UsageError where there are no such images.
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
    return bool(_told(image_files(home)[:1])) if is_folder(home) else False


def image_files(folder: Path) -> list[Path]:
    """The pictures that lie in a folder, by name; none that begin with a dot."""
    return sorted(path for path in folder.iterdir() if is_picture(path.name) and not hidden(path.name))


def _told(files: Sequence[Path]) -> list[dict[str, Any]]:
    """What the pictures say of themselves; nothing where none says anything. Raises UsageError where only some do:
    the others would be left out quietly."""
    told, mute = [], []
    for file in files:
        try:
            told.append(read_facts(file))
        except UsageError as error:
            mute.append(error)
    if told and mute:
        raise mute[0]
    return told


def _guides(folder: Path, told: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, str]], list[str]]:
    """Who guided the pictures, as they say themselves, or else the run does; and what nobody says."""
    run = _record(folder).get("referees")
    guides: dict[str, dict[str, str]] = {}
    unknown = not told
    for facts in told:
        named = facts.get("referees") or run
        entries = [one for one in named if isinstance(one, dict)] if isinstance(named, list) else []
        found = [one for one in entries if isinstance(one.get("fingerprint"), str)]
        unknown |= not found or len(found) < len(entries)
        guides |= {
            one["fingerprint"]: {"name": str(one.get("name")), "fingerprint": one["fingerprint"]} for one in found
        }
    note = f"nothing says who guided the pictures of {folder}: that no judge did is taken on trust"
    return list(guides.values()), [note] if unknown else []


def _generators(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fingerprints of the diffusion models that made the pictures, as they say."""
    named = [facts["generator"] for facts in told if isinstance(facts.get("generator"), dict)]
    return list(dict.fromkeys(str(one.get("fingerprint")) for one in named))


def _unfinished(folder: Path, files: Sequence[Path]) -> list[str]:
    """A note where the run was to have more pictures than there are."""
    planned = _record(folder).get("pictures")
    if not isinstance(planned, int) or planned == len(files):
        return []
    return [f"{folder} holds {len(files)} of the {planned} pictures it was to have"]


def _record(folder: Path) -> Mapping[str, Any]:
    """What the run noted in its run.json, if there is one."""
    record = read_json(folder / "run.json") if is_file(folder / "run.json") else None
    notes = record.get("notes") if isinstance(record, dict) else None
    return notes if isinstance(notes, dict) else {}


def _wanted(prompt: str, file: Path) -> str:
    """The texts that a picture is drawn towards. Raises UsageError where there are none: pictures alone say nothing."""
    texts = [part.content for part in Prompt.parse(prompt).parts if part.weight > 0 and part.kind == "text"]
    if not texts:
        raise UsageError(f"{file} was painted after pictures alone ({prompt}): there is no text to judge it by")
    return ", ".join(texts)


def _entries(listed: Path) -> Iterator[dict[str, Any]]:
    """The lines of a list of prompts. Raises UsageError naming the line that does not read as one."""
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
            raise UsageError(f'{listed}, line {number}, is not of the kind {{"file": "cat.png", "prompt": "a cat"}}')
        yield row | {"prompt": prompt.strip()}


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _file(entry: dict[str, Any], files: Sequence[Path], home: Path, folder: Path, listed: Path) -> Path:
    """The picture that a line speaks of: by its path in the folder, its file's name, or its id."""
    name = Path(entry.get("file") or f"{entry['id']}")
    known = set(files)
    for path in (folder / name, home / name.name, *(home / f"{name}.{ending}" for ending in ENDINGS)):
        if path in known:
            return path
    raise UsageError(f"{listed} speaks of {str(name)!r}, and there is no such picture in {home}")


def _seed(seed: object) -> int | None:
    if isinstance(seed, str):
        return int(seed) if seed.isascii() and seed.isdecimal() and len(seed) < 20 else None
    return seed if isinstance(seed, int) else None


def _decoded(files: Sequence[Path], size: int | None) -> Decoded:
    return Decoded([Stored(file) for file in files], (size, size) if size else _one_size(files))


def _one_size(files: Sequence[Path]) -> tuple[int, int]:
    """Height and width of all of them, read from their headers. Raises UsageError where they differ, RunError for a
    file that is no picture."""
    sizes: dict[tuple[int, int], Path] = {}
    for file in files:
        try:
            sizes.setdefault(picture_size(file), file)
        except Skip as error:
            raise RunError(f"{file} holds no readable picture: {error} ({advice(error.fault)})") from error
    if len(sizes) > 1:
        (first, one), (second, other), *_ = sizes.items()
        raise UsageError(
            f"{one.name} has {first[0]}x{first[1]} pixels and {other.name} {second[0]}x{second[1]}: give one size for "
            "all, e.g. --size 224"
        )
    return next(iter(sizes))
