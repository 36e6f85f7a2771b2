from __future__ import annotations

import gzip
import json
import math
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from robustclip.data.pictures import Stored
from robustclip.data.samples import Sample
from robustclip.data.shards import ShardSource, captions_of, count_samples, find_shards
from robustclip.errors import Fault, UsageError, coded
from robustclip.runs.processes import Place


def keys(source: ShardSource, seed: int = 0, epoch: int = 0) -> list[str]:
    return [sample.key for sample in source.epoch(seed, epoch)]


def only(source: ShardSource) -> Sample:
    (sample,) = source.epoch(0, 0)
    return sample


def test_brace_lists_patterns_folders_and_lists_name_the_same_shards(tmp_path, write_shard) -> None:
    paths = [write_shard(tmp_path / f"{number:05d}.tar", 1) for number in range(3)]
    assert find_shards(f"{tmp_path}/{{00000..00002}}.tar") == paths
    assert find_shards(f"{tmp_path}/*.tar") == paths
    assert find_shards(tmp_path) == paths
    assert find_shards([paths[0], f"{tmp_path}/{{00001,00002}}.tar"]) == paths


def test_a_missing_shard_is_named_before_anything_is_read(tmp_path, write_shard) -> None:
    write_shard(tmp_path / "00000.tar", 1)
    write_shard(tmp_path / "00001.tar", 1)
    with pytest.raises(
        UsageError,
        match=r"2 shards, 00000\.tar to 00001",
        check=coded("missing_shards", missing=[tmp_path / "00002.tar"]),
    ):
        ShardSource(f"{tmp_path}/{{00000..00002}}.tar")
    with pytest.raises(UsageError, check=coded("missing_shards", missing=[tmp_path / "elsewhere" / "0.tar"])):
        ShardSource(tmp_path / "elsewhere" / "0.tar")


@pytest.mark.parametrize(
    ("pattern", "check"),
    [
        ("pipe:cat 0.tar", coded("commands_not_allowed")),
        ("gopher://host/0.tar", coded("scheme", scheme="gopher")),
        ("{0..9.tar", coded("not_a_brace_list")),
        ("{0..999999999999}.tar", lambda error: "1,000,000" in str(error)),
        ("{0..9999}/{0..9999}.tar", lambda error: "1,000,000" in str(error)),
        ("none*.tar", coded("no_match", pattern="none*.tar")),
    ],
)
def test_what_is_no_shard_is_refused(pattern: str, check) -> None:
    with pytest.raises(UsageError, check=check):
        find_shards(pattern)


def test_an_empty_folder_and_a_repeated_shard_are_refused(tmp_path, write_shard) -> None:
    with pytest.raises(UsageError, check=coded("no_shards")):
        find_shards(tmp_path)
    path = write_shard(tmp_path / "0.tar", 1)
    with pytest.raises(UsageError, check=coded("listed_twice", shard=path)):
        find_shards([path, tmp_path / "*.tar"])


@pytest.mark.parametrize("open_shards", [1, 2, 8])
@pytest.mark.parametrize("shuffle_buffer", [1, 7, 1000])
def test_an_epoch_has_every_sample_once(tmp_path, write_shard, shuffle_buffer: int, open_shards: int) -> None:
    for number, count in enumerate((10, 3, 0, 17)):
        write_shard(tmp_path / f"{number}.tar", count, first=100 * number)
    source = ShardSource(tmp_path, shuffle_buffer=shuffle_buffer, open_shards=open_shards)
    there = [f"{n}/{100 * n + i:09d}" for n, count in enumerate((10, 3, 0, 17)) for i in range(count)]
    assert sorted(keys(source)) == sorted(there)


def test_order_is_a_function_of_seed_and_epoch(tmp_path, write_shard) -> None:
    for number in range(3):
        write_shard(tmp_path / f"{number}.tar", 20)
    source, again = ShardSource(tmp_path), ShardSource(tmp_path)
    first = keys(source)
    assert first == keys(again)
    assert first != keys(source, epoch=1)
    assert first != keys(source, seed=1)
    assert first != sorted(first)


