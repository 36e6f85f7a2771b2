"""Shards at URLs, fetched whole by fsspec before they are read.

fsspec's own caches (`simplecache`, `filecache`) write a file under its final name, so that one cut short by a kill
would be taken for whole ever after; here it takes its name when it is complete.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from robustclip.data.samples import stable_number
from robustclip.errors import UsageError, require
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
            f"{url}: the files at a URL are not listed: give a brace list, e.g. s3://bucket/{{00..99}}.tar"
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
