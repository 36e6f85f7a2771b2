from __future__ import annotations

import errno
import json
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustclip.errors import Interrupted, RunError, UsageError, coded
from robustclip.evaluation import evaluate
from robustclip.evaluation.ledger import LEDGER_FILE, Ledger, exact
from robustclip.evaluation.zeroshot import Predictions
from robustclip.referees.toy import toy_referee
from robustclip.runs.files import LOCK
from robustclip.runs.processes import owning, terminable

SETTING = {"seed": 0, "data": "colours"}
FOUND = Predictions(torch.tensor([[1, 0], [0, 1]]), torch.tensor([1, 0]))


class Stopped(Exception):
    """What ends an evaluation in the middle."""


class Counting(nn.Module):
    """Mean colour, which counts its calls with gradients (an attack's) and stops at the one that is asked for."""

    def __init__(self, last: int | None = None) -> None:
        super().__init__()
        self.calls, self.last = 0, last

    def forward(self, images: Tensor) -> Tensor:
        self.calls += images.requires_grad
        if self.last is not None and self.calls > self.last:
            raise Stopped
        return images.mean((2, 3))


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    Ledger(tmp_path, SETTING).page("a", "w", "zero-shot", "l2:1@5").keep(0, ["x", "y"], FOUND)

    again = Ledger(tmp_path, SETTING)

    found = again.page("a", "w", "zero-shot", "l2:1@5").recall(0, ["y", "x"])
    assert found is not None
    assert found.ranks.tolist() == [0, 1]
    assert found.top.tolist() == [[0, 1], [1, 0]]
    for page in (again.page("b", "w", "zero-shot", "l2:1@5"), again.page("a", "v", "zero-shot", "l2:1@5")):
        assert page.recall(0, ["x"]) is None
    assert again.page("a", "w", "zero-shot", "l2:2@5").recall(0, ["x"]) is None
    assert again.page("a", "w", "zero-shot", "l2:1@5").recall(1, ["x"]) is None
    assert again.page("a", "w", "zero-shot", "l2:1@5").recall(0, ["x", "z"]) is None


@pytest.mark.parametrize("cut", [1, 20])
def test_a_line_that_was_cut_short_is_forgotten_and_the_next_stands_alone(tmp_path: Path, cut: int) -> None:
    page = Ledger(tmp_path, SETTING).page("a", "w", "zero-shot", "l2:1@5")
    page.keep(0, ["x", "y"], FOUND)
    path = tmp_path / LEDGER_FILE
    path.write_bytes(path.read_bytes()[:-cut])

    page = Ledger(tmp_path, SETTING).page("a", "w", "zero-shot", "l2:1@5")
    assert page.recall(0, ["x"]) is not None
    assert page.recall(0, ["x", "y"]) is None
    page.keep(0, ["x", "y"], FOUND)

    assert Ledger(tmp_path, SETTING).page("a", "w", "zero-shot", "l2:1@5").recall(0, ["x", "y"]) is not None
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_first_line_that_was_cut_short_begins_anew(tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).write_text('{"setting": {"se')

    Ledger(tmp_path, SETTING)

    assert json.loads((tmp_path / LEDGER_FILE).read_text())["setting"] == SETTING


def test_another_setting_is_refused_and_told(tmp_path: Path) -> None:
    Ledger(tmp_path, SETTING)

    with pytest.raises(UsageError, check=coded("other_setting", changes=["seed 0 then, 1 now"])):
        Ledger(tmp_path, SETTING | {"seed": 1})


@pytest.mark.parametrize("line", ["{", "[1]", '{"id": "x"}', '{"referee": "a", "weights": []}'])
def test_lines_that_are_none_are_refused(tmp_path: Path, line: str) -> None:
    Ledger(tmp_path, SETTING)
    with (tmp_path / LEDGER_FILE).open("a") as file:
        file.write(line + "\n")

    with pytest.raises(UsageError, check=lambda error: error.code in ("not_json", "not_an_outcome")):
        Ledger(tmp_path, SETTING)


def test_other_weights_or_another_scale_are_another_referee() -> None:
    first, other = toy_referee(size=8), toy_referee(size=8)
    assert exact(first) == exact(other)
    with torch.no_grad():
        next(other.image_tower.parameters()).view(-1)[0] += 1e-6  # less than half precision tells apart
    assert exact(first) != exact(other)
    scaled = toy_referee(size=8)
    scaled.logit_scale *= 2
    assert exact(first) != exact(scaled)


CALL = {"attack": ["l2:1.3@3x2", "l2:1.3@apgd-ce:4"], "batch_size": 1, "device": "cpu"}


