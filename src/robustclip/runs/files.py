"""Atomic writes, exclusive creation and bounded reads of files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count, permutations
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from pydantic_core import to_jsonable_python

from robustclip.errors import RunError, UsageError

LONGEST_TEXT = 2**24  # bytes: no card, config or list of names comes near 16 MB
LONGEST_CONFIG = 2**16  # bytes
DEEPEST = 100  # levels of lists and objects in each other; the JSON of models and runs has fewer than 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
SHORT = 50  # characters of a name that its draft repeats, so that a name of 255 bytes has one
LOCK = ".lock"
"""The file that says which process may write to a folder (see `robustclip.runs.processes`)."""


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Yield a file that replaces `path` when the block succeeds, and leaves `path` unchanged when it raises.

    Writes to a temporary file in the same folder (created if missing), then fsync and rename. `mode` is "wb" or "w":
    UTF-8, with undecodable bytes of file names written as \\udcXX, which JSON's readers decode.

    Raises UsageError if `path` is a folder or device; RunError, naming the file, if the disk refuses it.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a file, and is not replaced by one: write elsewhere", "not_a_file", path=path)
    draft = path.with_name(f".{path.name[:SHORT]}.{secrets.token_hex(4)}.tmp")
    encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open(mode.replace("w", "x"), encoding=encoding, errors=errors) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `folder` when the block succeeds, and removed when it raises.

    Raises UsageError if `folder` exists, RunError if the disk refuses it.
    """
    check_free(folder)
    with naming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = folder.with_name(f".{folder.name[:SHORT]}.{secrets.token_hex(4)}.partial")
        draft.mkdir()
        try:
            yield draft
            follow_umask(draft)
            check_free(folder)  # again: another process may have made it meanwhile
            draft.rename(folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Context manager: OSErrors of writing (full or read-only disk, permissions) become RunError naming `path`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UsageError | RunError) or (refusal := _refusal(error, Path(path))) is None:
            raise
        message = f"{path} could not be written ({refusal}): make room, or write elsewhere"
        raise RunError(message, "not_written", path=path, reason=refusal) from error


def reason(error: OSError | RunError) -> str:
    """The system's message for a failed write."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return _refusal(cause, None) or str(error) if cause is not None else str(error)


def _refusal(error: BaseException, path: Path | None) -> str | None:
    """The system's message for an error of writing to `path`; None for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        named = None if error.filename is None else str(error.filename)
        ours = (
            path is None or named is None or Path(named).is_relative_to(path.parent) or named in map(str, path.parents)
        )
        return os.strerror(error.errno) if ours else None
    if isinstance(found := error.__cause__ or error.__context__, OSError):  # torch's own error follows the disk's
        return _refusal(found, path) if found.errno in FULL else None
    if type(error).__name__ == "SafetensorError" and (reported := re.search(r"(?:code: |os error )(\d+)", str(error))):
        return os.strerror(int(reported[1]))
    return None


@contextmanager
def rescuing(numbers: Callable[[], object]) -> Iterator[None]:
    """Context manager: if writing fails, `numbers` are saved as JSON in the temporary folder, or printed to stderr;
    RunError says where.
    """
    try:
        yield
    except (RunError, OSError) as error:
        reported = (
            f"{error}" if isinstance(error, RunError) else f"{error.filename or 'a file'}: {error.strerror or error}"
        )
        message = f"{reported}. The numbers are not lost: they are {_rescue(plain(numbers()))}"
        raise RunError(message, "numbers_kept", faults=[error] if isinstance(error, RunError) else []) from error


def _rescue(numbers: object) -> str:
    text = json.dumps(numbers, indent=2)
    try:
        number, name = tempfile.mkstemp(prefix="robustclip-", suffix=".json")
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError:
        print(text, file=sys.stderr)
        return "above, on stderr"
    return f"in {name}"


def follow_umask(folder: Path) -> None:
    """Apply the umask's default mode to all files of a folder (safetensors writes private files)."""
    probe = folder / f".{secrets.token_hex(4)}.tmp"
    probe.touch(exist_ok=False)
    usual = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(usual)


def is_draft(path: Path) -> bool:
    """Whether a file is a leftover of a killed `atomic_write`, or its lock."""
    return path.name == LOCK or (path.name.startswith(".") and path.suffix == ".tmp")


def holds_something(folder: Path) -> bool:
    """Whether a path exists and is not a folder that is empty except for drafts."""
    try:
        folder.lstat()  # raises OSError for a name that no folder takes
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not (is_folder(folder) and all(map(is_draft, folder.iterdir())))


def remove_drafts(folder: Path) -> None:
    """Remove the drafts in a folder that no other process writes to, as far as permitted."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            path.unlink()


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(values: object) -> Any:
    """Convert to JSON's types: paths and objects to text, dataclasses to objects, NaN and infinity to null."""
    return to_jsonable_python(values, inf_nan_mode="null", fallback=str)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically, as `atomic_write` in mode "w"."""
    with atomic_write(path, "w") as file:
        file.write(text)


def write_json(path: str | os.PathLike[str], obj: object) -> None:
    """Write `obj` as indented JSON, atomically. NaN and infinity are not JSON: they raise ValueError."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises UsageError, before reading, for folders, devices, pipes and larger files.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{path} is a device or a pipe, not a file", "not_a_file", path=path)
            if status.st_size > limit:
                message = f"{path} has {status.st_size} bytes, more than the {limit} that such a file may have"
                raise UsageError(message, "too_large", size=status.st_size, limit=limit)
            return file.read()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "not_readable", path=path) from error


