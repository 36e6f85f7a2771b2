"""Work items of synthesis: prompt, seed and file name."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Final

import torch
from pydantic import BeforeValidator

from robustclip.data.tables import table_rows
from robustclip.errors import UsageError
from robustclip.runs import rng
from robustclip.runs.files import read_text
from robustclip.synthesis.prompts import Prompt

LONGEST: Final = 100
"""Maximum characters of a name, and half of its bytes, so that name, seed and suffix fit 255 bytes."""
SLUG: Final = 60
"""Characters of a name made of a prompt."""

_RESERVED = re.compile(r"con|prn|aux|nul|com\d|lpt\d|conin|conout|clock", re.IGNORECASE)  # of Windows


def stem(text: str, fallback: str = "picture") -> str:
    """A file name without ending: letters and digits of any script, `-` and `_`; long ones end in a digest.

    Different texts can give the same name: see `apart`.
    """
    name = re.sub(r"[^\w]+", "-", unicodedata.normalize("NFKC", text)).strip("-")
    if not name or _RESERVED.fullmatch(name):
        name = f"{fallback}-{name}".strip("-")
    if len(name) <= LONGEST and len(name.encode()) <= 2 * LONGEST:
        return name
    return f"{_cut(name, LONGEST - 7)}-{digest(text)}"


def slug(text: str) -> str:
    """A short name of a prompt: `a-green-turtle`."""
    words = stem(text[: 2 * SLUG].casefold())
    short = _cut(words, SLUG)
    return short if short == words else short.rpartition("-")[0] or short  # not in the middle of a word


def apart(named: Iterable[tuple[str, str]]) -> list[str]:
    """Unique names of (name, meaning) pairs, up to case and Unicode normalisation.

    The first of equal names keeps it; others get a digest of their meaning.
    """
    taken: set[str] = set()
    found = []
    for name, meaning in named:
        chosen, length = name, 0
        while (key := unicodedata.normalize("NFKC", chosen.casefold())) in taken:
            length += 6
            chosen = f"{_cut(name, LONGEST)}-{digest(meaning, length)}"
        taken.add(key)
        found.append(chosen)
    return found


def digest(text: str, length: int = 6) -> str:
    """The first hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def _cut(name: str, length: int) -> str:
    """At most `length` characters, and twice as many bytes."""
    return name[:length].encode()[: 2 * length].decode(errors="ignore").rstrip("-")


MOST_SEEDS: Final = 10_000
MOST_PICTURES: Final = 1_000_000
LARGEST_SEED: Final = 2**63 - 1


@dataclass(frozen=True)
class Item:
    """A picture to generate. `id` is the file name's stem, unique in a run; `repeat` distinguishes repeated prompts."""

    id: str
    prompt: Prompt
    seed: int
    repeat: int = 0

    def generator(self, purpose: str, *indices: int, device: str | torch.device = "cpu") -> torch.Generator:
        """Random generator of this picture for a purpose, e.g. `item.generator("views", step)`: a function of seed,
        prompt and repeat, independent of batch and process."""
        return rng.generator(self.seed, f"{purpose} of {self.prompt}", self.repeat, *indices, device=device)


@dataclass(frozen=True)
class Named:
    """A prompt with the name of its picture, and its own seed where it has one."""

    id: str
    prompt: Prompt
    seed: int | None = None


def items_of(prompts: Sequence[Prompt], seeds: Sequence[int] = (0,)) -> list[Item]:
    """All combinations of prompts and seeds, named by prompt and seed: `a-green-turtle-s0`."""
    _check_pictures(len(prompts), len(seeds))
    repeats = _repeats(prompts)
    names = apart((slug(prompt.wanted), f"{prompt} {again}") for prompt, again in zip(prompts, repeats, strict=True))
    return [
        Item(f"{name}-s{seed}", prompt, seed, again)
        for name, prompt, again in zip(names, prompts, repeats, strict=True)
        for seed in dict.fromkeys(seeds)
    ]


