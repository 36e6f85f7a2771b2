"""A hub out of reach is asked once, and said."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import pytest

from robustclip.errors import RunError, UsageError, coded
from robustclip.referees.registry import load_referee
from robustclip.runs.hub import reading_hub


@dataclass
class Closed:
    """A port that breaks off each connection, but for the first ones, which it `answers`."""

    server: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    connections: int = 0
    answers: int = 0

    def run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                self.connections += 1
                if self.connections <= self.answers:
                    connection.recv(2**16)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                connection.close()


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Closed]:
    monkeypatch.setenv("ROBUSTCLIP_HOME", str(tmp_path / "home"))
    port = Closed()
    thread = threading.Thread(target=port.run)
    thread.start()
    for name, value in {
        "ENDPOINT": f"http://127.0.0.1:{port.server.getsockname()[1]}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    yield port
    port.server.shutdown(socket.SHUT_RDWR)
    port.server.close()
    thread.join()


@pytest.mark.parametrize(
    "name",
    [
        "robust-clip:simclip4-vit-l-14",
        "robust-clip:leaf-vit-l-14-fare2",
        "robust-clip:fare4-vit-l-14",
        "hf-hub:no-such-owner/no-such-clip",
        "ViT-B-32:laion2b_s34b_b79k",
        "ViT-B-32:openai",
    ],
)
def test_a_referee_out_of_reach_is_asked_for_once(
    name: str, closed: Closed, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RunError, match=r"cannot be reached.*HF_HOME", check=lambda error: error.code == "unreachable"):
        load_referee(name)
    assert closed.connections == 1
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert logging.root.manager.disable == logging.NOTSET


def test_a_connection_that_breaks_off_after_the_first_answer(closed: Closed) -> None:
    closed.answers = 1
    with pytest.raises(RunError, check=coded("unreachable", what="a file")), reading_hub("a file", "give it"):
        huggingface_hub.get_session().get(f"{huggingface_hub.constants.ENDPOINT}/file")
    assert closed.connections == 2


def test_files_in_the_cache_are_read_without_the_hub(closed: Closed, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--a--b"
    (repository / "snapshots" / "0").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0")
    (repository / "snapshots" / "0" / "file").write_text("x")
    with reading_hub("a file", "copy it"):
        path = huggingface_hub.hf_hub_download("a/b", "file", cache_dir=tmp_path / "hub")
    assert Path(path).read_text() == "x"
    assert closed.connections == 1


def test_what_is_local_or_offline_asks_nobody(closed: Closed, monkeypatch: pytest.MonkeyPatch) -> None:
    with reading_hub("a file", "copy it", ask=False):
        assert not huggingface_hub.constants.HF_HUB_OFFLINE
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with reading_hub("a file", "copy it"):
        assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert closed.connections == 0


def test_other_errors_of_this_package_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="no such flag"), reading_hub("a file", "copy it"):
        raise UsageError("no such flag")