@pytest.mark.parametrize("last", [0, 4, 10, 20, 24])
def test_an_evaluation_that_goes_on_is_one_that_never_stopped(
    colour_referee: Callable, colour_folder: Path, tmp_path: Path, last: int
) -> None:
    pytest.importorskip("torchattacks", reason="the evaluation extra is not installed")
    whole = Counting()
    expected = evaluate([colour_referee(tower=whole)], data=colour_folder, out=tmp_path / "whole", **CALL)
    options = CALL | {"data": colour_folder, "out": tmp_path / "out"}

    with pytest.raises(Stopped):
        evaluate([colour_referee(tower=Counting(last))], **options)
    with pytest.raises(UsageError, check=coded("interrupted")):
        evaluate([colour_referee()], **options)
    with pytest.raises(UsageError, check=coded("other_setting", changes=["seed 0 then, 5 now"])):
        evaluate([colour_referee()], **options, seed=5, resume=True)
    rest = Counting()
    found = evaluate([colour_referee(tower=rest)], **options, resume=True)

    assert found.rows == expected.rows
    assert found.predictions == expected.predictions
    # What was done of the batch that stopped is done again, 4 calls of 5 at most (APGD's, with one for its start).
    assert 0 <= rest.calls + last - whole.calls <= 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_an_attack_says_how_to_go_on_and_the_numbers_are_the_same(
    colour_referee: Callable, colour_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background inherits that it is ignored
    call = {"data": colour_folder, "attack": "l2:1.3@3x2", "batch_size": 1, "device": "cpu"}
    whole = evaluate([colour_referee()], out=tmp_path / "whole", **call)
    out = tmp_path / "out"

    class Struck(Counting):
        def forward(self, images: Tensor) -> Tensor:
            if self.calls == 8:
                signal.raise_signal(number)
            return super().forward(images)

    with (
        terminable(),
        pytest.raises(Interrupted, match=rf"saved in {out}: the same call with --resume continues") as told,
    ):
        evaluate([colour_referee(tower=Struck())], out=out, **call)
    assert told.value.signal == number
    assert not (out / LOCK).exists()
    found = evaluate([colour_referee()], out=out, resume=True, **call)
    assert (found.rows, found.predictions) == (whole.rows, whole.predictions)
    with terminable(), pytest.raises(Interrupted, match="nothing is saved, and the same call starts over"):
        evaluate([colour_referee(tower=Struck())], **call)


def test_two_evaluations_do_not_share_a_folder(colour_referee: Callable, colour_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with owning(out), pytest.raises(UsageError, check=coded("in_use", pid=os.getpid())):
        evaluate([colour_referee()], data=colour_folder, out=out, device="cpu")
    assert not out.exists()


def test_a_full_disk_does_not_cost_the_numbers(
    colour_referee: Callable, colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole = evaluate([colour_referee()], data=colour_folder, device="cpu")
    monkeypatch.setattr("robustclip.runs.files.os.fsync", refuse)
    (tmp_path / "spare").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spare"))
    for place in ({"out": tmp_path / "out"}, {"csv": tmp_path / "x.csv"}):
        with pytest.raises(RunError, check=coded("numbers_kept"), match=r"(predictions\.jsonl|x\.csv) could not be"):
            evaluate([colour_referee()], data=colour_folder, device="cpu", **place)
        (kept,) = (tmp_path / "spare").iterdir()
        assert json.loads(kept.read_text())["rows"] == whole.to_json()["rows"]
        kept.unlink()


def test_pictures_whose_names_are_not_utf8_are_told(
    colour_referee: Callable, colour_folder: Path, tmp_path: Path
) -> None:
    first = sorted(colour_folder.rglob("*.png"))[0]
    name = os.fsdecode(b"caf\xe9.png")
    first.rename(first.with_name(name))
    options = {"data": colour_folder, "device": "cpu", "attack": "l2:1.3@3"}
    found = evaluate([colour_referee()], out=tmp_path / "out", csv=tmp_path / "x.csv", **options)
    answers = list(map(json.loads, (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()))
    assert answers == found.predictions
    assert any(name in answer["id"] for answer in answers)
    (tmp_path / "out" / "evaluation.json").unlink()
    again = evaluate([colour_referee(tower=Counting(0))], out=tmp_path / "out", resume=True, **options)
    assert again.rows == found.rows, "all of it was found in the ledger"


def test_resume_begins_where_there_is_nothing(colour_referee: Callable, colour_folder: Path, tmp_path: Path) -> None:
    options = {"data": colour_folder, "attack": "l2:1.3@3", "device": "cpu"}

    evaluate([colour_referee()], **options, out=tmp_path / "out", resume=True)

    assert (tmp_path / "out" / LEDGER_FILE).is_file()
    with pytest.raises(UsageError, check=coded("no_folder")):
        evaluate([colour_referee()], **options, resume=True)
    with pytest.raises(UsageError, check=coded("already_done")):
        evaluate([colour_referee()], **options, out=tmp_path / "out", resume=True)