def test_shards_are_visited_in_another_order_each_epoch(tmp_path, write_shard) -> None:
    for number in range(8):
        write_shard(tmp_path / f"{number}.tar", 1)
    source = ShardSource(tmp_path, shuffle_buffer=1, open_shards=1)
    assert len({tuple(keys(source, epoch=epoch)) for epoch in range(4)}) == 4


def test_a_set_within_the_buffer_is_well_mixed(tmp_path, write_shard) -> None:
    for number in range(2):
        write_shard(tmp_path / f"{number}.tar", 100)
    half = Counter(key[0] for key in keys(ShardSource(tmp_path))[:100])
    assert half["0"] == pytest.approx(50, abs=20)  # four standard deviations of a draw without replacement


def test_gzipped_shards_read_alike(tmp_path, write_shard) -> None:
    for name in ("0.tar", "1.tar.gz", "2.tgz"):
        write_shard(tmp_path / name, 2)
    assert sorted(keys(ShardSource(tmp_path))) == [f"{n}/{i:09d}" for n in range(3) for i in range(2)]


def test_img2datasets_layout_as_it_is(tmp_path, write_shard) -> None:
    sample = only(ShardSource(write_shard(tmp_path / "00000.tar", 1)))
    assert (sample.key, sample.captions, sample.fault) == ("00000/000000000", ("caption 000000000",), None)
    assert isinstance(sample.image, bytes)


def test_captions_are_taken_in_the_stated_order() -> None:
    record = {"captions": ["a", " b "], "caption": "c", "alt": "d", "number": 3}
    assert captions_of(record, "t") == ("a", "b")
    assert captions_of({**record, "captions": []}, "t") == ("t",)
    assert captions_of({**record, "captions": [" "]}, " ") == ("c",)
    assert captions_of({"text": "c"}, "") == ("c",)
    assert captions_of(record, "t", "txt") == ("t",)
    assert captions_of(record, "t", "alt") == ("d",)
    assert captions_of(record, "t", "number") == ()
    assert captions_of({}, "") == ()
    assert captions_of({"caption": "half \ud800 of a pair"}, "") == ("half ? of a pair",)


def test_a_byte_order_mark_is_not_in_the_caption(tmp_path, encode, write_tar) -> None:
    members = [("0.jpg", encode(0)), ("0.txt", b"\xef\xbb\xbfa cat")]
    assert only(ShardSource(write_tar(tmp_path / "0.tar", members))).captions == ("a cat",)
    (tmp_path / "0.txt").write_bytes(members[1][1])
    assert Stored(tmp_path / "0.txt").text() == "a cat"


def test_concepts_can_be_left_out(tmp_path, encode, write_tar) -> None:
    records = {"0": "cat", "1": "dog", "2": None}
    members = [
        (f"{key}.{ending}", content)
        for key, concept in records.items()
        for ending, content in (
            ("png", encode(form="PNG")),
            ("json", json.dumps({"caption": "animal", "concept": concept}).encode()),
        )
    ]
    source = ShardSource(write_tar(tmp_path / "0.tar", members), without=["cat"])
    assert {sample.concept for sample in source.epoch(0, 0)} == {"dog", None}


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ({"txt": b"a caption"}, Fault.NO_IMAGE),
        ({"svg": b"<svg/>", "txt": b"a caption"}, Fault.NO_IMAGE),
        ({"jpg": b"x"}, Fault.NO_CAPTION),
        ({"jpg": b"x", "txt": b" \n"}, Fault.NO_CAPTION),
        ({"jpg": b"x", "json": b"{}"}, Fault.NO_CAPTION),
        ({"jpg": b"x", "txt": b"\xff\xfe caption"}, Fault.NOT_UTF8),
        ({"jpg": b"x", "json": b'{"caption": '}, Fault.BAD_METADATA),
        ({"jpg": b"x", "json": b'["caption"]'}, Fault.BAD_METADATA),
        ({"jpg": b"x", "json": b"[" * 100_000}, Fault.BAD_METADATA),
    ],
)
def test_what_is_wrong_with_a_sample_is_found(tmp_path, write_tar, members: dict[str, bytes], fault: Fault) -> None:
    shard = write_tar(tmp_path / "0.tar", [(f"0.{ending}", content) for ending, content in members.items()])
    assert only(ShardSource(shard)).fault == fault


