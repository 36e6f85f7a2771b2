"""Checkpoints: what is kept, what is read again, and what a damaged one or a full disk does."""

from __future__ import annotations

import errno
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustclip.errors import RunError, coded
from robustclip.runs import checkpoint


def state(value: float, size: int = 1000) -> dict[str, Any]:
    return {"tower": {"weight": torch.full((size,), float(value))}, "data": {"epoch": 1}, "best": 0.5}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """What a full disk does to a writer: an OSError in the middle of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    told: list[str] = []
    return checkpoint.newest(folder, "cpu", told.append), told


def test_checkpoints_come_back_and_old_ones_go(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        path = checkpoint.save(tmp_path, step, state(step), keep=2)
        assert checkpoint.step_of(path) == step
    assert names(tmp_path) == ["checkpoint-00000002.pt", "checkpoint-00000010.pt"]
    found = checkpoint.load(checkpoint.checkpoints(tmp_path)[-1])
    assert found["step"] == 10
    assert found["tower"]["weight"][0] == 10
    assert found["data"] == {"epoch": 1}


def test_the_best_one_is_kept_whatever_comes_after(tmp_path: Path) -> None:
    assert checkpoint.best(tmp_path) is None
    checkpoint.save_best(tmp_path, 1, state(1))
    for step in range(2, 5):
        checkpoint.save(tmp_path, step, state(step), keep=1)
    assert names(tmp_path) == ["best-00000001.pt", "checkpoint-00000004.pt"]
    checkpoint.save_best(tmp_path, 4, state(4))
    assert names(tmp_path) == ["best-00000004.pt", "checkpoint-00000004.pt"]
    assert checkpoint.best(tmp_path) == tmp_path / "best-00000004.pt"


def test_nothing_is_no_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere") == (None, [])


def test_a_draft_is_what_a_killed_writer_leaves(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1))
    (tmp_path / ".checkpoint-00000002.pt.1a2b3c4d.tmp").write_bytes(b"PK half of it")
    found, told = newest(tmp_path)
    assert (found is not None, told) == (True, [])
    assert names(tmp_path) == ["checkpoint-00000001.pt"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:600])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((8,), 3.0).numpy().tobytes()) + 40] ^= 1  # inside the weights
    path.write_bytes(bytes(content))


def fill_with_text(path: Path) -> None:
    path.write_text("abc" * 100)


def fill_with_code(path: Path) -> None:
    torch.save({"step": 3, "tower": nn.Linear(1, 1)}, path)


def fill_with_other_tensors(path: Path) -> None:
    torch.save([torch.zeros(3)], path)


@pytest.mark.parametrize(
    "damage",
    [cut, empty, flip_a_bit, fill_with_text, fill_with_code, fill_with_other_tensors],
    ids=lambda f: f.__name__,
)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(tmp_path: Path, damage: Any) -> None:
    for step in (1, 2, 3):
        path = checkpoint.save(tmp_path, step, state(step), keep=3)
    damage(path)
    with pytest.raises(RunError, check=coded("not_a_checkpoint", path=path)):
        checkpoint.load(path)
    found, told = newest(tmp_path)
    assert found is not None
    assert found["step"] == 2
    assert len(told) == 1
    assert re.search(r"checkpoint-00000003\.pt is not a readable checkpoint .*; resuming from the one before", told[0])
    checkpoint.save(tmp_path, 3, state(3), keep=2)
    assert newest(tmp_path)[1] == []
    assert names(tmp_path) == ["checkpoint-00000002.pt", "checkpoint-00000003.pt"]


def test_a_damaged_checkpoint_of_a_later_step_goes_when_the_next_is_written(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        path = checkpoint.save(tmp_path, step, state(step), keep=3)
    cut(path)
    checkpoint.save(tmp_path, 12, state(12), keep=2)  # checkpoints come more often after the resume
    assert names(tmp_path) == ["checkpoint-00000010.pt", "checkpoint-00000012.pt"]


def test_the_best_one_helps_out(tmp_path: Path) -> None:
    checkpoint.save_best(tmp_path, 1, state(1))
    cut(checkpoint.save(tmp_path, 2, state(2)))
    found, told = newest(tmp_path)
    assert found is not None
    assert (found["step"], len(told)) == (1, 1)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again_by_itself(tmp_path: Path) -> None:
    for step in (1, 2):
        cut(checkpoint.save(tmp_path, step, state(step)))
    with pytest.raises(RunError, check=coded("no_checkpoints", folder=tmp_path, count=2)):
        newest(tmp_path)


def test_a_disk_that_fails_says_nothing_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint.save(tmp_path, 1, state(1))

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint.zipfile, "ZipFile", fails)
    with pytest.raises(RunError, check=coded("not_readable", path=path)):
        newest(tmp_path)


@pytest.mark.parametrize("save", [checkpoint.save, checkpoint.save_best], ids=lambda function: function.__name__)
def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, save: Any) -> None:
    folder = tmp_path / "run" / "checkpoints"
    with no_file_larger_than(20_000), pytest.raises(RunError, check=coded("not_written", last=None)):
        save(folder, 1, state(1, size=100_000))
    good = checkpoint.save(folder, 1, state(1))
    with no_file_larger_than(20_000), pytest.raises(RunError) as error:
        save(folder, 2, state(2, size=100_000), **({"keep": 1} if save is checkpoint.save else {}))
    told = str(error.value)
    assert "00000002.pt could not be written (File too large): the last good one is " + str(good) in told
    assert told.endswith(f"then resume with --resume {folder.parent}")
    assert names(folder) == ["checkpoint-00000001.pt"]
    assert newest(folder)[0] is not None


def test_what_cannot_be_saved_is_no_full_disk(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"pickle|local object"):
        checkpoint.save(tmp_path, 1, {"tower": lambda: None})
    assert names(tmp_path) == []
