from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from robustclip.files import atomic_write, sha256, write_json


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
