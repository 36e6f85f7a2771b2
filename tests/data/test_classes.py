"""The classes of a training set: the names, and the numbers that its batches carry."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustclip.data.images import save_image
from robustclip.data.sources import open_data, training_classes
from robustclip.errors import UsageError, coded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures of turtles and one of a house, with names of their own."""
    for name in ("n01/a.png", "n01/b.png", "n02/c.png"):
        save_image(torch.rand(3, 8, 8), tmp_path / name)
    (tmp_path / "classnames.txt").write_text("green turtle\nhouse\n")
    return tmp_path


def test_a_folders_classes_have_the_numbers_of_its_pairs(folder: Path) -> None:
    names, ids = training_classes(str(folder))
    batch = next(open_data(str(folder), batch_size=3, size=8).batches())
    assert names == ["green turtle", "house"]
    for caption, positive in zip(batch.captions, batch.positives.tolist(), strict=True):
        assert names[ids.index(positive)] in caption


def test_the_embedded_classes_have_the_numbers_of_their_pairs() -> None:
    names, ids = training_classes("emoji")
    batch = next(open_data("emoji", batch_size=16, size=32, shuffle_buffer=50).batches())
    assert len(names) == len(set(ids)) > 1000
    assert set(batch.positives.tolist()) <= set(ids)


@pytest.mark.parametrize("data", ["cc3m/{00000..00331}.tar", "pairs.csv"])
def test_data_without_classes(data: str) -> None:
    with pytest.raises(UsageError, check=coded("no_classes", data=data)):
        training_classes(data)


def test_one_class_is_no_question(folder: Path) -> None:
    for path in (folder / "n02").iterdir():
        path.unlink()
    with pytest.raises(UsageError, check=coded("single_class", name="green turtle")):
        training_classes(str(folder))
