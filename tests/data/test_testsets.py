from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustclip.data.testsets import labelled_from_folder, labelled_from_shards
from robustclip.errors import RunError, UsageError


@pytest.fixture
def benchmark(tmp_path, encode, write_tar) -> Path:
    """Five pictures of three classes in two shards, as clip_benchmark lays them out."""
    folder = tmp_path / "wds_pets"
    for shard, numbers in enumerate(((0, 1, 2), (3, 4))):
        members = [
            (f"s{number}.{ending}", content)
            for number in numbers
            for ending, content in (("cls", str(number % 3).encode()), ("webp", encode(number, (16, 16), "WEBP")))
        ]
        write_tar(folder / "test" / f"{shard}.tar", members)
    (folder / "test" / "nshards.txt").write_text("2\n")
    (folder / "classnames.txt").write_text("cat\ndog\nold owl\n")
    return folder


def test_clip_benchmarks_layout(benchmark) -> None:
    data = labelled_from_shards(benchmark)
    assert data.images.shape == (5, 3, 16, 16)
    assert 0 <= data.images.min() < 0.2 < 0.8 < data.images.max() <= 1
    assert data.labels.tolist() == [0, 1, 2, 0, 1]
    assert data.label_names == ["cat", "dog", "old owl"]
    assert data.captions == [["cat"], ["dog"], ["old owl"], ["cat"], ["dog"]]
    assert data.ids == ["s0", "s1", "s2", "s3", "s4"]


def test_without_a_count_all_shards_are_read(benchmark) -> None:
    (benchmark / "test" / "nshards.txt").unlink()
    assert len(labelled_from_shards(benchmark)) == 5


def test_a_limit_draws_by_the_seed_and_keeps_the_order(benchmark) -> None:
    drawn = [labelled_from_shards(benchmark, limit=3, seed=seed).ids for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert all(len(ids) == 3 and ids == sorted(ids) for ids in drawn)
    assert len({tuple(ids) for ids in drawn}) > 1
    with pytest.raises(UsageError, match="limit 0: give at least 1"):
        labelled_from_shards(benchmark, limit=0)


def test_pictures_are_brought_to_a_size(benchmark) -> None:
    assert labelled_from_shards(benchmark, size=8).images.shape == (5, 3, 8, 8)
    assert labelled_from_shards(benchmark, size=(8, 12)).images.shape == (5, 3, 8, 12)


def test_a_retrieval_set_has_captions_line_by_line(tmp_path, encode, write_tar) -> None:
    members = [
        ("0.jpg", encode(size=(8, 8))),
        ("0.txt", b"a dog\na puppy\n"),
        ("1.jpg", encode(size=(8, 8))),
        ("1.txt", b"a cat"),
    ]
    write_tar(tmp_path / "test" / "0.tar", members)
    (tmp_path / "dataset_type.txt").write_text("retrieval\n")
    data = labelled_from_shards(tmp_path)
    assert data.captions == [["a dog", "a puppy"], ["a cat"]]
    assert data.label_names == ["a dog", "a cat"]
    assert data.labels.tolist() == [0, 1]


def test_a_missing_shard_is_named(benchmark) -> None:
    (benchmark / "test" / "1.tar").unlink()
    with pytest.raises(UsageError, match=r"1 of 2 shards missing: .*1\.tar"):
        labelled_from_shards(benchmark)


@pytest.mark.parametrize("content", ["", "two", "-1", "0", "1\n2", "9" * 20])
def test_a_count_that_is_none_is_refused(benchmark, content: str) -> None:
    (benchmark / "test" / "nshards.txt").write_text(content)
    with pytest.raises(UsageError, match="must hold one number, that of the shards"):
        labelled_from_shards(benchmark)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "empty data: there are no samples"),
        ([("0.cls", b"0")], "sample 0 needs a picture and a .cls member"),
        ([("0.jpg", b"x")], "sample 0 needs a picture and a .cls member"),
        ([("0.jpg", b"x"), ("0.cls", b"3")], "0.cls is '3': it must be a number below 3"),
        ([("0.jpg", b"x"), ("0.cls", b"-1")], "0.cls is '-1'"),
        ([("0.jpg", b"x"), ("0.cls", b"\xff")], "0.cls is not in UTF-8"),
        ([("0.jpg", b"x"), ("0.cls", b"")], "0.cls is empty"),
        ([("0.jpg", b"x"), ("0.cls", b"0"), ("1.jpg", b""), ("1.cls", b"0")],
         r"of 2 pictures, 1 not an image \(first: 0\); 1 empty image \(first: 1\)"),
    ],
)  # fmt: skip
def test_a_measurement_loses_nothing_quietly(benchmark, write_tar, members, message: str) -> None:
    (benchmark / "test" / "nshards.txt").write_text("1")
    write_tar(benchmark / "test" / "0.tar", members)
    with pytest.raises(RunError, match=message):
        labelled_from_shards(benchmark)


def test_a_truncated_shard_is_refused(benchmark) -> None:
    path = benchmark / "test" / "1.tar"
    path.write_bytes(path.read_bytes()[:1200])
    with pytest.raises(RunError, match=r"1\.tar is not a whole tar file"):
        labelled_from_shards(benchmark)


def test_an_image_folder(tmp_path, encode) -> None:
    for name, count in (("dog", 1), ("cat", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.png").write_bytes(encode(number, (10 + number, 10), "PNG"))
    data = labelled_from_folder(tmp_path, size=8)
    assert data.images.shape == (3, 3, 8, 8)
    assert data.label_names == ["cat", "dog"]
    assert data.labels.tolist() == [0, 0, 1]
    assert data.ids == ["cat/0.png", "cat/1.png", "dog/0.png"]
    with pytest.raises(UsageError, match=r"differ in size: give one, e\.g\. size=224"):
        labelled_from_folder(tmp_path)
    (tmp_path / "dog" / "1.jpg").write_bytes(b"")
    with pytest.raises(RunError, match=r"of 4 pictures, 1 empty image \(first: dog/1.jpg\)"):
        labelled_from_folder(tmp_path, size=8)


def test_pictures_keep_their_8_bit_values(tmp_path, encode, write_tar) -> None:
    write_tar(tmp_path / "test" / "0.tar", [("0.png", encode(3, (8, 8), "PNG")), ("0.cls", b"0")])
    (tmp_path / "classnames.txt").write_text("noise")
    images = labelled_from_shards(tmp_path).images
    assert torch.equal((images * 255).round() / 255, images)
