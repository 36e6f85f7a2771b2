"""WebDataset shards: tar files whose members are grouped by name up to the last dot (000001.jpg, 000001.txt).

The layout of img2dataset and of the embedded emoji set. Faulty samples are counted with their fault. Members are
selected by extension; webdataset's default decoding, which unpickles, is not used.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from braceexpand import braceexpand
from webdataset.filters import shuffle

from robustclip.data.images import ENDINGS
from robustclip.data.samples import Sample, check_share, readable, stable_number
from robustclip.data.tars import (
    BrokenTar,
    Command,
    Remote,
    Shard,
    belongs_to_another,
    check_url,
    is_hidden,
    names,
    read_tar,
    split_name,
)
from robustclip.errors import Fault, UsageError
from robustclip.runs import rng
from robustclip.runs.files import expand_home, is_folder, read_json
from robustclip.runs.processes import ALONE, Place

SUFFIXES = (".tar", ".tar.gz", ".tgz")
SUFFIX = re.compile(r"(\.tar)?(\.gz)?$|\.tgz$")
PIPE = "pipe:"
MAX_SHARDS = 1_000_000

Pattern = str | os.PathLike[str]


def find_shards(
    shards: Pattern | Sequence[Pattern], *, allow_commands: bool = False, cache: Path | None = None
) -> list[Shard]:
    """The shards that a path, a brace list (`cc3m/{00000..00331}.tar`), a pattern (`cc3m/*.tar`), a folder of shards,
    a URL (http://, https://, s3://, hf://; with braces), a command (`pipe:COMMAND`, if allowed; with braces) or a list
    of these stands for, in their order. `cache` is the folder that shards at URLs are kept in.

    Raises UsageError naming what is missing, or there twice, for a command that is not allowed, and for a URL that is
    not read or needs a library that is not installed.
    """
    patterns = [shards] if isinstance(shards, str | os.PathLike) else shards
    expanded = [shard for pattern in patterns for shard in _expand(os.fspath(pattern), allow_commands, cache)]
    missing = [shard for shard in expanded if isinstance(shard, Path) and not shard.is_file()]
    if missing:
        names = ", ".join(str(path) for path in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UsageError(
            f"{len(missing)} of {len(expanded)} shards missing: {names}. {_there_is(missing[0].parent)}",
            "missing_shards",
            missing=missing,
        )
    if not expanded:
        raise UsageError(
            f"{', '.join(map(str, patterns)) or 'an empty list'} names no shards: they end in {' or '.join(SUFFIXES)}",
            "no_shards",
        )
    if twice := [shard for shard, times in Counter(expanded).items() if times > 1]:
        message = f"{twice[0]} is listed twice: list it once; --data-weights draws a source more often"
        raise UsageError(message, "listed_twice", shard=twice[0])
    return expanded


def _expand(pattern: str, allow_commands: bool, cache: Path | None) -> list[Shard]:
    if pattern.startswith(PIPE):
        return _commands(pattern, allow_commands)
    if re.match(r"[a-zA-Z][\w+.-]+://", pattern):
        check_url(pattern)
        return [Remote(url, cache) for url in _braces(pattern)]
    there = expand_home(pattern)
    if there.exists():
        return [*shards_in(there)] if there.is_dir() else [there]
    expanded: list[Shard] = []
    for name in _braces(pattern):
        path = expand_home(name)
        if path.exists() or not any(sign in path.name for sign in "*?["):
            expanded.append(path)
        elif matches := sorted(path.parent.glob(path.name)):
            expanded.extend(matches)
        else:
            raise UsageError(f"{name} matches no file. {_there_is(path.parent)}", "no_match", pattern=name)
    return expanded


def _commands(pattern: str, allow_commands: bool) -> list[Shard]:
    if not allow_commands:
        raise UsageError(
            f"{pattern}: running a command needs --allow-commands (allow_commands=True). Give it if you trust the "
            "command, or copy the shards here first and give their path",
            "commands_not_allowed",
        )
    commands = [line.strip() for line in _braces(pattern.removeprefix(PIPE))]
    if not all(commands) or "\0" in pattern:
        raise UsageError(f"{pattern!r} contains no command: it looks like 'pipe:cat cc3m/00000.tar'")
    return [Command(line) for line in commands]


def _braces(pattern: str) -> list[str]:
    try:
        ranges = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)]
        if math.prod(ranges) > MAX_SHARDS:  # checked before the list is made
            raise ValueError(f"it stands for more than {MAX_SHARDS:,} shards")
        return list(braceexpand(pattern))
    except ValueError as error:
        raise UsageError(
            f"{pattern}: {error}. A brace list looks like 'cc3m/{{00000..00331}}.tar'", "not_a_brace_list"
        ) from error


def shards_in(folder: Path) -> list[Path]:
    """The shards of a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))


