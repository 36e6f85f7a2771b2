from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustclip.errors import UsageError
from robustclip.files import (
    atomic_write,
    check_writable,
    new_folder,
    read_bytes,
    read_json,
    read_lines,
    read_text,
    sha256,
    write_json,
)


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.bin"
    with atomic_write(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_write(path, "w") as file:
            file.write("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "atomic"):
        pass
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(os.name == "nt", reason="no modes there")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_new_folders_follow_the_umask(umask: int, tmp_path: Path) -> None:
    """Whoever wrote the files: safetensors writes them for their owner alone."""
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "one") as draft:
            (draft / "inner").mkdir()
            save_file({"a": torch.ones(1)}, draft / "inner" / "a.safetensors")
            (draft / "b.json").write_text("{}")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in [tmp_path / "one", *(tmp_path / "one").rglob("*")]}
    assert modes == {"one": 0o777 & ~umask, "inner": 0o777 & ~umask} | dict.fromkeys(
        ("a.safetensors", "b.json"), 0o666 & ~umask
    )


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"robust")
    assert sha256(tmp_path / "file") == hashlib.sha256(b"robust").hexdigest()


def test_json_is_readable_and_strict(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"label": "épée", "loss": 1.5})
    assert json.loads(path.read_text(encoding="utf-8")) == {"label": "épée", "loss": 1.5}
    assert "épée" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8"))["loss"] == 1.5


def test_nothing_takes_the_place_of_a_device_or_a_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # not /dev/null: this test must not be what replaces it
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "pipe", tmp_path / "folder"):
        with pytest.raises(UsageError, match="is not a file, and is not replaced by one"), atomic_write(place):
            pass


def test_only_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "ten").write_bytes(b"0123456789")
    assert read_bytes(tmp_path / "ten", 10) == b"0123456789"
    with pytest.raises(UsageError, match="has 10 bytes, more than the 9"):
        read_bytes(tmp_path / "ten", 9)
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: a plain open would wait for ever
    for place in ("/dev/zero", str(tmp_path / "pipe")):
        with pytest.raises(UsageError, match="is a device or a pipe, not a file"):
            read_bytes(place, 10)
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_bytes(tmp_path, 10)


def test_texts_are_utf8_and_their_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffcafé\u2028au lait \r\n\n tea\x85\x0b\n\n".encode())
    assert read_lines(path) == ["café\u2028au lait", "", "tea"]
    path.write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_text(path)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "1" * 5000])
def test_json_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError, match=r"x.json is not JSON"):
        read_json(tmp_path / "x.json")


def test_a_place_that_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_writable(tmp_path / "new" / "deep" / "file")
    check_writable(tmp_path / "file")
    check_writable(tmp_path, folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for place, is_folder, message in (
        (tmp_path, False, "is not a file"),
        (tmp_path / "file", True, "is not a folder"),
        (tmp_path / "file" / "x", False, "cannot be written"),
        (tmp_path / ("x" * 300), False, "File name too long"),
        (Path("/proc/nothing/x"), True, "cannot be written"),
    ):
        with pytest.raises(UsageError, match=message):
            check_writable(place, folder=is_folder)
