from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from robustclip.data.loader import Loader, Preparation
from robustclip.data.mixture import Mixture
from robustclip.data.tables import FolderSource, TableSource
from robustclip.errors import Fault, UsageError, coded


@pytest.fixture
def pictures(tmp_path, encode) -> Path:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(encode(number))
    return tmp_path


def table(folder: Path, text: str, name: str = "pairs.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pairs.csv", 'path,caption\n0.jpg,a dog\n1.jpg,"a cat, asleep"\n'),
        ("pairs.tsv", "filepath\ttitle\n0.jpg\ta dog\n1.jpg\ta cat, asleep\n"),
        ("pairs.csv", "id;Image;Caption\n7;0.jpg;a dog\n8;1.jpg;a cat, asleep\n"),
        ("pairs.csv", "\ufeffpath|text\r\n0.jpg| a dog \r\n\r\n1.jpg|a cat, asleep\r\n"),
    ],
)
def test_columns_and_separator_are_found(pictures, name: str, text: str) -> None:
    samples = TableSource(table(pictures, text, name)).samples
    assert [(sample.image, sample.captions) for sample in samples] == [
        (pictures / "0.jpg", ("a dog",)),
        (pictures / "1.jpg", ("a cat, asleep",)),
    ]


def test_columns_and_separator_can_be_named(pictures) -> None:
    path = table(pictures, "path:photo:caption:alt\nx:0.jpg:y:a dog\n")
    source = TableSource(path, image_column="photo", caption_column="alt", separator=":")
    assert [(sample.image, sample.captions) for sample in source.samples] == [(pictures / "0.jpg", ("a dog",))]


def test_rows_that_cannot_be_used_are_counted(pictures) -> None:
    rows = "0.jpg,a dog\nnone.jpg,gone\n1.jpg,\n,no path\n2.jpg,\npairs.csv,not a picture\n3.jpg,a cat\n"
    mixture = Mixture([TableSource(table(pictures, f"path,caption\n{rows}"))])
    loader = Loader(mixture, Preparation(8), batch_size=1)
    batches = list(islice(loader.batches(), 20))
    assert {batch.captions[0] for batch in batches} == {"a dog", "a cat"}
    epochs = {Fault.NO_FILE: 1, Fault.NO_CAPTION: 2, Fault.NO_IMAGE: 1, Fault.NOT_AN_IMAGE: 1}
    assert set(loader.faults) == set(epochs)
    assert all(9 * count <= loader.faults[kind] <= 10 * count for kind, count in epochs.items())
    assert loader.examples["image file missing"] == "pairs/line-3"


def test_a_table_is_shuffled_by_seed_and_epoch(pictures) -> None:
    source = TableSource(table(pictures, "path,caption\n" + "".join(f"{n}.jpg,caption\n" for n in range(30))))

    def order(seed: int, epoch: int) -> list[str]:
        return [sample.key for sample in source.epoch(seed, epoch)]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert sorted(order(0, 0)) == sorted(f"line-{number}" for number in range(2, 32))
    assert source.size() == 30


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("path,label\n0.jpg,a dog\n", coded("no_column", what="caption", columns=["path", "label"])),
        ("url,caption\n0.jpg,a dog\n", coded("no_column", what="image", columns=["url", "caption"])),
        ("path,caption\n", coded("no_rows")),
        ("", coded("empty")),
        ("path,caption\n0.jpg," + "x" * 200_000, coded("not_a_row", line=2)),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text: str, check) -> None:
    with pytest.raises(UsageError, check=check):
        TableSource(table(tmp_path, text))


def test_tables_that_cannot_be_read_are_refused(tmp_path) -> None:
    with pytest.raises(UsageError, check=coded("missing_file", path=tmp_path / "none.csv")):
        TableSource(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("path,caption\n0.jpg,café\n".encode("latin-1"))
    with pytest.raises(UsageError, check=coded("not_utf8", line=2)):
        TableSource(tmp_path / "latin.csv")
    path = table(tmp_path, "path,caption\n0.jpg,a dog\n")
    with pytest.raises(UsageError, match="no caption column 'alt'"):
        TableSource(path, caption_column="alt")
    with pytest.raises(UsageError, check=coded("not_a_separator", separator="::")):
        TableSource(path, separator="::")


@pytest.fixture
def classes(tmp_path, encode) -> Path:
    for name, count in (("golden_retriever", 3), ("cat", 2)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "pets" / name / f"{number}.PNG").write_bytes(encode(number, form="PNG"))
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not a picture")
    return tmp_path / "pets"


def test_an_image_folder_makes_captions_of_class_names(classes) -> None:
    source = FolderSource(classes, templates=("a photo of a {}.", "my {}"))
    assert source.size() == 5
    captions = {sample.concept: sample.captions for sample in source.samples}
    assert captions == {
        "cat": ("a photo of a cat.", "my cat"),
        "golden_retriever": ("a photo of a golden retriever.", "my golden retriever"),
    }
    (batch,) = islice(Loader(Mixture([source]), Preparation(8), batch_size=5).batches(), 1)
    ids = {name.split("/")[1]: positive for name, positive in zip(batch.ids, batch.positives.tolist(), strict=True)}
    assert len(set(batch.positives.tolist())) == len(ids) == 2


def test_class_names_can_be_listed(classes) -> None:
    (classes / "classnames.txt").write_text("tabby\nretriever\n")
    assert [name for name, _ in FolderSource(classes).classes] == ["tabby", "retriever"]
    (classes / "classnames.txt").write_text("tabby\n")
    with pytest.raises(UsageError, check=coded("unequal_counts", names=1, folders=2)):
        FolderSource(classes)


def test_what_is_no_image_folder_is_refused(tmp_path, classes) -> None:
    with pytest.raises(UsageError, check=coded("missing_folder", path=tmp_path / "none")):
        FolderSource(tmp_path / "none")
    with pytest.raises(
        UsageError,
        check=coded("no_labels", pictures=2),
    ):
        FolderSource(classes / "cat")
    with pytest.raises(UsageError, check=coded("not_templates")):
        FolderSource(classes, templates=("a photo",))


def test_both_describe_themselves_in_json(pictures, classes) -> None:
    path = table(pictures, "path,caption\n0.jpg,a dog\n")
    assert json.loads(json.dumps(TableSource(path).describe()))["samples"] == 1
    assert json.loads(json.dumps(FolderSource(classes).describe()))["classes"] == 2
