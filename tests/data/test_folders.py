"""Folders, shards and tables whose layout was taken for another, or that lost samples without a count."""

from __future__ import annotations

import csv
import json
import os
import sys
from io import StringIO
from pathlib import Path

import pytest

from robustclip.data.examples import read_examples
from robustclip.data.folders import read_folder
from robustclip.data.shards import ShardSource
from robustclip.data.sources import open_data
from robustclip.data.tables import FolderSource, TableSource, table_rows
from robustclip.errors import Fault, UsageError, coded
from robustclip.synthesis.items import load_prompts


def put(folder: Path, encode, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(form="GIF" if name.endswith("gif") else "PNG"))
    return folder


def test_training_and_evaluation_find_the_same_pictures(tmp_path, encode) -> None:
    names = ("a/1.png", "a/2.gif", "a/deep/3.JPG", "b/4.bmp", "b/x.y.png")
    put(tmp_path, encode, *names, ".ipynb_checkpoints/5.png", "a/._1.png", "loose.png", "__MACOSX/a/1.png")
    (tmp_path / "a" / "notes.md").write_text("no picture")
    found = read_examples(tmp_path, size=8)
    assert sorted(found.ids) == sorted(names)
    assert sorted(sample.key for sample in FolderSource(tmp_path).samples) == sorted(names)
    assert found.label_names == ["a", "b"]
    said = "\n".join(found.reported)
    for part in ("5 pictures of 2 classes", "3 hidden", "notes.md", "loose.png"):
        assert part in said


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_the_class_of_a_folder_whose_name_is_not_utf8_can_be_tokenised(tmp_path, encode) -> None:
    put(tmp_path, encode, "dog/1.png", os.fsdecode(b"caf\xe9_au_lait/1.png"))
    assert read_folder(tmp_path).names == ["caf? au lait", "dog"]


def test_captions_beside_pictures_are_a_layout_of_their_own(tmp_path, encode) -> None:
    for name in ("00000/000000000", "00000/000000001", "00001/000010000"):
        put(tmp_path, encode, f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"thing {name}")
        (tmp_path / f"{name}.json").write_text(json.dumps({"caption": "other"}))
    (tmp_path / "00000_stats.json").write_text(json.dumps({"successes": 3}))
    batch = next(open_data(str(tmp_path), batch_size=3, size=8).batches())
    assert sorted(batch.captions) == ["thing 00000/000000000", "thing 00000/000000001", "thing 00001/000010000"]
    assert len(set(batch.positives.tolist())) == 3
    found = read_examples(tmp_path, size=8)
    assert found.captions[0] == ["thing 00000/000000000"]
    assert found.reported[0] == "3 pairs: captions from .txt beside each picture"
    assert "00000 holds 2 pictures, and 00000_stats.json counts 3" in found.reported


@pytest.mark.parametrize("name", ["a.txt", "a.json"])
def test_of_several_captions_beside_a_picture_training_draws_one(tmp_path, encode, name: str) -> None:
    put(tmp_path, encode, "a.png")
    text = "a cat\n\n a black cat \n" if name == "a.txt" else json.dumps({"captions": ["a cat", "a black cat"]})
    (tmp_path / name).write_text(text)
    batch = next(open_data(str(tmp_path), batch_size=20, size=8).batches())
    assert {*batch.captions} == {*read_examples(tmp_path, size=8).captions[0]} == {"a cat", "a black cat"}


def test_captions_in_json_alone(tmp_path, encode) -> None:
    put(tmp_path, encode, "x/a.png", "x/b.png")
    for name in "ab":
        (tmp_path / "x" / f"{name}.json").write_text(json.dumps({"caption": name}))
    batch = next(open_data(str(tmp_path), batch_size=2, size=8).batches())
    assert sorted(batch.captions) == ["a", "b"]


def test_numbered_folders_are_lines_by_number(tmp_path, encode) -> None:
    put(tmp_path, encode, *(f"{number}/a.png" for number in range(12)))
    (tmp_path / "classnames.txt").write_text("\n".join(f"name{number}" for number in range(12)))
    found = read_examples(tmp_path, size=8)
    told = {one.split("/")[0]: found.label_names[label] for one, label in zip(found.ids, found.labels, strict=True)}
    assert told == {str(number): f"name{number}" for number in range(12)}
    assert {sample.concept: sample.captions[0] for sample in FolderSource(tmp_path, templates=("{}",)).samples} == told


def test_names_are_matched_by_name_where_they_are_the_folders(tmp_path, encode) -> None:
    put(tmp_path, encode, "cat/1.png", "hot_dog/2.png")
    (tmp_path / "classnames.txt").write_text("Hot dog\nowl\ncat\n")
    found = read_examples(tmp_path, size=8)
    assert [found.label_names[label] for label in found.labels] == ["cat", "Hot dog"]