def not_shards(place: Pattern) -> list[str]:
    """A line that counts ignored files beside shards, except those of img2dataset and clip_benchmark."""
    folder = expand_home(place)
    if not is_folder(folder):
        return []
    expected = ("_stats.json", ".parquet", "nshards.txt", "classnames.txt", "zeroshot_classification_templates.txt")
    others = sorted(
        path.name + ("/" if path.is_dir() else "")
        for path in folder.iterdir()
        if not path.name.endswith((*SUFFIXES, *expected))
    )
    return [f"{len(others):,} files and folders beside the shards left out ({', '.join(others[:3])})"] if others else []


def _there_is(folder: Path) -> str:
    if not folder.is_dir():
        return f"There is no folder {folder}."
    there = shards_in(folder)
    return (
        f"{folder} holds {len(there)} shards, {there[0].name} to {there[-1].name}."
        if there
        else f"{folder} holds none."
    )


TEXTS = ("txt", "json")
CAPTION_KEYS = ("captions", "caption", "text")  # of the JSON member; the first is a list of alternatives
AT_ONCE = 16  # samples with the same name up to the first dot that are buffered until their members are complete
ROUND = 32  # shards; at img2dataset's 10,000 samples each, re-reading a round takes about a minute


class ShardSource:
    """Image-text pairs of shards, each once per epoch, in an order that is a function of seed and epoch.

    Shards are read in random order, in rounds of 32, `open_shards` at a time, through a shuffle buffer of
    `shuffle_buffer` undecoded samples (at 30 kB a picture, 10,000 are 300 MB). A set no larger than a round and the
    buffer is shuffled uniformly.

    Several processes get whole shards as far as these divide evenly; of the remaining shards each takes its share of
    the samples.

    Captions are the list `captions` of the JSON member (each epoch draws one), else the .txt member, else `caption` or
    `text` of the JSON; `caption` selects another: "txt" or a key of the JSON. Samples with the same `concept` in the
    JSON are positives of each other.

    `without` leaves out the samples of these concepts; of the others each epoch takes a `share` of its own, without
    opening more shards than that takes. `name` is the folder's unless given. With `allow_commands`, a shard may be
    `pipe:COMMAND`, a shell command that writes it; one that fails is a broken shard. Shards at URLs are fetched whole,
    each time they are read unless a folder `cache` keeps them; one that cannot be fetched is a broken shard too.

    Raises UsageError for missing shards, naming them.
    """

    def __init__(
        self,
        shards: Pattern | Sequence[Pattern],
        *,
        name: str | None = None,
        caption: str | None = None,
        without: Iterable[str] = (),
        share: float = 1.0,
        shuffle_buffer: int = 10_000,
        open_shards: int = 8,
        allow_commands: bool = False,
        cache: Path | None = None,
    ) -> None:
        self.shards = find_shards(shards, allow_commands=allow_commands, cache=cache)
        places = [place for shard in self.shards if (place := _place(shard)) is not None]
        self.root = Path(os.path.commonpath([place.parent for place in places])) if places else None
        self.left_out = not_shards(shards) if isinstance(shards, str | os.PathLike) else []
        self.name = name or (self.root.name if self.root else "pipe")
        self.labels = {shard: self._label(number, shard) for number, shard in enumerate(self.shards)}
        self.caption = caption
        self.without = frozenset(without)
        self.share = check_share(share)
        if shuffle_buffer < 1 or open_shards < 1:
            message = f"shuffle_buffer {shuffle_buffer} and open_shards {open_shards}: both need at least 1"
            raise UsageError(message, "out_of_range", shuffle_buffer=shuffle_buffer, open_shards=open_shards)
        self.shuffle_buffer = shuffle_buffer
        self.open_shards = open_shards

    def _label(self, number: int, shard: Shard) -> str:
        if self.root is None or (place := _place(shard)) is None:
            return f"pipe-{number:05d}"
        return SUFFIX.sub("", place.relative_to(self.root).as_posix())

    def epoch(self, seed: int, epoch: int, place: Place = ALONE, first_round: int = 0) -> Iterator[Sample]:
        purpose = f"order of {self.name}"
        order = python_random(seed, purpose, epoch)
        shards = order.sample(self.shards, math.ceil(self.share * len(self.shards)))
        even = len(shards) // place.world_size * place.world_size
        whole = [(shard, slice(None)) for shard in shards[:even][place.mine()]]
        parts = [(shard, place.mine(turn)) for turn, shard in enumerate(shards[even:], epoch)]
        keep = self.share * len(self.shards) / len(shards)
        hands = [*whole, *parts]
        for number in range(first_round, math.ceil(len(hands) / ROUND)):
            draw = python_random(seed, purpose, epoch, place.rank, number)
            readers = [
                self._drawn(islice(self.read(shard), part.start, None, part.step), keep, seed, epoch)
                for shard, part in hands[number * ROUND : (number + 1) * ROUND]
            ]
            mixed = shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, rng=draw)
            for sample in mixed(self._interleaved(readers, draw)):
                yield replace(sample, round=number)

    def _drawn(self, samples: Iterator[Sample], keep: float, seed: int, epoch: int) -> Iterator[Sample]:
        """Keep each sample with probability `keep`, since whole shards may exceed the share."""
        if keep == 1:
            return samples
        return (
            sample
            for sample in samples
            if stable_number(f"{seed} share {epoch} {self.name} {sample.key}") < keep * 2**63
        )

    def _interleaved(self, readers: Sequence[Iterator[Sample]], draw: random.Random) -> Iterator[Sample]:
        waiting = iter(readers)
        reading = list(islice(waiting, self.open_shards))
        while reading:
            place = draw.randrange(len(reading))
            try:
                yield next(reading[place])
            except StopIteration:
                reading[place : place + 1] = islice(waiting, 1)

    def read(self, shard: Shard) -> Iterator[Sample]:
        """The samples of one shard in order. A truncated tar ends with one faulty sample."""
        label = self.labels[shard]
        errors: list[Exception] = []
        for key, members in read_members(shard, (*ENDINGS, *TEXTS), errors):
            sample = self._sample(f"{label}/{readable(key)}", members)
            if sample.concept not in self.without:
                yield sample
        if errors:
            yield Sample(label, fault=Fault.BROKEN_SHARD)

    def _sample(self, key: str, members: dict[str, bytes | Fault]) -> Sample:
        read = {ending: content for ending, content in members.items() if isinstance(content, bytes)}
        if faults := [content for content in members.values() if isinstance(content, Fault)]:
            return Sample(key, fault=faults[0])
        images = [read[ending] for ending in ENDINGS if ending in read]
        if not images:
            return Sample(key, fault=Fault.NO_IMAGE)
        try:
            record = json.loads(read.get("json", b"{}"))
            text = read.get("txt", b"").decode("utf-8-sig")
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
            images[0],
            captions,
            None if concept is None else str(concept),
            None if captions else Fault.NO_CAPTION,
        )

    def size(self) -> int:
        """From the counts that img2dataset writes beside its shards, else from the names in the tar files. Raises
        UsageError for commands and URLs, which would have to be run and fetched for that."""
        files = [shard for shard in self.shards if isinstance(shard, Path)]
        if len(files) < len(self.shards):
            raise UsageError(
                f"the size of {self.name} is not known before its commands are run and its URLs fetched: give "
                "--data-weights equal, or one number a source, e.g. 1,1,2",
                "unknown_size",
                source=self.name,
            )
        return math.ceil(self.share * sum(count_samples(shard) for shard in files))

    def describe(self) -> dict[str, Any]:
        ends = self.shards[0], self.shards[-1]
        first, last = (shard.name if isinstance(shard, Path) else str(shard) for shard in ends)
        described: dict[str, Any] = {"name": self.name, "kind": "shards", "folder": str(self.root)}
        described |= {"shards": len(self.shards), "first": first, "last": last, "caption": self.caption or "any"}
        described |= {"layout": f"{len(self.shards):,} shards, {first} to {last}", "left_out": self.left_out}
        return described | {"shuffle_buffer": self.shuffle_buffer, "open_shards": self.open_shards, "share": self.share}


