from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest
from rich.table import Table

from robustclip import printing
from robustclip.attacks.threat import ThreatModel
from robustclip.errors import RunError, coded
from robustclip.evaluation.claims import Verification
from robustclip.referees.card import Card, Claim
from robustclip.referees.registry import Entry, check_safe
from robustclip.runs import terminal

CLAIM = Claim("top-5", 0.25, 0.2, 0.3, 256, 0, "emoji/unseen-styles", "l2:1.5@20", date(2026, 1, 1).isoformat())


def test_numbers_have_four_digits(capsys: pytest.CaptureFixture[str]) -> None:
    printing.numbers({"clean_top_5": 0.123456, "steps": 12345678, "run": "runs/emoji-1"})
    assert capsys.readouterr().out == "clean top 5: 0.1235\nsteps: 12345678\nrun: runs/emoji-1\n"


def test_log_messages_are_lines_on_stderr_only_within_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("robustclip.referees.weights")
    with terminal.logged():
        log.info("a note \x1b[2J")
    log.info("unseen")
    assert capsys.readouterr().err == "a note \\x1b[2J\n"


def test_the_demo_ends_with_its_table_and_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    printing.demo({"table": Table("metric", title="zero-shot"), "summary": "It kept its names."})
    shown = capsys.readouterr().out
    assert "metric" in shown
    assert shown.endswith("\nIt kept its names.\n")


def test_referees_are_listed_with_what_they_are_robust_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = Card("mine", "toy", {}, {"size": [64, 64]}, 10.0, threat=ThreatModel("l2", 1.5, 64))
    card.save(tmp_path)
    printing.entries([Entry("mine", tmp_path, "registered"), Entry("lost", tmp_path / "gone", "registered")])
    shown = capsys.readouterr().out
    assert "L2 eps 1.5 at 64x64 (RMS 0.0135 = 3.45/255)" in shown, "in one line, though no terminal is that wide"
    assert "(broken: lost is registered as" in shown


@dataclass(frozen=True)
class Case:
    found: Verification
    said: str


@pytest.mark.parametrize(
    "case",
    [
        Case(Verification("r", {"w": True}, None), "w: as on the card\nr is what its card says\n"),
        Case(
            Verification("r", {"w": True}, True, CLAIM, 0.28),
            "w: as on the card\ntext tower: as on the card\n"
            "top-5 on emoji/unseen-styles, l2:1.5@20: claimed 0.25 (0.2 to 0.3, n = 256), measured 0.28\n"
            "r is what its card says\n",
        ),
    ],
    ids=["hashes", "and a claim"],
)
def test_a_verification_that_holds(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    printing.verification(case.found)
    assert capsys.readouterr().out == case.said


@pytest.mark.parametrize(
    "found",
    [
        Verification("r", {"w": False}, None),
        Verification("r", {"w": True}, False),
        Verification("r", {"w": True}, None, CLAIM, 0.1),
    ],
    ids=["another file", "another text tower", "another number"],
)
def test_a_verification_that_fails_is_a_fault_of_the_run(
    found: Verification, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, check=coded("other_than_card", name="r")):
        printing.verification(found)
    assert "what its card says" not in capsys.readouterr().out


def test_curves_are_bars_between_the_lowest_and_the_highest() -> None:
    assert printing.curve([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == "▁▂▃▄▅▆▇█"
    assert printing.curve([3.0]) == "▁"
    assert printing.curve([2.0, 2.0]) == "▁▁"
    assert printing.curve([0.0, 1.0] * 40) == "▁" * 40, "each bar is a mean of two"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (200_000, "2 days")],
)
def test_ages(seconds: float, text: str) -> None:
    assert printing.age(seconds) == text


def test_accuracies_of_the_probe_are_explained_where_there_are_any(capsys: pytest.CaptureFixture[str]) -> None:
    printing.trained({"weak_accuracy": 0.5, "strong_accuracy": 0.25})
    told = capsys.readouterr().out
    assert "weak accuracy: 0.5\n" in told
    assert "strong under PGD-20" in told
    assert "a fixed batch of training data" in told
    printing.trained({"loss": 0.5})
    assert "PGD" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "name"), [("my run", "my-run"), ("é", "mine"), (".tmp é", "tmp"), ("a" * 120, "a" * 100)]
)
def test_training_ends_with_the_export_of_its_run(
    folder: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / folder
    (run / "referee").mkdir(parents=True)
    printing.trained({"run": str(run)})
    line = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(line) == ["next:", "robustclip", "export", str(run), "--name", check_safe(name)]


def test_a_referee_that_was_added_is_checked_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printing.added(Entry("mine", tmp_path, "registered"))
    assert capsys.readouterr().out == "added mine\nnext: robustclip referees verify mine\n"


@pytest.mark.parametrize(("number", "text"), [(0, "0 pictures"), (1, "1 picture"), (5000, "5,000 pictures")])
def test_counts_agree_with_their_nouns(number: int, text: str) -> None:
    assert terminal.counted(number, "picture") == text