class Explosive:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def test_pickles_and_other_members_are_not_looked_into(tmp_path, write_shard) -> None:
    bomb = pickle.dumps(Explosive())
    extra = [(f"000000000.{ending}", bomb) for ending in ("pyd", "pkl", "pickle", "pth", "npy")]
    sample = only(ShardSource(write_shard(tmp_path / "0.tar", 1, extra=extra)))
    assert sample.fault is None


@pytest.mark.parametrize("name", ["cut.tar", "cut.tar.gz"])
def test_a_tar_that_breaks_off_keeps_what_was_readable(tmp_path, write_shard, name: str) -> None:
    path = write_shard(tmp_path / name, 50)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    samples = list(ShardSource(path).epoch(0, 0))
    good = [sample for sample in samples if sample.fault is None]
    assert 20 < len(good) < 40
    assert sum(sample.fault == Fault.BROKEN_SHARD for sample in samples) == 1
    assert len(good) <= count_samples(path) <= 50


def test_a_damaged_gzip_is_a_broken_shard_with_a_size(tmp_path, write_shard) -> None:
    path = write_shard(tmp_path / "0.tar.gz", 50)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = b"x" * 3000
    path.write_bytes(data)
    samples = list(ShardSource(path).read(path))
    assert [sample.fault for sample in samples][-1] == Fault.BROKEN_SHARD
    assert 10 < len(samples) < 50
    assert 10 < count_samples(path) < 50


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path, write_shard) -> None:
    path = write_shard(tmp_path / "0.tar", 3)
    with tarfile.open(path) as tar:
        last = tar.getmembers()[6]
    data = bytearray(path.read_bytes())
    data[last.offset : last.offset + 100] = b"x" * 100
    path.write_bytes(data)
    assert [sample.fault for sample in ShardSource(path).read(path)] == [None, None, Fault.BROKEN_SHARD]


def test_a_tar_that_breaks_off_between_samples_is_noticed(tmp_path, write_shard) -> None:
    path = write_shard(tmp_path / "0.tar", 3)
    with tarfile.open(path) as tar:
        last = tar.getmembers()[6]
    for length in (last.offset + 100, last.offset):  # in a header, and before it
        path.write_bytes(path.read_bytes()[:length])
        assert [sample.fault for sample in ShardSource(path).read(path)] == [None, None, Fault.BROKEN_SHARD]


@pytest.mark.parametrize("content", [b"", b"no tar", gzip.compress(b"no tar", mtime=0)])
def test_what_is_no_tar_is_one_broken_shard(tmp_path, content: bytes) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(content)
    assert only(ShardSource(path)).fault == Fault.BROKEN_SHARD


def test_a_member_that_comes_twice_is_counted_and_the_first_kept(tmp_path, write_shard) -> None:
    path = write_shard(tmp_path / "0.tar", 2, extra=[("000000001.txt", b"another")])
    samples = sorted(ShardSource(path).epoch(0, 0), key=lambda sample: sample.key)
    assert [sample.fault for sample in samples] == [Fault.BROKEN_SHARD, None, None]
    assert samples[2].captions == ("caption 000000001",)


def test_sizes_are_counted_or_taken_from_img2datasets_statistics(tmp_path, write_shard) -> None:
    path = write_shard(tmp_path / "00000.tar", 7, extra=[("only.txt", b"no image"), ("other.pyd", b"")])
    write_shard(tmp_path / "00001.tar.gz", 5)
    assert count_samples(path) == 8
    assert ShardSource(tmp_path).size() == 13
    (tmp_path / "00000_stats.json").write_text('{"count": 10000, "successes": 6543}')
    assert ShardSource(tmp_path).size() == 6548
    (tmp_path / "00000_stats.json").write_text("[]")
    assert ShardSource(tmp_path).size() == 13


