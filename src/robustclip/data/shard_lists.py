"""Expand a path, brace list, pattern, folder or command to a list of shards."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from braceexpand import braceexpand

from robustclip.data.tars import Command, Shard
from robustclip.errors import UsageError
from robustclip.runs.files import is_folder

SUFFIXES = (".tar", ".tar.gz", ".tgz")
SUFFIX = re.compile(r"(\.tar)?(\.gz)?$|\.tgz$")
PIPE = "pipe:"
MAX_SHARDS = 1_000_000

Pattern = str | os.PathLike[str]


def find_shards(shards: Pattern | Sequence[Pattern], *, allow_commands: bool = False) -> list[Shard]:
    """The shards that a path, a brace list (`cc3m/{00000..00331}.tar`), a pattern (`cc3m/*.tar`), a folder of shards,
    a command (`pipe:COMMAND`, if allowed; braces are expanded too) or a list of these stands for, in their order.

    Raises UsageError naming what is missing, or there twice, and for a command that is not allowed.
    """
    patterns = [shards] if isinstance(shards, str | os.PathLike) else shards
    found = [shard for pattern in patterns for shard in _expand(os.fspath(pattern), allow_commands)]
    missing = [shard for shard in found if isinstance(shard, Path) and not shard.is_file()]
    if missing:
        named = ", ".join(str(path) for path in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UsageError(f"{len(missing)} of {len(found)} shards missing: {named}. {_there_is(missing[0].parent)}")
    if not found:
        raise UsageError(
            f"{', '.join(map(str, patterns)) or 'an empty list'} names no shards: they end in {' or '.join(SUFFIXES)}"
        )
    if twice := [shard for shard, times in Counter(found).items() if times > 1]:
        raise UsageError(f"{twice[0]} is listed twice: list it once; --data-weights makes a source come more often")
    return found


def _expand(pattern: str, allow_commands: bool) -> list[Shard]:
    if pattern.startswith(PIPE):
        return _commands(pattern, allow_commands)
    if scheme := re.match(r"[a-zA-Z][\w+.-]+:(?=//)", pattern):
        raise UsageError(
            f"{pattern}: {scheme[0]} is not read, only local files are. Copy the shards here first and give their "
            "path, or give a command that writes them to its output: 'pipe:COMMAND', with --allow-commands"
        )
    there = Path(pattern).expanduser()
    if there.exists():
        return [*shards_in(there)] if there.is_dir() else [there]
    found: list[Shard] = []
    for name in _braces(pattern):
        path = Path(name).expanduser()
        if path.exists() or not any(sign in path.name for sign in "*?["):
            found.append(path)
        elif matches := sorted(path.parent.glob(path.name)):
            found.extend(matches)
        else:
            raise UsageError(f"{name} matches no file. {_there_is(path.parent)}")
    return found


def _commands(pattern: str, allow_commands: bool) -> list[Shard]:
    if not allow_commands:
        raise UsageError(
            f"{pattern}: this would run a command, which is done with --allow-commands only (allow_commands=True). "
            "Give it if you know the command, or copy the shards here first and give their path"
        )
    commands = [line.strip() for line in _braces(pattern.removeprefix(PIPE))]
    if not all(commands) or "\0" in pattern:
        raise UsageError(f"{pattern!r} holds no command: it looks like 'pipe:cat cc3m/00000.tar'")
    return [Command(line) for line in commands]


def _braces(pattern: str) -> list[str]:
    try:
        ranges = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)]
        if math.prod(ranges) > MAX_SHARDS:  # checked before the list is made
            raise ValueError(f"it stands for more than {MAX_SHARDS:,} shards")
        return list(braceexpand(pattern))
    except ValueError as error:
        raise UsageError(f"{pattern}: {error}. A brace list looks like 'cc3m/{{00000..00331}}.tar'") from error


def shards_in(folder: Path) -> list[Path]:
    """The shards of a folder, by their names' order."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))


def not_shards(place: Pattern) -> list[str]:
    """A line that counts what else lies in a folder of shards and is not read, but for img2dataset's own lists."""
    folder = Path(place).expanduser()
    if not is_folder(folder):
        return []
    known = ("_stats.json", ".parquet", "classnames.txt", "zeroshot_classification_templates.txt")
    others = sorted(
        path.name + ("/" if path.is_dir() else "")
        for path in folder.iterdir()
        if not path.name.endswith((*SUFFIXES, *known))
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