@pytest.mark.parametrize(
    ("names", "listed", "check"),
    [
        (("0/a.png", "1/a.png"), None, coded("no_class_names")),
        (("n01440764/a.png", "n01443537/a.png"), None, coded("no_class_names")),
        (("1/a.png", "2/a.png"), "x\ny\n", coded("too_few_names", names=2)),
        (("01/a.png", "1/a.png"), "x\ny\n", coded("too_few_names", names=2)),
        (("train/cat/a.png", "val/cat/b.png"), None, coded("parts_not_classes")),
        (("cat/a.png", "dog/a.png"), "dog\npuma\n", coded("other_order", name="dog", line=1)),
        (("cat/a.png", "dog/a.png"), "a\n\nb\n", coded("no_name", line=2)),
    ],
)
def test_a_layout_that_cannot_be_told_is_refused(tmp_path, encode, names, listed: str | None, check) -> None:
    put(tmp_path, encode, *names)
    if listed is not None:
        (tmp_path / "classnames.txt").write_text(listed)
    for read in (read_folder, FolderSource, read_examples):
        with pytest.raises(UsageError, check=check):
            read(tmp_path)


@pytest.mark.parametrize(
    ("text", "check"), [("0 0.5 0.5", coded("no_words")), ("a cat", coded("few_captions", captions=1, pictures=3))]
)
def test_texts_that_are_no_captions_are_refused(tmp_path, encode, text: str, check) -> None:
    put(tmp_path, encode, "a/1.png", "a/2.png", "b/3.png")
    (tmp_path / "a" / "1.txt").write_text(text)
    with pytest.raises(UsageError, check=check):
        read_folder(tmp_path)


def test_names_with_dots_in_a_shard(tmp_path, encode, write_tar) -> None:
    keys = ("photo 2.0", "b.v2", "plain", "plain.v3", *(f"frame.{number:04}" for number in range(40)))
    members = [(f"{key}.{end}", encode() if end == "jpg" else b"0") for key in keys for end in ("jpg", "txt", "cls")]
    path = write_tar(tmp_path / "test" / "0.tar", [(n, b"a cat" if n.endswith("txt") else c) for n, c in members])
    (tmp_path / "classnames.txt").write_text("cat\n")
    source = ShardSource(path)
    read = list(source.read(path))
    assert sorted(sample.key for sample in read) == sorted(f"0/{key}" for key in keys)
    assert source.size() == len(keys)
    assert not any(sample.fault for sample in read)
    assert sorted(read_examples(tmp_path, size=8).ids) == sorted(f"0/{key}" for key in keys)


def test_what_is_no_sample_in_a_shard_is_counted(tmp_path, encode, write_tar) -> None:
    members = [("._a.jpg", b"x"), ("a.jpg", encode()), ("a.meta.json", b"{}"), ("a.txt", b"a cat"), ("README.md", b"x")]
    path = write_tar(tmp_path / "0.tar", [*members, ("b.seg.png", encode())])
    read = {sample.key: sample.fault for sample in ShardSource(path).read(path)}
    assert read == {
        "0/._a.jpg": Fault.HIDDEN,
        "0/a": None,
        "0/README": Fault.NO_IMAGE,
        "0/b.seg": Fault.NO_CAPTION,
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('path\tcaption\n0.png\ta cat\n1.png\t"a dog\n2.png\tan owl\n', 3),
        ("path,caption\n0.png,a cat, asleep\n1.png,a dog\n", 2),
        ("path,caption\n0.png,a cat\n1.png\n", 3),
        ('path,caption\n0.png,"two\nlines"\n1.png,"a" dog\n', 4),
        ("path,caption,caption\n0.png,a cat,b\n", 1),
    ],
)
def test_a_table_that_is_none_in_a_line_names_it(tmp_path, text: str, line: int) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UsageError, match=rf"x\.csv, line {line}: "):
        TableSource(tmp_path / "x.csv")


def test_tables_in_other_encodings_name_the_line(tmp_path) -> None:
    for encoding, line in (("latin-1", 3), ("utf-16", 1)):
        (tmp_path / "x.csv").write_bytes("path,caption\n0.png,a cat\n1.png,caf\xe9\n".encode(encoding))
        with pytest.raises(UsageError, check=coded("not_utf8", line=line)):
            TableSource(tmp_path / "x.csv")


TEXT = 'prompt\na cat\u2028in two\n"a dog\x0bx"\na\x85b\n"two\nlines, ""quoted"""\n'


def test_rows_are_those_of_the_csv_module(tmp_path) -> None:
    right = list(csv.reader(StringIO(TEXT, newline="")))
    assert [row for _, row in table_rows(StringIO(TEXT, newline=""), "x.csv")] == right
    (tmp_path / "x.csv").write_text(TEXT, encoding="utf-8", newline="")
    assert len(load_prompts(tmp_path / "x.csv")) == len(right) - 1
