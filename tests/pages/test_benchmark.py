from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from chromium import browser, executable
from click.testing import CliRunner

import robustclip.pages.benchmark as module
from robustclip import load_referee
from robustclip.attacks import AttackSpec
from robustclip.cli import app
from robustclip.data.images import save_image
from robustclip.errors import UsageError, coded
from robustclip.evaluation.ledger import exact
from robustclip.pages.benchmark import FILE, PAGE, SCHEMA, Entry, Leaderboard, benchmark, merged
from robustclip.referees.folder import save_referee
from robustclip.referees.toy import toy_referee
from robustclip.runs.processes import Place

ENTRY = Entry(
    *(SCHEMA, "toy", "a" * 64, "data", "b" * 64, "zero-shot", "top-1", "clean", ""),
    *(
        0.5,
        0.4,
        0.6,
        100,
        0,
        "all",
        "plain",
        "robustclip benchmark toy",
        "cpu",
        "float32",
        "0.1.0",
        "2.6",
        "2026-11-29",
    ),
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("referees") / "toy"
    save_referee(toy_referee(), folder)
    return str(folder)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two 16x16 pictures of each of five classes."""
    folder, drawn = tmp_path_factory.mktemp("data"), torch.Generator().manual_seed(0)
    for name in ("ant", "bee", "cat", "dog", "eel"):
        for number in range(2):
            save_image(torch.rand(3, 16, 16, generator=drawn), folder / name / f"{number}.png")
    return str(folder)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, drawn = tmp_path_factory.mktemp("captions"), torch.Generator().manual_seed(0)
    for number in range(3):
        save_image(torch.rand(3, 16, 16, generator=drawn), folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}\n")
    return str(folder)


@pytest.fixture(scope="module")
def measured(toy: str, labelled: str, tmp_path_factory: pytest.TempPathFactory) -> Leaderboard:
    """A quick benchmark of a referee, alone and defended."""
    out = tmp_path_factory.mktemp("out") / "all"
    names = [toy, f"{toy}~ttc"]
    return benchmark(names, data=labelled, parts=["accuracy", "corruptions", "saliency"], quick=True, out=out)


def test_every_row_says_how_it_was_measured(measured: Leaderboard, toy: str) -> None:
    weights = {exact(load_referee(name)) for name in (toy, f"{toy}~ttc")}

    assert {row.weights for row in measured.rows} == weights
    assert {row.n for row in measured.rows} == {8}
    assert all(row.low <= row.value <= row.high for row in measured.rows)
    assert {row.schema for row in measured.rows} == {SCHEMA}
    assert {row.task for row in measured.rows} == {"zero-shot", "corruptions", "maps"}
    [row] = [row for row in measured.rows if (row.referee, row.title) == ("toy", "top-1, linf:2/255@2")]
    assert row.threat == str(AttackSpec.parse("linf:2/255@2").threat(16))
    assert {row.attack for row in measured.rows if row.referee == "toy~ttc" and row.attack.startswith("static")}
    assert {row.referee for row in measured.rows if "static minus adaptive" in row.metric} == {"toy~ttc"}


def test_the_command_of_a_row_gives_the_row(measured: Leaderboard, tmp_path: Path) -> None:
    words = shlex.split(measured.rows[0].command)[1:]

    ran = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "again")], catch_exceptions=False)

    assert ran.exit_code == 0, ran.output
    again = Leaderboard.load(tmp_path / "again").rows
    assert again == [row for row in measured.rows if row.referee == "toy"]


def test_a_resumed_part_keeps_its_date_and_is_measured_again_on_other_images(
    toy: str, labelled: str, tmp_path: Path
) -> None:
    data = shutil.copytree(labelled, tmp_path / "data")
    call = partial(
        benchmark, [toy], data=str(data), parts=["corruptions"], quick=True, limit=None, out=tmp_path / "out"
    )
    [before] = {(row.n, row.samples) for row in call().rows}
    [cell] = (tmp_path / "out").glob("cells/*/evaluation.json")
    report = json.loads(cell.read_text())
    cell.write_text(json.dumps(report | {"setting": report["setting"] | {"date": "2026-01-02T03:04:05+00:00"}}))

    assert {row.date for row in call(resume=True).rows} == {"2026-01-02"}  # that of the measurement, which is kept

    save_image(torch.rand(3, 16, 16), data / "ant" / "new.png")

    [after] = {(row.n, row.samples) for row in call(resume=True).rows}

    assert (before[0], after[0]) == (10, 11)
    assert before[1] != after[1]


def test_l2_has_the_rms_of_linf(measured: Leaderboard) -> None:
    attacks = dict.fromkeys(row.attack for row in measured.rows if re.fullmatch(r"(l2|linf):\S+@2", row.attack))
    rms: dict[str, list[float]] = {"linf": [], "l2": []}
    for attack in attacks:
        spec = AttackSpec.parse(attack)
        rms[spec.norm].append(spec.threat(16).rms)

    assert rms["l2"] == pytest.approx([1 / 255, 2 / 255, 4 / 255], rel=1e-3)
    assert rms["linf"] == pytest.approx(rms["l2"], rel=1e-3)


def test_what_is_measured_is_kept_and_other_settings_are_not_mistaken_for_it(
    measured: Leaderboard, toy: str, labelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict] = []
    monkeypatch.setattr(module, "evaluate", lambda _, **how: asked.append(how))
    call = {"data": labelled, "quick": True, "out": measured.folder, "resume": True}

    again = benchmark([toy, f"{toy}~ttc"], parts=["accuracy", "corruptions", "saliency"], **call)
    assert again.rows == measured.rows
    assert not asked

    with pytest.raises(UsageError):  # the stub wrote no report
        benchmark([toy], parts=["corruptions"], seed=1, **call)
    assert [how["seed"] for how in asked] == [1]


def test_processes_share_the_parts_out(
    measured: Leaderboard, toy: str, labelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple] = []
    for rank in range(2):
        monkeypatch.setattr(module, "place", lambda rank=rank: Place(rank, 2))
        monkeypatch.setattr(module, "listed", lambda mine: kept.append(mine) or kept)
        board = benchmark(
            [toy, f"{toy}~ttc"],
            data=labelled,
            parts=["accuracy", "corruptions", "saliency"],
            quick=True,
            out=measured.folder,
            resume=True,
        )
    assert [sorted(found) for found, _ in kept] == [[0, 2, 4], [1, 3, 5]]
    assert board.rows == measured.rows


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("judges") / "judge"
    save_referee(toy_referee(seed=1, name="judge"), folder)
    return str(folder)


@pytest.fixture
def painting(another: str, tmp_path: Path) -> dict:
    return {
        "data": "emoji/unseen-styles",
        "parts": ["synthesis"],
        "judge": another,
        "quick": True,
        "out": tmp_path / "s",
    }


def test_synthesis_compares_the_guide_with_a_judge_that_guided_nothing(toy: str, painting: dict) -> None:
    board = benchmark([toy], **painting)

    rows = {row.metric: row for row in board.rows}
    judged = ["R-Precision@10 (judge judge)", "similarity (judge judge)", "cosine (judge judge)"]
    assert sorted(rows) == sorted([*judged, "similarity (guide)", "hacking (judges judge)"])
    assert [metric for metric, row in rows.items() if not row.is_shown] == ["cosine (judge judge)"]
    difference = rows["similarity (guide)"].value - rows["similarity (judge judge)"].value
    assert rows["hacking (judges judge)"].value == pytest.approx(difference, abs=1e-6)
    assert str(rows["hacking (judges judge)"]).startswith(f"{difference:.3f}")
    for row in board.rows:
        assert (row.n, row.weights, row.seed, row.threat) == (4, exact(load_referee(toy)), 0, "")
        assert row.low <= row.value <= row.high
    assert board.by_line()[1] == [row.title for row in board.rows if row.is_shown]
    assert board.folder is not None
    [record] = board.folder.glob("cells/*/pictures/run.json")
    arguments = json.loads(record.read_text())["arguments"]
    assert (arguments["augment"], arguments["seeds"]) == ("none", [0]), "of which seed is an alias"


def test_synthesis_goes_on_and_is_shared_out(
    toy: str, another: str, painting: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, painting["judge"] = [toy, f"{toy}~smooth:0.1x2"], another
    whole = benchmark(names, **painting)
    assert whole.folder is not None
    pictures = sorted(whole.folder.rglob("pictures/images/*.png"))
    assert len(pictures) == 8
    pictures[0].unlink()
    for file in whole.folder.glob("cells/*/evaluation.json"):
        file.unlink()
    before = {file: file.stat().st_mtime_ns for file in pictures[1:]}

    kept: list[tuple] = []
    for rank in range(2):
        monkeypatch.setattr(module, "place", lambda rank=rank: Place(rank, 2))
        monkeypatch.setattr(module, "listed", lambda mine: kept.append(mine) or kept)
        board = benchmark(names, **painting, resume=True)

    assert [sorted(found) for found, _ in kept] == [[0], [1]]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert board.rows == whole.rows
    monkeypatch.setattr(module, "paint", lambda *_: pytest.fail("painted again"))
    kept.clear()
    again = benchmark(names, **painting, resume=True)
    assert again.rows == [row for row in whole.rows if row.referee.endswith("~smooth:0.1x2")]


def test_a_judge_of_synthesis_is_no_referee(toy: str, another: str, painting: dict) -> None:
    with pytest.raises(UsageError, match="biased"):
        benchmark([toy, another], **painting)
    with pytest.raises(UsageError, match="biased"):
        benchmark(["emoji-judge-disjoint"], **painting | {"judge": None})
    assert not (painting["out"] / "cells").exists()


def test_a_merge_drops_repetitions_and_shows_other_numbers_side_by_side(tmp_path: Path) -> None:
    attacked = replace(ENTRY, attack="l2:1@2", value=0.2, low=0.1, high=0.3)
    other = replace(ENTRY, value=0.7, low=0.6, high=0.8, device="cuda", date="2026-12-01")
    Leaderboard([ENTRY, attacked]).save(tmp_path / "a")
    weights = replace(ENTRY, weights="c" * 64)
    Leaderboard([replace(ENTRY, command="another"), other, weights]).save(tmp_path / "b")

    board = benchmark([str(tmp_path / "a"), str(tmp_path / "b")], merge=True, out=tmp_path / "both")

    assert board.rows == Leaderboard.load(tmp_path / "both").rows == [ENTRY, attacked, other, weights]
    lines, titles = board.by_line()
    assert titles == ["top-1, clean", "top-1, l2:1@2"]
    assert [[line[title].value for title in titles if title in line] for line in lines] == [[0.5, 0.2], [0.7], [0.5]]
    page = (tmp_path / "both" / PAGE).read_text()
    assert "50.0 (40.0 to 60.0)" in page
    assert "70.0 (60.0 to 80.0)" in page
    assert merged([*board.rows, *board.rows]) == board.rows


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"schema": 2}, "other_schema"),
        ({"value": "high"}, "invalid_row"),
        ({"value": float("nan")}, "invalid_row"),
        ({"extra": 1}, "invalid_row"),
        ({"n": None}, "invalid_row"),
    ],
)
def test_rows_that_cannot_be_merged_are_refused(tmp_path: Path, changed: dict, code: str) -> None:
    Leaderboard([ENTRY]).save(tmp_path / "a")
    values = Leaderboard([ENTRY]).to_json()
    values["rows"][0] |= changed
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / FILE).write_text(json.dumps(values))

    with pytest.raises(UsageError) as caught:
        benchmark([str(tmp_path / "a"), str(tmp_path / "b")], merge=True, out=tmp_path / "both")

    assert caught.value.code == code
    assert str(tmp_path / "b") in str(caught.value)
    assert ("toy (schema 2)" in str(caught.value)) == (code == "other_schema")
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("content", [None, "[]", '{"rows": 3}'])
def test_a_folder_without_a_leaderboard_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(UsageError) as caught:
        Leaderboard.load(tmp_path)
    assert caught.value.code == "no_leaderboard"


def test_parts_that_the_data_lack_are_left_out_or_refused_if_asked_for(
    toy: str, captioned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("accuracy", "autoattack", "corruptions", "pag", "synthesis"):
        with pytest.raises(UsageError, match=part):
            benchmark([toy], data=captioned, parts=[part], quick=True, out=tmp_path / "no")
    assert not (tmp_path / "no").exists()

    board = benchmark([toy], data=captioned, quick=True, out=tmp_path / "some")

    assert {row.task for row in board.rows} == {"retrieval", "maps"}
    ways = {row.metric for row in board.rows if row.is_shown and row.task == "retrieval"}
    assert ways == {"image to text recall@1", "text to image recall@1"}
    noted = capsys.readouterr().err
    assert all(f"leaves out {part}" in noted for part in ("accuracy", "synthesis"))


def test_faulty_calls_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for call, check in (
        ({"referees": []}, coded("no_referee")),
        ({"referees": ["a", "a"]}, coded("given_twice", name="a")),
        ({"referees": ["a"], "merge": True, "resume": True, "out": tmp_path}, coded("merge_and_resume")),
        ({"referees": ["a"], "resume": True}, coded("no_folder")),
        ({"referees": ["a"], "out": tmp_path}, coded("not_empty")),
        (
            {"referees": ["nobody"], "data": "emoji/unseen-styles", "quick": True, "parts": ["corruptions"]},
            coded("unknown_referee", given="nobody"),
        ),
    ):
        with pytest.raises(UsageError, check=check):
            benchmark(**call)


def test_the_page_loads_nothing_and_escapes_names(tmp_path: Path) -> None:
    Leaderboard([replace(ENTRY, referee="<script>alert(1)</script>", command="--data '<b>'")]).save(tmp_path)
    page = (tmp_path / PAGE).read_text()

    assert "<script>alert" not in page
    assert "<b>" not in page
    assert not re.search(r"(src|href)=|https?://|url\(", page)
    assert "default-src 'none'" in page


@pytest.mark.skipif(executable() is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_a_column_sorts_the_page_and_what_was_not_measured_comes_last(tmp_path: Path) -> None:
    rows = [replace(ENTRY, referee=name, value=value) for name, value in (("b", 0.45), ("a", 0.6), ("c", 0.5))]
    Leaderboard([*rows, replace(ENTRY, referee="d", attack="l2:1@2")]).save(tmp_path)
    order = "[...document.querySelectorAll('tbody td:first-child')].map((cell) => cell.dataset.v).join('')"

    with browser(tmp_path / "profile") as running, running.page(tmp_path / PAGE) as page:
        found = [page.run(order)]
        for column in (1, 1, 0, 0):
            page.run(f"document.querySelectorAll('th button')[{column}].click()")
            found.append(page.run(order))
        assert page.complaints == []

    assert found == ["bacd", "acbd", "bcad", "dcba", "abcd"]
