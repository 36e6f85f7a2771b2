"""Tar files that mean harm: nothing is run, unpacked or believed."""

from __future__ import annotations

import gzip
import os
import pickle
import resource
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustclip.data.samples import Sample
from robustclip.data.shards import ShardSource, count_samples
from robustclip.data.sources import open_data
from robustclip.data.tars import MAX_HEADER, MAX_MEMBER, BrokenTar, Command, names, read_tar
from robustclip.errors import Fault, RunError


def anything(name: str) -> bool:
    return True


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(content), kind) + padded(content)


END = bytes(1024)


@pytest.fixture
def shard(tmp_path) -> Callable[..., Path]:
    """Write blocks as they are; `packed` gzips them."""

    def write(*blocks: bytes, packed: bool = False) -> Path:
        path = tmp_path / ("0.tar.gz" if packed else "0.tar")
        path.write_bytes(gzip.compress(b"".join(blocks)) if packed else b"".join(blocks))
        return path

    return write


@pytest.fixture
def good(encode) -> bytes:
    return member("good.jpg", encode()) + member("good.txt", b"a good one")


def faults(path: Path) -> list[Fault | None]:
    return [sample.fault for sample in ShardSource(path).read(path)]


def only(samples: Iterable[Sample]) -> Sample:
    (sample,) = samples
    return sample


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "ending", ["pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "ten", "tb", "mp", "cbor", "jpg"]
)
def test_no_member_is_ever_unpickled(tmp_path, shard, good, ending: str) -> None:
    made = tmp_path / "made"
    bomb = pickle.dumps(Payload(made))
    pickle.loads(bomb)  # it does go off
    made.rmdir()
    path = shard(member(f"bad.{ending}", bomb), member("bad.txt", b"x"), member(f"good.{ending}", bomb), good, END)
    loader = open_data(str(path), batch_size=1, size=8)
    if ending == "jpg":
        path.write_bytes(member("bad.jpg", bomb) + member("bad.txt", b"x") + good + END)
    batch = next(loader.batches())
    assert batch.ids == [f"{tmp_path.name}/0/good"]
    assert not made.exists()


@pytest.mark.parametrize(
    "name", ["../../outside", "/absolute/path", "a/../../b", "..", "~/home", "c:\\x", "a\x1b[31mb"]
)
def test_names_are_only_names(tmp_path, shard, encode, name: str) -> None:
    before = sorted(tmp_path.parent.rglob("*"))
    path = shard(member(f"{name}/0.jpg", encode()), member(f"{name}/0.txt", b"a caption"), END)
    sample = only(ShardSource(path).epoch(0, 0))
    assert isinstance(sample.image, bytes)  # not a path: nothing is opened by its name
    assert sample.fault is None
    assert sample.key.isprintable()
    assert [file for file in sorted(tmp_path.parent.rglob("*")) if file != path] == before


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_links_and_devices_are_counted_and_not_followed(tmp_path, shard, good, kind: bytes) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    links = header("0.jpg", kind=kind, link=str(secret)), header("0.txt", kind=kind, link=str(secret))
    samples = list(ShardSource(shard(*links, good, END)).epoch(0, 0))
    assert [sample.captions for sample in samples if sample.fault is None] == [("a good one",)]
    counted = [] if kind == tarfile.DIRTYPE else [Fault.NOT_A_FILE]
    assert [sample.fault for sample in samples if sample.fault is not None] == counted


def test_a_hard_link_to_a_member_is_counted(shard, good) -> None:
    path = shard(good, header("0.jpg", kind=tarfile.LNKTYPE, link="good.jpg"), END)
    assert faults(path) == [None, Fault.NOT_A_FILE]