def items_of_named(named: Sequence[Named], seeds: Sequence[int] = (0,)) -> list[Item]:
    """Every named prompt with its own seed, else with every one of `seeds`. A picture has the name of its prompt; with
    several seeds the seed is added to all."""
    seeds = list(dict.fromkeys(seeds))
    _check_pictures(len(named), len(seeds))
    return [
        Item(f"{one.id}-s{seed}" if len(seeds) > 1 else one.id, one.prompt, seed, again)
        for one, again in zip(named, _repeats([one.prompt for one in named]), strict=True)
        for seed in (seeds if one.seed is None else [one.seed])
    ]


def _check_pictures(prompts: int, seeds: int) -> None:
    if prompts * seeds > MOST_PICTURES:
        message = f"{prompts:,} prompts with {seeds:,} seeds are more than {MOST_PICTURES:,} pictures: split them"
        raise UsageError(message, "too_many", prompts=prompts, seeds=seeds, most=MOST_PICTURES)


def parse_seeds(given: object) -> list[int]:
    """`0..3` is 0, 1, 2, 3; `0,5,7` three seeds, and `3` one; numbers and lists of them are taken as they are.

    Raises UsageError for what is none of these, more than 10,000 seeds, one twice, and one that is negative or beyond
    63 bits.
    """
    texts = given if isinstance(given, list | tuple | range) else str(given).split(",")
    seeds = [seed for text in texts for seed in _range(str(text).strip())]
    if not seeds:
        raise UsageError("gives no seed: write one number, a list (0,5,7) or a range (0..3)", "no_seed")
    _check_count(len(seeds))
    if twice := [seed for seed, count in Counter(seeds).items() if count > 1]:
        raise UsageError(
            f"names the seed {twice[0]} twice: the same picture would be painted again", "listed_twice", seed=twice[0]
        )
    return seeds


Seeds = Annotated[list[int], BeforeValidator(parse_seeds), "seeds: one, a list (0,5,7) or a range (0..3)"]
"""The type of a `seeds` flag."""


def _range(text: str) -> Sequence[int]:
    found = re.fullmatch(r"(\d{1,19})(?:\.\.(\d{1,19}))?", text, re.ASCII)
    if found is None:
        message = f"{text[:50]!r} is not a seed: write a number from 0 (3), a list (0,5,7) or a range (0..3)"
        raise UsageError(message, "not_a_seed", given=text)
    first, last = int(found[1]), int(found[2] or found[1])
    if last > LARGEST_SEED:
        raise UsageError(f"the seed {last} is beyond the integers of 64 bits", "too_large", seed=last)
    if last < first:
        raise UsageError(f"the range {text} is empty: write {last}..{first}", "empty_range", instead=f"{last}..{first}")
    _check_count(last - first + 1)
    return range(first, last + 1)


def _check_count(count: int) -> None:
    if count > MOST_SEEDS:
        raise UsageError(
            f"gives {count} seeds: at most {MOST_SEEDS} in one run", "too_many", seeds=count, most=MOST_SEEDS
        )


def _repeats(prompts: Sequence[Prompt]) -> list[int]:
    """How often each prompt came before."""
    seen: Counter[Prompt] = Counter()
    found = []
    for prompt in prompts:
        found.append(seen[prompt])
        seen[prompt] += 1
    return found


TEXT_NAMES: Final = ("prompt", "caption", "text")
LONGEST_FILE: Final = 2**28
"""Bytes; a million captions are about 60 MB."""
MOST: Final = 1_000_000


@dataclass(frozen=True)
class Line:
    """A line (from 1) of a prompt file."""

    number: int
    caption: str
    id: str | None = None
    seed: int | None = None


