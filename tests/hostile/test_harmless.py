"""What looks hostile and is not must work, and give the number that it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from robustclip import load_referee
from robustclip.cli import main
from robustclip.data.images import decode, from_pil

from .pictures import sample, shards
from .referees import card_with, referee, toy_weights

TEN_THOUSAND = "wörter " * 10_000
STRANGE = [
    "💣👩‍👩‍👧‍👦 bomb",
    "أهلا وسهلا",
    "\u202eturned\u202c",
    "[/bold]",
    "{}",
    "two\u2028lines",
    "a\x00b",
    "'; DROP TABLE labels; --",
    "$(rm -rf /)",
    "../../etc/passwd",
    TEN_THOUSAND.strip(),
    "x" * 100_000,
]
"""Names of classes: emoji, right-to-left text, separators that are no ends of lines, ten thousand words."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUSTCLIP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(place: Path, *arguments: str) -> list[dict[str, Any]]:
    """The rows of an evaluation."""
    with pytest.raises(SystemExit) as ending:
        main(["evaluate", *arguments, "--json", str(place / "numbers.json")])
    assert not ending.value.code
    rows: list[dict[str, Any]] = json.loads((place / "numbers.json").read_text())["rows"]
    return rows


def colours(count: int) -> list[tuple[str, bytes]]:
    """A picture of its own colour for each of `count` labels, and the label."""
    found = []
    for label in range(count):
        members = dict(sample(f"{label:02}", str(label).encode()))
        shade = Image.new("RGB", (16, 16), (20 * label % 256, 255 - 20 * label % 256, 7 * label % 256))
        shade.save(Path(f"{label}.png"))
        members[f"{label:02}.png"] = Path(f"{label}.png").read_bytes()
        found += [(name, content) for name, content in members.items() if not name.endswith(".txt")]
    return found


def pictures(count: int) -> Tensor:
    return torch.stack([from_pil(decode(Path(f"{label}.png"))) for label in range(count)])


def test_strange_names_of_classes_give_the_number_that_a_pencil_gives(place: Path) -> None:
    names = "\n".join(STRANGE) + "\n"
    (place / "data").mkdir()
    (place / "toy").mkdir()
    folder = shards(colours(len(STRANGE)), names)(place / "data")
    toy = referee(place / "toy")
    judge = load_referee(toy)
    texts = judge.embed_texts(STRANGE)
    answers = (judge.embed_images(pictures(len(STRANGE))) @ texts.T).argmax(1)
    expected = float((answers == torch.arange(len(STRANGE))).float().mean())
    rows = measured(place, str(toy), "--data", str(folder), "--out", str(place / "report"))
    [row] = [row for row in rows if (row["metric"], row["kind"]) == ("top-1", "value")]
    assert (row["value"], row["n"]) == (pytest.approx(expected), len(STRANGE))
    answers_written = [
        json.loads(line) for line in (place / "report" / "predictions.jsonl").read_text().split("\n") if line
    ]
    assert [answer["label"] for answer in answers_written] == STRANGE


def test_captions_of_ten_thousand_words_are_found(place: Path) -> None:
    pairs = [sample("a", caption=TEN_THOUSAND.encode()), sample("b", caption="أهلا\u2028💣\n\n [/x] ".encode())]
    members = [member for pair in pairs for member in pair if not member[0].endswith(".cls")]
    (place / "data").mkdir()
    (place / "toy").mkdir()
    folder = shards(members, names=None)(place / "data")
    rows = measured(place, str(referee(place / "toy")), "--data", str(folder), "--tasks", "retrieval")
    found = {row["metric"]: (row["value"], row["n"]) for row in rows}
    assert found["image to text recall@10"] == (1.0, 2)
    assert found["text to image recall@10"] == (1.0, 3), "two captions of the second picture, split at line feeds alone"


def test_a_prompt_of_ten_thousand_words_makes_a_picture_of_a_screen(place: Path) -> None:
    (place / "toy").mkdir()
    (place / "data").mkdir()
    folder = shards(sample() + sample("b", b"1"))(place / "data")
    prompts = [argument for text in (TEN_THOUSAND, "x" * 2_000_000, "💣", "أهلا") for argument in ("--prompts", text)]
    measured(
        place, str(referee(place / "toy")), "--data", str(folder), "--tasks", "gradients", "--out", "report", *prompts
    )
    with Image.open(place / "report" / "gradients.png") as picture:
        assert max(picture.size) < 1000


