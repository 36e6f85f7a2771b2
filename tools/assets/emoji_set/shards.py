"""Tar shards that are the same bytes for the same samples, on any machine and day."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

Member = tuple[str, bytes]  # file name inside the tar, content


def write_shard(path: Path, members: Iterable[Member]) -> None:
    """Write a gzipped tar of the members in the order given: no times, no owners, no file name in the gzip header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime, info.uid, info.gid = len(content), 0o644, 0, 0, 0
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(gzip.compress(plain.getvalue(), compresslevel=9, mtime=0))
