from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustclip.data.images import save_image
from robustclip.errors import RunError, UsageError, coded
from robustclip.runs.files import (
    atomic_write,
    check_new_file,
    check_new_folder,
    check_writable,
    clashes,
    new_folder,
    read_bytes,
    read_json,
    read_lines,
    read_text,
    rescuing,
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


@pytest.mark.parametrize("name", ["j" * 255, "名" * 85])
def test_the_longest_names_of_a_file_system_are_written(name: str, tmp_path: Path) -> None:
    check_writable(tmp_path / name)
    write_json(tmp_path / name, [1])
    assert read_json(tmp_path / name) == [1]
    with new_folder(tmp_path / "in" / name) as draft:
        (draft / "file").touch()
    assert [path.name for path in (tmp_path / "in" / name).iterdir()] == ["file"]


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
        with pytest.raises(UsageError, check=coded("not_a_file", path=place)), atomic_write(place):
            pass


def test_only_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "ten").write_bytes(b"0123456789")
    assert read_bytes(tmp_path / "ten", 10) == b"0123456789"
    with pytest.raises(UsageError, check=coded("too_large", size=10, limit=9)):
        read_bytes(tmp_path / "ten", 9)
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: a plain open would wait for ever
    for place in ("/dev/zero", str(tmp_path / "pipe")):
        with pytest.raises(UsageError, check=coded("not_a_file", path=place)):
            read_bytes(place, 10)
    with pytest.raises(UsageError, check=coded("not_readable", path=tmp_path)):
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
    for place, is_folder, code in (
        (tmp_path, False, "not_a_file"),
        (tmp_path / "file", True, "not_a_folder"),
        (tmp_path / "file" / "x", False, "not_writable"),
        (tmp_path / ("x" * 300), False, "not_writable"),
        (Path("/proc/nothing/x"), True, "not_writable"),
    ):
        with pytest.raises(UsageError, check=coded(code, path=place)):
            check_writable(place, folder=is_folder)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full: what is written is refused when it is to reach it."""

    def refuse(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("robustclip.runs.files.os.fsync", refuse)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Within the block the system refuses larger files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_fault_that_names_the_file(tmp_path: Path, full: None) -> None:
    path = tmp_path / "new" / "numbers.json"
    with pytest.raises(RunError, check=coded("not_written", path=path, reason="No space left on device")):
        write_json(path, {})
    assert list(path.parent.iterdir()) == []


def test_what_libraries_make_of_a_full_disk_names_the_file_too(tmp_path: Path) -> None:
    def torchs() -> None:
        with atomic_write(tmp_path / "x.pt") as file:
            torch.save(torch.zeros(100_000), file)

    def safetensors_() -> None:
        with new_folder(tmp_path / "x") as folder:
            save_file({"a": torch.zeros(100_000)}, folder / "a.safetensors")

    def pils() -> None:
        save_image(torch.rand(3, 200, 200), tmp_path / "x.png")

    for write, name in ((torchs, "x.pt"), (safetensors_, "x"), (pils, "x.png")):
        with (
            pytest.raises(RunError, check=coded("not_written", path=tmp_path / name, reason="File too large")),
            files_of_at_most(10_000),
        ):
            write()
    assert list(tmp_path.iterdir()) == []


def test_errors_that_are_not_the_disks_stay_what_they_are(tmp_path: Path) -> None:
    for error in (ValueError("odd"), FileNotFoundError(errno.ENOENT, "none", "/elsewhere/input"), KeyError("x")):
        with pytest.raises(type(error)) as raised, atomic_write(tmp_path / "x"):
            raise error
        assert raised.value is error


def test_numbers_that_cannot_be_written_are_kept(tmp_path: Path, full: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RunError, check=coded("not_written", path=tmp_path / "x.json")) as raised:  # noqa: SIM117
        with rescuing(lambda: {"top-1": 0.5, "bad": math.nan}):
            write_json(tmp_path / "x.json", {})
    (kept,) = tmp_path.glob("robustclip-*.json")
    assert str(raised.value).endswith(str(kept))
    assert json.loads(kept.read_text()) == {"top-1": 0.5, "bad": None}


def test_numbers_that_no_disk_takes_are_printed(
    tmp_path: Path, full: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(RunError, check=coded("numbers_kept")), rescuing(lambda: {"top-1": 0.5}):
        write_json(tmp_path / "x.json", {})
    assert json.loads(capsys.readouterr().err) == {"top-1": 0.5}


def test_names_that_are_not_utf8_are_written_and_come_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    write_json(tmp_path / "x.json", {"file": name})
    assert read_json(tmp_path / "x.json") == {"file": name}
    with atomic_write(tmp_path / "x.txt", "w") as file:
        file.write(name)
    assert (tmp_path / "x.txt").read_text() == r"caf\udce9.png"


def test_files_that_are_there_are_replaced_when_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.csv").touch()
    (tmp_path / "x-1.csv").touch()
    with pytest.raises(
        UsageError, match="--overwrite", check=coded("exists", path=tmp_path / "x.csv", free=tmp_path / "x-2.csv")
    ):
        check_new_file(tmp_path / "x.csv")
    check_new_file(tmp_path / "x.csv", overwrite=True)
    check_new_file(tmp_path / "y.csv")
    (tmp_path / "link").symlink_to("nowhere")
    for place in (tmp_path / "link", tmp_path):
        with pytest.raises(UsageError, check=lambda error: error.code in ("exists", "not_a_file")):
            check_new_file(place)
        with pytest.raises(UsageError, check=lambda error: error.code in ("exists", "not_a_folder")):
            check_new_folder(place)


def test_outputs_of_one_call_do_not_meet(tmp_path: Path) -> None:
    assert not list(clashes({"--out": tmp_path / "a", "--json": tmp_path / "ab", "--csv": None}))
    (tmp_path / "link").symlink_to("a")
    for one, other in (("x", "./x"), ("a/report.html", "a"), ("link/x.json", "a"), ("a/../b", "b")):
        found = list(clashes({"--json": tmp_path / one, "--out": tmp_path / other}))
        assert len(found) == 1, (one, other)
        assert "--json" in found[0]
        assert "--out" in found[0]