def load_prompts(path: str | Path) -> list[Named]:
    """The prompts of a file, in order, with unique file names.

    Raises UsageError, naming file and line, for a file that is not readable, an ending that is none of .txt, .jsonl and
    .csv, a line without a valid caption, and duplicate ids.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        message = f"{path} has the ending {path.suffix or 'of nothing'}: prompts are read from .txt, .jsonl, .csv"
        raise UsageError(message, "unknown_format", ending=path.suffix)
    text = read_text(path, LONGEST_FILE)
    lines: list[Line] = []
    prompts: list[Prompt] = []
    for line in reader(path, text):
        if len(lines) == MOST:
            raise UsageError(f"{path} has more than {MOST:,} prompts: split it", "too_many", path=path, most=MOST)
        try:
            prompts.append(Prompt.literal(line.caption))
        except UsageError as error:
            raise _fault(path, line.number, str(error), error.code) from error
        lines.append(line)
    if not lines:
        raise UsageError(f"{path} contains no prompt: write a caption a line", "no_prompts", path=path)
    _refuse_twins(path, lines)
    digits = max(5, len(str(lines[-1].number)))  # so that names do not change when the file grows
    names = apart(
        (f"{line.number:0{digits}}-{slug(line.caption)}", f"line {line.number}")
        if line.id is None
        else (stem(line.id), line.id)
        for line in lines
    )
    return [Named(name, prompt, line.seed) for name, prompt, line in zip(names, prompts, lines, strict=True)]


def _txt(path: Path, text: str) -> Iterator[Line]:  # noqa: ARG001
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Line(number, line.strip())


def _jsonl(path: Path, text: str) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _fault(path, number, f"is not JSON ({str(error)[:100]})", "not_json") from error
        if not isinstance(values, dict):
            raise _fault(path, number, 'is not an object: write {"prompt": "a cat"}', "not_an_object")
        yield _line(path, number, values)


def _csv(path: Path, text: str) -> Iterator[Line]:
    rows = table_rows(StringIO(text, newline=""), path)
    _, names = next(rows, (1, []))
    header = [name.strip().lower() for name in names]
    if not set(header) & set(TEXT_NAMES):
        raise _fault(
            path, 1, f"names no column prompt, caption or text, but {', '.join(header)[:100] or 'nothing'}", "no_column"
        )
    for number, row in rows:
        yield _line(path, number, {name: value for name, value in zip(header, row, strict=True) if value.strip()})


READERS: Final[Mapping[str, Callable[[Path, str], Iterator[Line]]]] = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv}


def _line(path: Path, number: int, values: Mapping[str, Any]) -> Line:
    named = [name for name in TEXT_NAMES if values.get(name) is not None]
    if not named:
        raise _fault(path, number, f"has no {', '.join(TEXT_NAMES[:-1])} or {TEXT_NAMES[-1]}", "no_prompt")
    caption, id_, seed = values[named[0]], values.get("id"), values.get("seed")
    if not isinstance(caption, str):
        raise _fault(path, number, f"has a {named[0]} that is not text: {str(caption)[:100]!r}", "not_a_text")
    if isinstance(id_, bool) or not isinstance(id_, str | int | None):
        raise _fault(path, number, f"has an id that is not text: {str(id_)[:100]!r}", "not_a_text")
    if isinstance(seed, str) and seed.strip().isascii() and seed.strip().isdecimal():
        seed = int(seed[:30])
    if seed is not None and (type(seed) is not int or not 0 <= seed <= LARGEST_SEED):
        raise _fault(path, number, f"has a seed that is not a number from 0: {str(seed)[:100]!r}", "not_a_seed")
    return Line(number, caption, None if id_ in (None, "") else str(id_), seed)


def _refuse_twins(path: Path, lines: list[Line]) -> None:
    first: dict[str, int] = {}
    for line in lines:
        if line.id is not None and first.setdefault(line.id, line.number) != line.number:
            raise _fault(
                path,
                line.number,
                f"has the id {line.id[:100]!r}, as line {first[line.id]} has: each picture needs its own "
                "(without ids, lines are numbered)",
                "listed_twice",
            )


def _fault(path: Path, number: int, message: str, code: str) -> UsageError:
    return UsageError(f"{path}, line {number}: {message}", code, line=number)
