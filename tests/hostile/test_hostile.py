"""Every hostile input ends in one clear sentence: no traceback, no hang, no great memory, no number, no touch."""

from __future__ import annotations

import json
import re
import resource
import shlex
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
import transformers.dynamic_module_utils

from robustclip.cli import main

from . import checkpoints, files, pictures, referees
from .cases import ALL
from .explain_cases import EXPLAIN, UNREADABLE
from .synthesis_cases import SYNTHESIS
from .things import MAKERS, PWNED

assert all((checkpoints, files, pictures, referees)), "they fill MAKERS"
SECONDS = 20  # for one input; each takes a fraction of one
MEMORY = 2 * 2**30  # bytes of address space that one input may ask for, beyond what the process has
LONGEST = 6000  # characters of a message


class Hangs(BaseException):
    """Not an Exception, so that nothing on the way takes it for a fault of the input."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, a registry and a cache of modules of its own, and no network."""
    monkeypatch.setenv("ROBUSTCLIP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def command_of(command: str | list[str], place: Path) -> list[str]:
    """The words of a command, its hostile things made."""
    made: dict[str, str] = {"out": str(place / "out")}

    def path_of(match: re.Match[str]) -> str:
        name = match[1]
        if name not in made:
            folder = place / "things" / name
            folder.mkdir(parents=True)
            made[name] = str(MAKERS[name](folder))
        return made[name]

    words = shlex.split(command) if isinstance(command, str) else command
    return [re.sub(r"\{(\w+)\}", path_of, word) for word in words]


@contextmanager
def bounded() -> Iterator[None]:
    """Within the block: few seconds, and no more than MEMORY."""

    def stop(*_: object) -> None:
        raise Hangs

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies in a folder: sizes and times of change by path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[path.relative_to(folder).as_posix()] = (status.st_size, status.st_mtime_ns)
    return found


def identity(case: object) -> str:
    text = case if isinstance(case, str) else " ".join(case) if isinstance(case, list) else ""
    return re.sub(r"[^\w{}.:@/=-]+", " ", text.encode("ascii", "backslashreplace").decode())[:70]


@pytest.mark.parametrize(("what", "command", "code", "words"), ALL + EXPLAIN + SYNTHESIS, ids=identity)
def test_it_ends_in_one_clear_sentence(
    what: str, command: str | list[str], code: int, words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what makes the things
        arguments = command_of(command, place)
    before = contents(place / "things") if (place / "things").exists() else {}
    with bounded(), pytest.raises(SystemExit) as ending:
        main(arguments)
    printed = capsys.readouterr()
    assert ending.value.code == code, printed.err
    assert words in printed.err
    assert "Traceback" not in printed.err
    assert not re.search(r"^robustclip: \w+(Error|Exception|Warning): ", printed.err, re.MULTILINE), "nobody foresaw it"
    assert len(printed.err) < LONGEST
    if arguments[:2] != ["referees", "verify"]:  # which tells what it found before it fails
        assert printed.out == "", "a number may stand there"
    after = contents(place / "things") if (place / "things").exists() else {}
    assert after == before, "what was given is left as it was"
    assert not list(place.rglob(PWNED)), "code of the input has run"
    assert not any((place / "work").iterdir())
    assert not (place / "home").exists()


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_explanation_goes_on_without_a_picture_that_is_none(name: str, place: Path) -> None:
    call = f"explain --referees {{toy}} --images {{data_{name}}} --texts cat --attack none --out {{out}}"
    with bounded(), pytest.raises(SystemExit) as ending:
        main(command_of(call, place))
    assert not ending.value.code
    told = json.loads((place / "out" / "explanation.json").read_text())
    assert told["pairs"]
    assert len(told["notes"]) == 1
    assert str(place) not in told["notes"][0]
    assert not list(place.rglob(PWNED))


def test_there_are_enough_of_them() -> None:
    assert len(ALL) >= 150
    commands = {" ".join(command) if isinstance(command, list) else command for _, command, _, _ in ALL}
    assert len(commands) == len(ALL), "each is tried once"


@pytest.mark.parametrize("word", ["demo", "robustify", "export", "evaluate", "referees", "doctor", "plan", "runs"])
def test_every_command_meets_some(word: str) -> None:
    commands = [shlex.split(command) if isinstance(command, str) else command for _, command, _, _ in ALL]
    assert sum(command[0] == word for command in commands) >= 3