def peak(work: Callable[[], object]) -> int:
    """Bytes that Python held at most during the work, beyond what it held before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("claim", [10 * 2**30, 2**40, 2**62, 2**80])
def test_a_huge_claim_in_a_small_tar_breaks_the_shard_at_once(shard, good, claim: int, packed: bool) -> None:
    path = shard(good, header("0.jpg", claim), b"a few bytes", packed=packed)
    assert peak(lambda: faults(path)) < 2**20
    assert faults(path) == [None, Fault.BROKEN_SHARD]
    assert count_samples(path) == 1


@pytest.mark.parametrize("ending", ["jpg", "txt", "json"])
def test_a_member_above_the_limit_is_skipped_and_the_next_one_read(tmp_path, shard, good, ending: str) -> None:
    path = shard(member("0.png", b"x") if ending != "jpg" else b"", header(f"0.{ending}", MAX_MEMBER + 512))
    with path.open("r+b") as file:  # a hole, which takes no space on the disk
        file.seek(0, os.SEEK_END)
        end = file.tell() + MAX_MEMBER + 512
        file.seek(end)
        file.write(good + END)
    assert peak(lambda: faults(path)) < 2**20
    assert faults(path) == [Fault.TOO_BIG, None]
    assert count_samples(path) == 2


def test_a_gzip_bomb_is_not_unpacked(shard, good) -> None:
    """One large member, and many that are each within the limit: 128 MiB in 130 kB."""
    zeros = bytes(2**27)
    path = shard(good, member("0.jpg", zeros), END, packed=True)
    assert path.stat().st_size < 2**18
    assert peak(lambda: faults(path)) < 2**26
    assert faults(path) == [None, Fault.BROKEN_SHARD]
    path = shard(good, *(member(f"{n}.jpg", zeros[: 2**24]) for n in range(8)), END, packed=True)
    assert peak(lambda: faults(path)) < 2**26
    assert faults(path) == [None, Fault.BROKEN_SHARD]
    assert count_samples(path) == 1


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_an_extended_header_above_the_limit_is_not_read(shard, good, kind: bytes) -> None:
    """tarfile reads it whole into memory, and searches it in quadratic time."""
    path = shard(good, member("x", b"1" * 50 * MAX_HEADER, kind), good, END)
    assert faults(path) == [None, Fault.BROKEN_SHARD]
    path = shard(good, member("x", bytes(2**27), kind), END, packed=True)
    assert peak(lambda: faults(path)) < 2**26


def pax(**records: str) -> bytes:
    """An extended header; a record's length counts its own two digits."""
    lines = [f"{len(keyword) + len(value) + 5} {keyword}={value}\n" for keyword, value in records.items()]
    assert all(len(line) == int(line[:2]) for line in lines)
    return member("x", "".join(lines).encode(), tarfile.XHDTYPE)


@pytest.mark.parametrize(
    "blocks",
    [
        [pax(size="-00512"), member("0.jpg", b"x" * 100)],
        [pax(size="99999999999999999999"), member("0.jpg", b"x" * 100)],
        [pax(size="abcde"), member("0.jpg", b"x" * 100)],
        [pax(**{"GNU.sparse.map": "a,b", "GNU.sparse.size": "7"}), member("0.jpg", b"x" * 100)],
        [pax(**{"GNU.sparse.map": "0,1", "GNU.sparse.realsize": str(2**50)}), member("0.jpg", b"x" * 100)],
        [pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), member("0.jpg", b"no numbers")],
        [pax(path="abcde")] * 1500 + [member("0.jpg", b"x")],
        [member("0.jpg", b"x" * 100, tarfile.GNUTYPE_SPARSE)],
        [header("0.jpg", -512)],
        [header("0.jpg")[:-1] + b"x"],
        [b"\xff" * 512],
        [os.urandom(5000)],
    ],
    ids=[
        "negative pax size", "huge pax size", "pax size no number", "sparse map no numbers", "sparse terabyte",
        "sparse without a map", "recursion", "old sparse", "negative size", "wrong checksum", "ones", "noise",
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_malformed_headers_break_a_shard_and_nothing_else(shard, good, blocks: list[bytes], packed: bool) -> None:
    path = shard(good, *blocks, END, packed=packed)
    assert peak(lambda: faults(path)) < 2**24
    assert faults(path)[0] is None
    assert set(faults(path)[1:]) <= {Fault.BROKEN_SHARD, Fault.NO_CAPTION}
    assert count_samples(path) >= 1


def test_a_long_name_does_not_hang_the_grouping(shard, good) -> None:
    path = shard(member("x", b"/" * 16_000, tarfile.GNUTYPE_LONGNAME), header("y"), good, END)
    assert faults(path) == [Fault.NOT_A_FILE, None]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_shard_with_bytes_changed_ends_in_samples_or_faults(shard, good, data: st.DataObject) -> None:
    content = bytearray(good + pax(path="0.jpg") + good + member("1.txt", b"no picture") + END)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = shard(bytes(content), packed=data.draw(st.booleans()))
    samples = list(ShardSource(path).epoch(0, 0))
    assert all(sample.fault or (sample.captions and sample.image is not None) for sample in samples)
    count_samples(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=4000))
