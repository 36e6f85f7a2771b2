"""Shards: fetched whole from URLs by fsspec, and bounded, sequential reading of untrusted tar files.

fsspec's own caches (`simplecache`, `filecache`) write a file under its final name, so that one cut short by a kill
would be taken for whole ever after; here it takes its name when it is complete.

Nothing is extracted to disk; links and devices are counted and not followed. Sizes in headers are checked against the
file before reading or skipping, so that memory and time stay proportional to the file.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Container, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tarfile import EOFHeaderError, HeaderError, InvalidHeaderError, ReadError  # type: ignore[attr-defined]  # typeshed
from tempfile import TemporaryDirectory
from typing import Any, Final, Self, cast

from robustclip.data.images import ENDINGS as PICTURES
from robustclip.data.images import MAX_BYTES
from robustclip.data.samples import stable_number
from robustclip.errors import Fault, RunError, UsageError, require
from robustclip.runs.files import FULL, atomic_write

LIBRARIES: Final = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "hf": "huggingface_hub"}
"""Schemes of URLs, and what fsspec reads them with."""
TRIES: Final = 4
WAIT: Final = 1.0  # seconds before the second try; doubled before each further one
SILENCE: Final = 60.0  # seconds without a byte, after which a try over HTTP has failed


@dataclass(frozen=True)
class Remote:
    """A shard at a URL. It is kept in the folder `cache`; without one it is fetched each time it is read."""

    url: str
    cache: Path | None = None

    def __str__(self) -> str:
        return self.url

    @property
    def key(self) -> str:
        """What names its samples: the URL without scheme and query."""
        return self.url.partition("://")[2].partition("?")[0]


def check_url(url: str) -> None:
    """Raise UsageError for a scheme that is not read, or whose library is not installed, and for a pattern with *."""
    scheme = url.partition("://")[0].lower()
    if scheme not in LIBRARIES:
        raise UsageError(
            f"{url}: {scheme}:// is not read, but {', '.join(f'{name}://' for name in LIBRARIES)} are. Copy the shards "
            "here and give their path, or a command that writes one to its output: 'pipe:COMMAND', with "
            "--allow-commands",
            "scheme",
            scheme=scheme,
        )
    if "*" in url:
        raise UsageError(
            f"{url}: the files at a URL are not listed: give a brace list, e.g. s3://bucket/{{00..99}}.tar",
            "not_listed",
        )
    require(LIBRARIES[scheme], "remote", f"{scheme}://")


@contextmanager
def fetched(shard: Remote) -> Iterator[Path]:
    """The shard as a local file within the block. Raises OSError where it cannot be fetched in four tries, RunError
    where the local disk is full."""
    if shard.cache is None:
        with TemporaryDirectory(prefix="robustclip-") as folder:
            path = Path(folder) / "shard"
            _fetch(shard.url, path)
            yield path
        return
    path = shard.cache / f"{stable_number(shard.url):016x}-{shard.key.rpartition('/')[2]}"
    if not path.exists():
        _fetch(shard.url, path)
    yield path


def _fetch(url: str, path: Path) -> None:
    from fsspec.core import url_to_fs

    with atomic_write(path) as file:
        for tried in range(1, TRIES + 1):
            try:
                system, place = url_to_fs(url, **_options(url))
                system.get_file(place, file.name)
                if (size := system.size(place)) not in (None, found := Path(file.name).stat().st_size):
                    raise OSError(f"{found:,} of {size:,} bytes came")
                return
            except Exception as error:  # each library raises errors of its own
                if isinstance(error, OSError) and error.errno in FULL:
                    raise
                if tried == TRIES or isinstance(error, FileNotFoundError):
                    raise OSError(f"{url} could not be fetched ({type(error).__name__}: {error})") from error
            time.sleep(WAIT * 2 ** (tried - 1))


def _options(url: str) -> dict[str, Any]:
    if not url.lower().startswith("http"):
        return {}
    from aiohttp import ClientTimeout

    # aiohttp's own limit is five minutes for the whole file
    return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)}}


GZIP = b"\x1f\x8b"
MAX_MEMBER = MAX_BYTES
MAX_CLAIM = 2**34  # bytes that a header may claim if the archive's size is unknown
MAX_HEADER = 2**14  # bytes of an extended header, which tarfile reads into memory and searches in quadratic time
MAX_NAME = 1024
ENDINGS = frozenset(PICTURES)
EXPANSION = 50  # maximal expansion of a gzipped tar; pictures hardly compress, zeros a thousandfold
EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class BrokenTar(Exception):
    """The rest of the archive is unreadable; the message gives the reason."""


@dataclass(frozen=True)
class Command:
    """A shell command whose output is a tar file. It is run each time the shard is read."""

    line: str

    def __str__(self) -> str:
        return f"pipe:{self.line}"


Shard = Path | Command | Remote


def read_tar(shard: Shard, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | Fault]]:
    """(name, content) of the members in order: unwanted ones are not read, and anything but a regular file of at most
    MAX_MEMBER bytes yields its fault. Raises BrokenTar at the unreadable part of an archive."""
    with _errors_as_broken_tar(), closing(_files(shard)) as files:
        for tar, member in files:
            if not member.isreg() or len(member.name) > MAX_NAME:
                yield member.name[:MAX_NAME], Fault.NOT_A_FILE
            elif not wanted(member.name):
                yield member.name, b""
            elif member.size > MAX_MEMBER:
                yield member.name, Fault.TOO_BIG
            else:
                content = tar.extractfile(member)
                yield member.name, b"" if content is None else content.read()


def names(shard: Path) -> Iterator[str]:
    """The names of a tar's readable members; contents are skipped."""
    with suppress(BrokenTar), _errors_as_broken_tar(), closing(_files(shard)) as files:
        yield from (member.name for _, member in files)


