"""Shards at URLs: read as the same files on disk, from servers on this machine, good and bad ones."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest

from robustclip.data import tars
from robustclip.data.shards import ShardSource, find_shards
from robustclip.data.sources import open_data
from robustclip.data.tars import Remote, fetched
from robustclip.errors import Fault, RunError, UsageError, coded


class Served(BaseHTTPRequestHandler):
    """Files of a folder, as a web server or S3 gives them. Of each in `cut`, as many answers break off."""

    folder: Path
    asked: Counter[str]
    cut: Counter[str]

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, *, head: bool) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        path = self.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.end_headers()
        if head:
            return
        self.asked[name] += 1
        if self.cut[name]:
            self.cut[name] -= 1
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(
    tmp_path: Path, write_shard: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, type[Served]]]:
    """(URL, what it was asked) of two shards."""
    pytest.importorskip("aiohttp")
    for number in range(2):
        write_shard(tmp_path / "served" / f"{number:05d}.tar", 5, first=10 * number)
    handler = type("Handler", (Served,), {"folder": tmp_path / "served", "asked": Counter(), "cut": Counter()})
    monkeypatch.setattr(tars, "WAIT", 0.01)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/cc3m", handler
        running.shutdown()
        thread.join()


def read(source: ShardSource) -> list[tuple[str, bytes | Path, tuple[str, ...]]]:
    samples = (sample for shard in source.shards for sample in source.read(shard))
    return [(sample.key.rpartition("/")[2], sample.image, sample.captions) for sample in samples]


def test_shards_at_urls_are_the_same_shards(server: tuple[str, type[Served]], tmp_path: Path) -> None:
    url, _ = server
    source = ShardSource(url + "/{00000..00001}.tar")
    assert source.name == "cc3m"
    assert read(source) == read(ShardSource(tmp_path / "served"))
    assert len({sample.id for sample in source.epoch(0, 0)}) == 10
    loader = open_data(url + "/{00000..00001}.tar", batch_size=5, size=8, workers=1)
    assert sorted(len(batch) for batch in islice(loader.batches(), 2)) == [5, 5]


def test_a_cache_is_filled_once_and_kept(server: tuple[str, type[Served]], tmp_path: Path) -> None:
    url, served = server
    for _ in range(2):
        source = ShardSource(url + "/{00000..00001}.tar", cache=tmp_path / "cache")
        assert read(source) == read(ShardSource(tmp_path / "served"))
    assert served.asked == {"00000.tar": 1, "00001.tar": 1}
    assert len(list((tmp_path / "cache").iterdir())) == 2
    without = ShardSource(url + "/00000.tar")
    read(without)
    read(without)
    assert served.asked["00000.tar"] == 3


def test_an_answer_that_breaks_off_is_asked_for_again(server: tuple[str, type[Served]], tmp_path: Path) -> None:
    url, served = server
    served.cut["00000.tar"] = tars.TRIES - 1
    source = ShardSource(url + "/00000.tar", cache=tmp_path / "cache")
    assert len(read(source)) == 5
    assert served.asked["00000.tar"] == tars.TRIES


@pytest.mark.parametrize("name", ["00000.tar", "gone.tar"])
def test_a_shard_that_cannot_be_fetched_is_a_broken_shard(
    server: tuple[str, type[Served]], tmp_path: Path, name: str
) -> None:
    url, served = server
    served.cut["00000.tar"] = tars.TRIES
    source = ShardSource([f"{url}/{name}", f"{url}/00001.tar"], cache=tmp_path / "cache")
    faults = [sample.fault for shard in source.shards for sample in source.read(shard)]
    assert faults == [Fault.BROKEN_SHARD, *[None] * 5]
    assert len(list((tmp_path / "cache").iterdir())) == 1, "half a file is no shard"
    assert served.asked["gone.tar"] == 0


def test_a_cache_that_cannot_be_written_ends_the_run(server: tuple[str, type[Served]], tmp_path: Path) -> None:
    url, _ = server
    (tmp_path / "file").touch()
    with pytest.raises(RunError, check=coded("not_written")):
        read(ShardSource(url + "/00000.tar", cache=tmp_path / "file" / "cache"))


def test_shards_in_s3(server: tuple[str, type[Served]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    url, served = server
    for name, value in {
        "AWS_ENDPOINT_URL": url.removesuffix("/cc3m"),
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    served.cut["00001.tar"] = 1
    source = ShardSource("s3://cc3m/{00000..00001}.tar", cache=tmp_path / "cache")
    assert read(source) == read(ShardSource(tmp_path / "served"))


def test_shards_on_the_hub_are_read_by_its_own_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.core import url_to_fs

    (shard,) = find_shards("hf://datasets/someone/pairs/00000.tar")
    assert isinstance(shard, Remote)
    system, _ = url_to_fs(shard.url)
    assert type(system).__name__ == "HfFileSystem"


@pytest.mark.parametrize("library", ["aiohttp", "s3fs"])
def test_a_missing_library_is_told_with_its_extra(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    scheme = {"aiohttp": "https", "s3fs": "s3"}[library]
    with pytest.raises(UsageError, check=coded("not_installed", module=library, extra="remote")):
        find_shards(f"{scheme}://host/0.tar")


@pytest.mark.parametrize(
    ("pattern", "check"),
    [
        ("ftp://host/0.tar", coded("scheme", scheme="ftp")),
        ("https://host/*.tar", coded("not_listed")),
        ("https://host/{0..9.tar", coded("not_a_brace_list")),
    ],
)
def test_what_no_url_of_a_shard_says_why(pattern: str, check) -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(UsageError, check=check):
        find_shards(pattern)


def test_a_kept_shard_is_read_without_a_server(server: tuple[str, type[Served]], tmp_path: Path) -> None:
    url, served = server
    shard = Remote(url + "/00000.tar", tmp_path / "cache")
    with fetched(shard) as path:
        content = path.read_bytes()
    (served.folder / "00000.tar").unlink()
    with fetched(shard) as path:
        assert path.read_bytes() == content
