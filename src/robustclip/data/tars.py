"""Tar files read front to back, with no trust in what their headers claim.

Nothing is ever unpacked to disk: names are only names, links and devices are passed over. What a header claims is held
against what is there before anything is read or passed over, so that memory and time stay in proportion to the file.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tarfile import EOFHeaderError, HeaderError, InvalidHeaderError, ReadError  # type: ignore[attr-defined]  # typeshed
from typing import Any, Self, cast

from robustclip.images import MAX_BYTES

GZIP = b"\x1f\x8b"
MAX_MEMBER = MAX_BYTES
MAX_CLAIM = 2**34  # bytes that a header may claim at all, where the size of the whole is not known
MAX_HEADER = 2**14  # bytes of an extended header, which tarfile reads into memory and searches in quadratic time
MAX_NAME = 1024
EXPANSION = 50  # how many times its size a gzipped tar may unpack to; pictures hardly shrink, zeros a thousandfold
EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class BrokenTar(Exception):
    """From here on the archive cannot be read; the message says why."""


@dataclass(frozen=True)
class Command:
    """A shell command whose output is a tar file. It is run each time the shard is read."""

    line: str

    def __str__(self) -> str:
        return f"pipe:{self.line}"


Shard = Path | Command


def read_tar(shard: Shard, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    """Names and contents of the regular files whose names are wanted, in their order; no content is given of a file
    larger than MAX_MEMBER. Raises BrokenTar where the archive breaks off, after what was readable."""
    with _telling(), closing(_files(shard)) as files:
        for tar, member in files:
            if wanted(member.name):
                content = tar.extractfile(member) if member.size <= MAX_MEMBER else None
                yield member.name, None if content is None else content.read()


def names(shard: Path) -> Iterator[str]:
    """The names of a tar's regular files, for as far as it can be read; contents are passed over unread."""
    with suppress(BrokenTar), _telling(), closing(_files(shard)) as files:
        yield from (member.name for _, member in files)


def _files(shard: Shard) -> Generator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with _opened(shard) as file:
        mode, limit = _mode_and_limit(shard, file)
        with tarfile.open(fileobj=file, mode=mode, tarinfo=StrictHeader) as tar:
            while member := tar.next():
                if not 0 <= member.size <= MAX_CLAIM or member.offset_data + member.size > limit:
                    raise BrokenTar(f"{member.name!r} claims {member.size:,} bytes")
                if member.isreg() and len(member.name) <= MAX_NAME:
                    yield tar, member
                tar.members = []  # type: ignore[attr-defined]  # else it remembers all it has seen


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except BrokenTar:
        raise
    except Exception as error:  # tarfile raises what it runs into, down to RecursionError
        raise BrokenTar(str(error)) from error


def _mode_and_limit(shard: Shard, file: io.BufferedReader) -> tuple[Any, float]:
    """How tarfile shall open it, and up to what place in the unpacked archive headers may point."""
    size = float("inf") if isinstance(shard, Command) else os.fstat(file.fileno()).st_size
    if file.peek(len(GZIP)).startswith(GZIP):
        return "r|gz", EXPANSION * size + MAX_HEADER
    return "r|" if isinstance(shard, Command) else "r:", size


class StrictHeader(tarfile.TarInfo):
    """A header that says so when it is damaged or missing (tarfile takes that for the end of the archive), and of
    extended headers only small ones."""

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