def test_names_in_no_encoding_become_printable(tmp_path, encode, write_tar) -> None:
    path = write_tar(tmp_path / "0.tar", [("caf\udce9.jpg", encode()), ("caf\udce9.txt", b"a caption")])
    assert only(ShardSource(path)).key == "0/caf?"


def test_samples_of_equal_keys_in_different_folders_keep_apart(tmp_path, write_shard) -> None:
    for folder in ("a", "b"):
        write_shard(tmp_path / folder / "0.tar", 1)
    source = ShardSource([tmp_path / "a", tmp_path / "b"])
    assert sorted(keys(source)) == ["a/0/000000000", "b/0/000000000"]
    assert source.name == tmp_path.name


@pytest.mark.parametrize(("shards", "share"), [(10, 0.3), (1, 0.5), (4, 0.4)])
def test_of_a_share_each_epoch_takes_other_samples(tmp_path, write_shard, shards: int, share: float) -> None:
    for number in range(shards):
        write_shard(tmp_path / f"{number}.tar", 400 // shards, first=1000 * number)
    source = ShardSource(tmp_path, share=share)
    epochs = [keys(source, epoch=epoch) for epoch in range(6)]
    assert epochs[0] == keys(ShardSource(tmp_path, share=share))
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) > 1
    opened = [len({key.split("/")[0] for key in epoch}) for epoch in epochs]
    assert set(opened) == {math.ceil(share * shards)}  # and no more of them
    expected = 6 * 400 * share
    assert sum(map(len, epochs)) == pytest.approx(expected, abs=4 * math.sqrt(expected))
    assert source.size() == 400 * share
    dealt = [sample.key for rank in range(3) for sample in source.epoch(0, 0, Place(rank, 3))]
    assert sorted(dealt) == sorted(epochs[0])


@pytest.mark.parametrize("share", [0, -1, 1.01, math.nan])
def test_a_share_out_of_range_is_refused(tmp_path, write_shard, share: float) -> None:
    with pytest.raises(UsageError, check=coded("out_of_range", argument="share")):
        ShardSource(write_shard(tmp_path / "0.tar", 1), share=share)


def test_sizes_of_commands_are_not_asked_for(tmp_path, write_shard) -> None:
    source = ShardSource(f"pipe:cat {write_shard(tmp_path / '0.tar', 1)}", name="far", allow_commands=True)
    with pytest.raises(UsageError, check=coded("unknown_size", source="far")):
        source.size()


@pytest.mark.parametrize("successes", ["Infinity", "-5", "1e400", '"many"', "null", "[" * 50_000])
def test_statistics_that_make_no_sense_are_left_aside(tmp_path, write_shard, successes: str) -> None:
    path = write_shard(tmp_path / "00000.tar", 7)
    (tmp_path / "00000_stats.json").write_text(f'{{"successes": {successes}}}')
    assert count_samples(path) in (0, 7)


def test_describe_is_json(tmp_path, write_shard) -> None:
    write_shard(tmp_path / "0.tar", 1)
    described = json.loads(json.dumps(ShardSource(tmp_path, name="cc3m").describe()))
    assert (described["name"], described["kind"], described["shards"]) == ("cc3m", "shards", 1)


@pytest.mark.parametrize("options", [{"shuffle_buffer": 0}, {"open_shards": 0}])
def test_numbers_below_one_are_refused(tmp_path, write_shard, options: dict[str, int]) -> None:
    write_shard(tmp_path / "0.tar", 1)
    with pytest.raises(UsageError, check=coded("out_of_range", **options)):
        ShardSource(tmp_path, **options)


def test_a_shard_that_vanishes_later_is_one_broken_shard(tmp_path: Path, write_shard) -> None:
    source = ShardSource(write_shard(tmp_path / "0.tar", 1))
    (tmp_path / "0.tar").unlink()
    assert only(source).fault == Fault.BROKEN_SHARD