def test_bytes_that_are_no_tar_are_told(shard, content: bytes) -> None:
    path = shard(content)
    try:
        list(read_tar(path, anything))
    except BrokenTar:
        pass
    else:
        assert not any(content[:512])  # an archive's end, at once
    list(names(path))


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def test_memory_of_the_process_does_not_grow_by_a_header_of_30000_pixels_squared(shard, encode) -> None:
    """What Pillow holds is not Python's: the peak of the process itself is looked at."""
    size = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    gif = encode(form="GIF").replace(struct.pack("<HH", 24, 16), struct.pack("<HH", 30_000, 30_000))
    members = []
    for number in range(20):
        members += [member(f"{number}.png", png), member(f"{number}.txt", b"x")]
        members += [member(f"{number}g.gif", gif), member(f"{number}g.txt", b"x")]
    path = shard(*members, END)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loader = open_data(str(path), batch_size=1, size=8, max_skipped=None)
    with pytest.raises(RunError, match="40 too many pixels"):
        next(loader.batches())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_a_command_is_read_like_a_file(shard, good, tmp_path) -> None:
    for packed in (False, True):
        path = shard(good, END, bytes(10_000), packed=packed)
        assert dict(read_tar(Command(f"cat {path}"), anything)) == dict(read_tar(path, anything))
    source = ShardSource(f"pipe:cat {tmp_path}/0.tar; true", allow_commands=True)
    assert only(source.epoch(0, 0)).captions == ("a good one",)


@pytest.mark.parametrize(
    "line", ["cat {}; exit 3", "cat {} no-such-file 2>/dev/null", "false", "no-such-command 2>/dev/null"]
)
def test_a_command_that_fails_is_a_broken_shard(shard, good, line: str) -> None:
    path = shard(good, END)
    source = ShardSource(f"pipe:{line.format(path)}", allow_commands=True)
    *before, last = source.read(source.shards[0])
    assert last.fault == Fault.BROKEN_SHARD
    assert [sample.fault for sample in before] == [None] * line.startswith("cat")  # what came is kept


def test_a_command_that_is_left_in_the_middle_is_ended(shard, good, tmp_path) -> None:
    path, started = shard(*[good] * 20), tmp_path / "pid"
    reading = read_tar(Command(f"echo $$ > {started}; cat {path}; sleep 600"), anything)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_a_command_that_never_ends_its_output_is_cut_off(shard, good) -> None:
    path = shard(good, END)
    assert len(dict(read_tar(Command(f"cat {path}; yes"), anything))) == 2


def test_commands_have_braces_and_names_of_their_own(good, tmp_path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(good + END)
    source = ShardSource(f"pipe:cat {tmp_path}/{{0,1}}.tar", allow_commands=True)
    assert sorted(sample.key for sample in source.epoch(0, 0)) == ["pipe-00000/good", "pipe-00001/good"]
    assert source.describe()["first"] == f"pipe:cat {tmp_path}/0.tar"