def _files(shard: Shard) -> Generator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with _opened(shard) as file:
        mode, limit = _mode_and_limit(shard, file)
        with tarfile.open(fileobj=file, mode=mode, tarinfo=StrictHeader) as tar:
            while member := tar.next():
                if not 0 <= member.size <= MAX_CLAIM or member.offset_data + member.size > limit:
                    raise BrokenTar(f"{member.name!r} claims {member.size:,} bytes")
                if not member.isdir():
                    yield tar, member
                tar.members = []  # type: ignore[attr-defined]  # else it remembers all it has seen


def split_name(name: str) -> tuple[str, str, str]:
    """(sample, ending, group) of a member: `a/photo 2.0.JPG` is the member "jpg" of the sample `a/photo 2.0`.

    Names may hold dots. webdataset's own rule, the name up to its first dot, is the group `a/photo 2`: it says which
    samples may belong together (`0001.seg.png` beside `0001.jpg`).
    """
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, dot, ending = file.rpartition(".")
    group = f"{folder}{slash}{file.partition('.')[0]}"
    return (f"{folder}{slash}{stem}", ending.lower(), group) if dot else (f"{folder}{slash}{file}", "", group)


def is_hidden(name: str) -> bool:
    """Whether a member is a hidden or system file: `._0001.jpg`, `__MACOSX/...`, `.DS_Store`."""
    parts = name.removeprefix("./").split("/")
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)


def parents(sample: str) -> Iterator[str]:
    """Names of samples to which this one may belong: `a/0001.meta` to `a/0001`."""
    folder, slash, file = sample.rpartition("/")
    while "." in file:
        file = file.rpartition(".")[0]
        yield f"{folder}{slash}{file}"


def belongs_to_another(sample: str, members: Iterable[str], samples: Container[str]) -> bool:
    """Whether these are members of another sample (0001.meta.json of 0001), rather than a sample without a picture."""
    return ENDINGS.isdisjoint(members) and any(other in samples for other in parents(sample))


@contextmanager
def _errors_as_broken_tar() -> Iterator[None]:
    try:
        yield
    except (BrokenTar, RunError):
        raise
    except Exception as error:  # tarfile raises many kinds, even RecursionError
        raise BrokenTar(str(error)) from error


def _mode_and_limit(shard: Shard, file: io.BufferedReader) -> tuple[Any, float]:
    """tarfile's mode, and the largest offset in the unpacked archive that headers may claim."""
    size = float("inf") if isinstance(shard, Command) else os.fstat(file.fileno()).st_size
    if file.peek(len(GZIP)).startswith(GZIP):
        return "r|gz", EXPANSION * size + MAX_HEADER
    return "r|" if isinstance(shard, Command) else "r:", size


class StrictHeader(tarfile.TarInfo):
    """A tar header that raises if damaged or missing (tarfile treats that as the end of the archive), and accepts only
    small extended headers.
    """

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:  # the block of zeros at the end
            raise
        except HeaderError as error:
            raise ReadError(f"damaged or missing header at byte {tarfile.offset}") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in EXTENDED and header.size > MAX_HEADER:
            raise InvalidHeaderError(f"an extended header of {header.size:,} bytes")
        return header


@contextmanager
def _opened(shard: Shard) -> Iterator[io.BufferedReader]:
    if isinstance(shard, Path):
        with shard.open("rb") as file:
            yield file
        return
    if isinstance(shard, Remote):
        with fetched(shard) as path, path.open("rb") as file:
            yield file
        return
    process = subprocess.Popen(
        shard.line, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    output = cast(io.BufferedReader, process.stdout)
    try:
        yield output
        rest = sum(len(output.read(2**16)) for _ in range(MAX_MEMBER // 2**16))  # a writer that is cut off fails
        if rest < MAX_MEMBER and process.wait() != 0:
            raise BrokenTar(f"{shard} ended with exit code {process.returncode}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.close()
