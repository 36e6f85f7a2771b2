"""WebDataset shards: tar files of samples whose members share a name (000001.jpg, 000001.txt, 000001.json).

The layout is img2dataset's as it is, and that of the embedded emoji set. Members are read by their endings and decoded
by name; webdataset's default decoding, which unpickles what it finds, is never used, and nothing but local files is
opened.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]  # typeshed lacks the first
from typing import Any, Self

from braceexpand import braceexpand
from webdataset.filters import shuffle
from webdataset.tariterators import base_plus_ext, group_by_keys

from robustclip import rng
from robustclip.data.samples import Fault, Sample
from robustclip.errors import UsageError

SUFFIXES = (".tar", ".tar.gz", ".tgz")
IMAGES = ("jpg", "jpeg", "png", "webp", "gif")
TEXTS = ("txt", "json")
CAPTION_KEYS = ("captions", "caption", "text")  # of the JSON member; the first is a list of equals
MAX_SHARDS = 1_000_000
BROKEN = (tarfile.TarError, zlib.error, OSError, EOFError)


class ShardSource:
    """Image-text pairs of shards, each once an epoch, in an order that is a function of seed and epoch.

    Shards are visited in random order, `open_shards` at a time; `shuffle_buffer` undecoded samples are held in memory
    (at 30 kB a picture, 10,000 are 300 MB) and drawn from at random. A set no larger than the buffer is shuffled
    perfectly.

    Captions are the list `captions` of the JSON member if it has one (each epoch draws one of them), else the .txt
    member, else `caption` or `text` of the JSON; `caption` names another: "txt" or a key of the JSON. A `concept` in
    the JSON says which samples show the same thing.

    `without` leaves out the samples of these concepts. `name` is the folder's unless given.
    Raises UsageError for shards that are missing, naming them.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        name: str | None = None,
        caption: str | None = None,
        without: Iterable[str] = (),
        shuffle_buffer: int = 10_000,
        open_shards: int = 8,
    ) -> None:
        self.shards = find_shards(shards)
        self.root = Path(os.path.commonpath([shard.absolute().parent for shard in self.shards]))
        self.name = name or self.root.name
        self.caption = caption
        self.without = frozenset(without)
        if shuffle_buffer < 1 or open_shards < 1:
            raise UsageError(f"shuffle_buffer {shuffle_buffer} and open_shards {open_shards}: both need at least 1")
        self.shuffle_buffer = shuffle_buffer
        self.open_shards = open_shards

    def epoch(self, seed: int, epoch: int) -> Iterator[Sample]:
        # webdataset shuffles with Python's generator; its seed is keyed like all others.
        order = random.Random(rng.generator(seed, f"order of {self.name}", epoch).initial_seed())
        shards = order.sample(self.shards, len(self.shards))
        return shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, rng=order)(self._interleaved(shards, order))

    def _interleaved(self, shards: Sequence[Path], order: random.Random) -> Iterator[Sample]:
        waiting = (self.read(shard) for shard in shards)
        reading = list(islice(waiting, self.open_shards))
        while reading:
            place = order.randrange(len(reading))
            try:
                yield next(reading[place])
            except StopIteration:
                reading[place : place + 1] = islice(waiting, 1)

    def read(self, shard: Path) -> Iterator[Sample]:
        """The samples of one shard in the order they lie in. A tar that breaks off ends with one faulty sample."""
        label = re.sub(r"(\.tar)?(\.gz)?$|\.tgz$", "", shard.absolute().relative_to(self.root).as_posix())
        errors: list[Exception] = []
        for members in read_members(shard, (*IMAGES, *TEXTS), errors):
            sample = self._sample(f"{label}/{readable(members['__key__'])}", members)
            if sample.concept not in self.without:
                yield sample
        if errors:
            yield Sample(label, fault=Fault.BROKEN_SHARD)

    def _sample(self, key: str, members: dict[str, Any]) -> Sample:
        picture = next((members[ending] for ending in IMAGES if ending in members), None)
        if picture is None:
            return Sample(key, fault=Fault.NO_IMAGE)
        try:
            record = json.loads(members.get("json", b"{}"))
            text = members.get("txt", b"").decode()
        except UnicodeDecodeError:
            return Sample(key, fault=Fault.NOT_UTF8)
        except (ValueError, RecursionError):
            return Sample(key, fault=Fault.BAD_METADATA)
        if not isinstance(record, dict):
            return Sample(key, fault=Fault.BAD_METADATA)
        captions = captions_of(record, text, self.caption)
        concept = record.get("concept")
        return Sample(
            key,
            picture,
            captions,
            None if concept is None else str(concept),
            None if captions else Fault.NO_CAPTION,
        )

    def size(self) -> int:
        """From the counts that img2dataset writes beside its shards, else from the names in the tar files."""
        return sum(count_samples(shard) for shard in self.shards)

    def describe(self) -> dict[str, Any]:
        first, last = (shard.name for shard in (self.shards[0], self.shards[-1]))
        described: dict[str, Any] = {"name": self.name, "kind": "shards", "folder": str(self.root)}
        described |= {"shards": len(self.shards), "first": first, "last": last, "caption": self.caption or "any"}
        return described | {"shuffle_buffer": self.shuffle_buffer, "open_shards": self.open_shards}