def _place(shard: Shard) -> Path | None:
    """Where a shard is, to name it by: its path, or its URL's as one; commands have none."""
    if isinstance(shard, Remote):
        return Path("/", shard.key)
    return shard.absolute() if isinstance(shard, Path) else None


def python_random(seed: int, purpose: str, *indices: int) -> random.Random:
    """Python's generator, which webdataset needs, keyed as in `rng.generator`."""
    return random.Random(rng.generator(seed, purpose, *indices).initial_seed())


def captions_of(record: dict[str, Any], text: str, choice: str | None = None) -> tuple[str, ...]:
    """Candidate captions of a sample's JSON and text members (see ShardSource); blank ones are dropped."""
    if choice == "txt":
        offers: list[Any] = [text]
    elif choice is not None:
        offers = [record.get(choice)]
    else:
        listed, *single = CAPTION_KEYS
        offers = [record.get(listed), text, *(record.get(key) for key in single)]
    for offer in offers:
        candidates = offer if isinstance(offer, list) else [offer]
        captions = tuple(caption for c in candidates if isinstance(c, str) and (caption := readable(c)))
        if captions:
            return captions
    return ()


def read_members(
    shard: Shard, endings: Sequence[str], errors: list[Exception]
) -> Iterator[tuple[str, dict[str, bytes | Fault]]]:
    """Samples of a tar by their names, in their order, as {ending: content}; of members with other endings than these
    nothing is read. A hidden file is a sample with that fault.

    A sample's members lie in a row, but for those of others whose names are the same up to the first dot. What goes
    wrong on the way is added to `errors`, and what was readable before it is kept.
    """
    waiting: dict[str, dict[str, bytes | Fault]] = {}
    at = ""
    try:
        for name, content in read_tar(shard, lambda name: not is_hidden(name) and split_name(name)[1] in endings):
            if is_hidden(name):
                yield name, {"": Fault.HIDDEN}
                continue
            sample, ending, group = split_name(name)
            if group != at:
                yield from _complete(waiting)
                waiting, at = {}, group
            elif sample not in waiting and len(waiting) == AT_ONCE:  # frame.0001.jpg, frame.0002.jpg, ... in one group
                oldest = next(iter(waiting))
                if not belongs_to_another(oldest, waiting[oldest], waiting):
                    yield oldest, waiting[oldest]
                del waiting[oldest]
            members = waiting.setdefault(sample, {})
            if ending in members:
                errors.append(ValueError(f"{shard} has {name!r} twice"))
            elif ending in endings or isinstance(content, Fault):
                members[ending] = content
    except BrokenTar as error:
        errors.append(error)
    yield from _complete(waiting)


def _complete(waiting: dict[str, dict[str, bytes | Fault]]) -> Iterator[tuple[str, dict[str, bytes | Fault]]]:
    for sample, members in waiting.items():
        if not belongs_to_another(sample, members, waiting):
            yield sample, members


def count_samples(shard: Path) -> int:
    """How many samples a shard holds, bad ones included: img2dataset's `00000_stats.json`, else the names counted."""
    stats = shard.with_name(shard.name.split(".")[0] + "_stats.json")
    try:
        return max(0, int(read_json(stats)["successes"]))
    except (ValueError, KeyError, TypeError, OverflowError):
        pass  # not there, or not img2dataset's: count
    split = [split_name(name) for name in names(shard) if not is_hidden(name)]
    return len({sample for sample, ending, _ in split if ending in (*ENDINGS, *TEXTS)})
