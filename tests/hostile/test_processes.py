"""A sample of the hostile inputs as a user meets them: real processes, with bounds on time and memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from .cases import ALL, ENDLESS, NOT_UTF8, Case
from .test_hostile import command_of
from .things import PWNED

SECONDS = 120  # a process takes seconds where the machine is not busy
RESIDENT = 1500  # megabytes: torch and transformers alone take several hundred


def case(name: str) -> Case:
    """The first case of the table whose command names this thing."""
    return next(
        found for found in ALL if f"{{{name}}}" in (found[1] if isinstance(found[1], str) else " ".join(found[1]))
    )


def run(arguments: list[str], place: Path) -> tuple[int, str, str, float]:
    """Exit code, stdout, stderr and peak memory in megabytes of a command."""
    environment = os.environ | {
        "ROBUSTCLIP_HOME": str(place / "home"),
        "HF_MODULES_CACHE": str(place / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    (place / "work").mkdir()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        command = [sys.executable, "-m", "robustclip", *(os.fsencode(word) for word in arguments)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, cwd=place / "work"
        )
        deadline, megabytes = time.monotonic() + SECONDS, 0.0
        while process.poll() is None:
            megabytes = max(megabytes, peak(process.pid))
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                pytest.fail(f"{arguments} hangs")
            time.sleep(0.02)
        out.seek(0)
        err.seek(0)
        return process.returncode, out.read().decode(), err.read().decode(), megabytes


def peak(pid: int) -> float:
    """The most memory that a process has had, in megabytes; 0 for one that is gone. (What wait4 tells begins with the
    memory of the process that forked it.)"""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


SAMPLE = ["data_pipe", "pickle_payload"]
REST = [
    "card_is_zeros",
    "card_deep",
    "card_hash_wrong",
    "weights_claim_10_tb",
    "pickle_zip_bomb",
    "pickle_legacy_claim",
    "open_clip_remote_code",
    "transformers_remote_code",
    "shards_gzip_bomb",
    "recipe_exits",
]


@pytest.mark.parametrize("name", [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_a_process_ends_in_one_clear_sentence(name: str, tmp_path: Path) -> None:
    _, command, code, words = case(name)
    found, out, err, megabytes = run(command_of(command, tmp_path), tmp_path)
    assert (found, out) == (code, ""), err
    assert words in err
    assert "Traceback" not in err
    assert 0 < megabytes < RESIDENT
    assert not list(tmp_path.rglob(PWNED))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", NOT_UTF8], "is not UTF-8"),
        (["robustify", ENDLESS], "unknown recipe"),
        (["referees", "show", NOT_UTF8], "is not UTF-8"),
    ],
    ids=["a name of the byte 255", "a name of 5000 letters", "a card's name of the byte 255"],
)
def test_what_only_a_shell_can_pass(arguments: list[str], words: str, tmp_path: Path) -> None:
    code, out, err, _ = run(arguments, tmp_path)
    assert (code, out) == (2, "")
    assert words in err