def find_shards(shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files that a path, a brace list (`cc3m/{00000..00331}.tar`), a pattern (`cc3m/*.tar`), a folder of shards, or
    a list of these stands for, in their order. Raises UsageError naming what is missing, or there twice."""
    patterns = [shards] if isinstance(shards, str | os.PathLike) else shards
    found = [path for pattern in patterns for path in _expand(os.fspath(pattern))]
    missing = [path for path in found if not path.is_file()]
    if missing:
        named = ", ".join(str(path) for path in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UsageError(f"{len(missing)} of {len(found)} shards missing: {named}. {_there_is(missing[0].parent)}")
    if not found:
        raise UsageError(
            f"{', '.join(map(str, patterns)) or 'an empty list'} names no shards: they end in {' or '.join(SUFFIXES)}"
        )
    if twice := [path for path, times in Counter(found).items() if times > 1]:
        raise UsageError(f"{twice[0]} is listed twice: list it once; --data-weights makes a source come more often")
    return found


def _expand(pattern: str) -> list[Path]:
    if scheme := re.match(r"(pipe|[a-zA-Z][\w+.-]+(?=://)):", pattern):
        raise UsageError(
            f"{pattern}: {scheme[0]} is not read, only local files are. Copy the shards here first and give their path"
        )
    there = Path(pattern).expanduser()
    if there.exists():
        return shards_in(there) if there.is_dir() else [there]
    try:
        ranges = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)]
        if math.prod(ranges) > MAX_SHARDS:  # checked before the list is made
            raise ValueError(f"it stands for more than {MAX_SHARDS:,} shards")
        names = list(braceexpand(pattern))
    except ValueError as error:
        raise UsageError(f"{pattern}: {error}. A brace list looks like 'cc3m/{{00000..00331}}.tar'") from error
    found = []
    for name in names:
        path = Path(name).expanduser()
        if path.exists() or not any(sign in path.name for sign in "*?["):
            found.append(path)
        elif matches := sorted(path.parent.glob(path.name)):
            found.extend(matches)
        else:
            raise UsageError(f"{name} matches no file. {_there_is(path.parent)}")
    return found


def shards_in(folder: Path) -> list[Path]:
    """The shards of a folder, by their names' order."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))


def _there_is(folder: Path) -> str:
    if not folder.is_dir():
        return f"There is no folder {folder}."
    there = shards_in(folder)
    return (
        f"{folder} holds {len(there)} shards, {there[0].name} to {there[-1].name}."
        if there
        else f"{folder} holds none."
    )


def captions_of(record: dict[str, Any], text: str, choice: str | None = None) -> tuple[str, ...]:
    """The captions that a sample's JSON and text members offer, as ShardSource says; blank ones are none."""
    if choice == "txt":
        offers: list[Any] = [text]
    elif choice is not None:
        offers = [record.get(choice)]
    else:
        listed, *single = CAPTION_KEYS
        offers = [record.get(listed), text, *(record.get(key) for key in single)]
    for offer in offers:
        candidates = offer if isinstance(offer, list) else [offer]
        captions = tuple(readable(c) for c in candidates if isinstance(c, str) and c.strip())
        if captions:
            return captions
    return ()


def readable(text: str) -> str:
    """Without white space around it, or halves of surrogate pairs: JSON and the names in a tar may hold them, no
    tokenizer or terminal takes them."""
    return text.strip().encode("utf-8", "replace").decode()


def read_members(shard: Path, endings: Sequence[str], errors: list[Exception]) -> Iterator[dict[str, Any]]:
    """Samples of a tar as {ending: bytes} with "__key__", in their order; other members are not read.

    What goes wrong on the way is added to `errors`, and what was readable before it is kept.
    """

    def keep_going(error: Exception) -> bool:
        errors.append(error)
        return True

    return group_by_keys(_files(shard, endings, errors), handler=keep_going)


def _files(shard: Path, endings: Sequence[str], errors: list[Exception]) -> Iterator[dict[str, Any]]:
    try:
        with tarfile.open(shard, "r|*", tarinfo=StrictHeader) as tar:
            for member in tar:
                if member.isreg() and _ending(member.name) in endings and (content := tar.extractfile(member)):
                    yield {"fname": member.name, "data": content.read(), "__url__": str(shard)}
                tar.members = []  # type: ignore[attr-defined]  # else it remembers all it has seen
    except BROKEN as error:
        errors.append(error)


class StrictHeader(tarfile.TarInfo):
    """A header that says so when it is damaged or missing: tarfile takes that for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:  # the block of zeros at the end
            raise
        except HeaderError as error:
            raise ReadError(f"damaged or missing header at byte {tarfile.offset}") from error


def _ending(name: str) -> str:
    _, ending = base_plus_ext(name)
    return (ending or "").lower()


def count_samples(shard: Path) -> int:
    """How many samples a shard holds, bad ones included: img2dataset's `00000_stats.json`, else the names counted."""
    stats = shard.with_name(shard.name.split(".")[0] + "_stats.json")
    if stats.is_file():
        try:
            return int(json.loads(stats.read_bytes())["successes"])
        except (ValueError, KeyError, TypeError):
            pass  # not img2dataset's: count
    keys = set()
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                if _ending(member.name) in (*IMAGES, *TEXTS):
                    keys.add(base_plus_ext(member.name)[0])
    except BROKEN:
        pass  # the names up to there: an estimate is what is asked for
    return len(keys)