def read_text(path: str | os.PathLike[str], limit: int = LONGEST_TEXT) -> str:
    """Read a small UTF-8 text file. Raises UsageError as `read_bytes`, and for invalid UTF-8."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"{path} is not UTF-8 text, from line {first_undecodable(path)} on ({error}): save it as UTF-8"
        raise UsageError(message, "not_utf8", path=path) from error


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The stripped lines of a small file, without empty ones at the end.

    Only line feeds (and carriage returns before them) end a line, not Unicode's other separators.
    """
    return [line.strip() for line in read_text(path).rstrip().split("\n")]


def first_undecodable(path: str | os.PathLike[str]) -> int:
    """The number (from 1) of the first line that is not UTF-8; 0 if there is none."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a small JSON file. Raises UsageError as `read_text`, and for invalid or too deeply nested JSON."""
    return parse_json(read_text(path), path)


def parse_json(text: str | bytes, source: object) -> Any:
    """Parse untrusted JSON. Raises UsageError, naming `source`, for invalid JSON, integers of thousands of digits, or
    nesting beyond 100 levels.
    """
    try:
        value = json.loads(text)
        _check_depth(value, 0)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source} is not JSON ({error})", "not_json", source=source) from error
    return value


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a small YAML file as plain values. Raises UsageError as `read_text`, and for invalid, too deeply nested or
    aliased YAML (`*name` allows exponential expansion), and for a name that is given twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, *place: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it holds an alias, *name: write the value out")
            return super().compose_node(*place)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            found = super().construct_mapping(node, deep)
            if len(found) < len(node.value):
                raise yaml.YAMLError("it holds a name twice, of which one would be lost")
            return found

    text = read_text(path, LONGEST_CONFIG)
    try:
        value = yaml.load(text, Loader)
        _check_depth(value, 0)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not YAML ({' '.join(str(error).split())[:200]})", "not_yaml") from error
    return value


def _check_depth(value: object, depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, depth + 1)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Path.is_dir, but False for invalid paths such as multi-line texts."""
    with suppress(OSError):
        return Path(path).is_dir()
    return False


def expand_home(path: str | os.PathLike[str]) -> Path:
    """The path with ~ replaced by a home folder; the ~ of an unknown user stays, where Path.expanduser raises."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def is_file(path: str | os.PathLike[str]) -> bool:
    """Path.is_file, as `is_folder`."""
    with suppress(OSError):
        return Path(path).is_file()
    return False


def check_writable(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """Raise UsageError if no file (or folder) of that name can be created; to be called before long work."""
    path = Path(path)
    if os.path.lexists(path) and not (is_folder(path) if folder else is_file(path)):
        message = f"{path} is not a {'folder' if folder else 'file'}: write elsewhere"
        raise UsageError(message, "not_a_folder" if folder else "not_a_file", path=path)
    above = path if is_folder(path) else next(place for place in path.absolute().parents if os.path.lexists(place))
    try:
        with suppress(FileNotFoundError):
            path.lstat()  # fails for an invalid name
        with TemporaryFile(dir=above):  # permissions do not show read-only disks
            pass
    except OSError as error:
        raise UsageError(
            f"{str(path)[:200]} cannot be written ({error.strerror}): write elsewhere", "not_writable", path=path
        ) from error


def check_free(path: str | os.PathLike[str]) -> None:
    """Raise UsageError if the path exists."""
    if os.path.lexists(path):
        raise UsageError(f"{path} exists: write elsewhere, e.g. {free(path)}", "exists", path=path, free=free(path))


def check_new_folder(path: str | os.PathLike[str]) -> Path:
    """The path. Raises UsageError if it exists or a folder cannot be created there."""
    check_writable(path, folder=True)
    check_free(path)
    return Path(path)


def check_new_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise UsageError if the file cannot be created, or exists and must not be replaced."""
    check_writable(path)
    if os.path.lexists(path) and not overwrite:
        message = f"{path} exists: write elsewhere, e.g. {free(path)}, or replace it with --overwrite"
        raise UsageError(message, "exists", path=path, free=free(path))


def free(path: str | os.PathLike[str]) -> Path:
    """The path with the first free number appended: x-1, x-1.json."""
    path = Path(path) if Path(path).name else Path(path).absolute() / "new"  # "." and "/" have no name
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(1))
    return next(one for one in numbered if not os.path.lexists(one))


def clashes(outputs: Mapping[str, str | os.PathLike[str] | None]) -> Iterator[str]:
    """Messages for outputs of one call, by flag, that are the same path or lie in one another."""
    places = {flag: Path(os.path.realpath(path)) for flag, path in outputs.items() if path is not None}
    for (flag, place), (other, above) in permutations(places.items(), 2):
        if place == above and flag < other:
            yield f"{flag} and {other} are the same file, {outputs[flag]}: give each its own"
        elif place != above and place.is_relative_to(above):
            yield f"{flag} {outputs[flag]} lies in {other} {outputs[other]}, whose files are its own: write elsewhere"


def _open_at_once(path: str, flags: int) -> int:
    """Open without blocking on a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