def test_a_name_that_looks_like_markup_is_a_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "toy").mkdir()
    (place / "data").mkdir()
    toy = card_with(name="[/bold] [red]toy")(place / "toy")
    rows = measured(place, str(toy), "--data", str(shards(sample())(place / "data")))
    assert {row["referee"] for row in rows} == {"[/bold] [red]toy"}
    printed = capsys.readouterr()
    assert "[/bold] [red]toy, zero-shot clean: 1 image" in printed.err
    assert "[/bold] [red]toy" in printed.out


def test_finite_weights_whose_embeddings_overflow_answer_nothing_right(place: Path) -> None:
    (place / "toy").mkdir()
    (place / "data").mkdir()
    toy = referee(place / "toy", weights=toy_weights(w3_bias=torch.full((16,), 3e38)))
    rows = measured(place, str(toy), "--data", str(shards(sample())(place / "data")), "--attack", "l2:0.5@2")
    assert {row["value"] for row in rows if row["metric"] == "top-1" and row["kind"] == "value"} == {0.0}


def test_a_claim_on_data_of_the_cards_choice_is_not_measured_unasked(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "toy").mkdir()
    claim = {"name": "top-1", "value": 0.5, "low": 0.4, "high": 0.6, "n": 4, "seed": 0, "attack": None, "date": "x"}
    toy = card_with(claims=[claim | {"data": "/"}])(place / "toy")
    with pytest.raises(SystemExit):
        main(["referees", "verify", str(toy)])
    assert "toy is what its card says" in capsys.readouterr().out


def test_a_damaged_entry_of_the_registry_leaves_the_others_usable(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = place / "home" / "referees"
    registry.mkdir(parents=True)
    for name, text in (("text", "{"), ("list", "[]"), ("number", '{"folder": 3}'), ("bare", "{}"), ("--flag", "{}")):
        (registry / f"{name}.json").write_text(text)
    (place / "toy").mkdir()
    for command, code in (
        ("referees list", None),
        (f"referees add {referee(place / 'toy')} --name good", None),
        ("referees show good", None),
        ("referees show text", 1),
        ("evaluate list", 1),
        ("referees remove text", None),
    ):
        with pytest.raises(SystemExit) as ending:
            main(command.split())
        assert ending.value.code == code, command
    printed = capsys.readouterr()
    assert printed.err.count("is damaged: forget it with robustclip referees remove") == 2
    assert "--flag" not in printed.out
    assert not (registry / "text.json").exists()


def test_removing_a_link_in_the_registry_leaves_what_it_points_to(place: Path) -> None:
    (place / "toy").mkdir()
    toy = referee(place / "toy")
    (place / "home" / "referees").mkdir(parents=True)
    (place / "home" / "referees" / "linked").symlink_to(toy)
    with pytest.raises(SystemExit):
        main(["referees", "remove", "linked"])
    assert not (place / "home" / "referees" / "linked").is_symlink()
    assert (toy / "card.json").is_file()


@pytest.mark.parametrize("texts", [[TEN_THOUSAND, "💣", "أهلا", "\u202eturned", "", "a\x00b"]])
def test_the_embedded_text_tower_reads_any_text(texts: list[str]) -> None:
    judge = load_referee("emoji-vanilla")
    embedded = judge.embed_texts(texts)
    assert embedded.isfinite().all()
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(len(texts)))
    alone = torch.cat([judge.embed_texts([text]) for text in texts])
    torch.testing.assert_close(embedded, alone, atol=1e-5, rtol=0)


def test_records_of_strangers_leave_the_list_of_runs_readable(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"recipe": "emoji", "status": "finished", "arguments": {}, "started": "2025-01-31T00:00:00+00:00"}
    records: dict[str, object] = {
        "good": good,
        "list": [],
        "number": 3,
        "types": {"recipe": 3, "status": [], "arguments": 5, "started": "x"},
        "started": good | {"started": "x" * 1000},
        "deep": json.loads("[" * 500 + "]" * 500),
        "markup": good | {"recipe": "[/bold]"},
    }
    for name, record in records.items():
        (place / "runs" / name).mkdir(parents=True)
        (place / "runs" / name / "run.json").write_text(json.dumps(record))
    (place / "runs" / "list" / "metrics.jsonl").write_text('{"step": "x"}\n[]\n{')
    with pytest.raises(SystemExit) as ending:
        main(["runs", "list"])
    printed = capsys.readouterr()
    assert not ending.value.code, printed.err
    for name in records:
        assert name in printed.out
