"""A survey: its page in a real browser, blind and by keys; its answers read with intervals worked out by hand."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from chromium import Browser, browser, executable
from PIL import Image
from scipy import stats

from robustclip.errors import UsageError, coded
from robustclip.pages.survey import make, read
from robustclip.runs.files import write_json
from robustclip.synthesis.pictures import write_picture

PROMPTS = ["a red fish", "a green hat </script><script>alert(1)</script>", "a blue key"]
RED, BLUE = (255, 0, 0), (0, 0, 255)


def run_folder(folder: Path, colour: tuple[int, int, int], prompts: list[str] = PROMPTS) -> Path:
    """A run of `synthesize` whose pictures say who made them."""
    for number, prompt in enumerate(prompts):
        picture = torch.tensor(colour).div(255)[:, None, None].expand(3, 8, 8)
        facts = {"id": str(number), "prompt": f"{prompt}", "seed": 0, "referees": [], "recipe": "secret"}
        write_picture(folder / "images" / f"{number}.png", picture, facts)
    write_json(folder / "run.json", {"notes": {}})
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [run_folder(tmp_path / "secret-red", RED), run_folder(tmp_path / "secret-blue", BLUE)]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if executable() is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


def test_a_page_is_answered_by_keys_and_read(chromium: Browser, runs: list[Path], tmp_path: Path) -> None:
    page, key = tmp_path / "survey.html", tmp_path / "survey.key.json"
    assert make(runs, out=page) == {"page": str(page), "key": str(key), "trials": 3, "sets": 2}
    sides = {one["trial"]: one for one in json.loads(key.read_text())["trials"]}

    with chromium.page(page) as opened:
        opened.decode()

        def press(name: str) -> None:
            for kind in ("keyDown", "keyUp"):
                opened.ask("Input.dispatchKeyEvent", type=kind, key=name)

        colour = (
            "(() => { const c = document.createElement('canvas').getContext('2d');"
            "c.drawImage(document.querySelector('#left img'), 0, 0); return [...c.getImageData(1, 1, 1, 1).data]; })()"
        )
        chosen = []
        for number in range(3):
            opened.decode()
            assert opened.run("document.getElementById('prompt').textContent") in PROMPTS
            is_red = opened.run(colour)[0] > 128
            chosen.append("left" if is_red else "right")  # always the red one
            if number == 1:  # a slip, taken back
                press("ArrowDown")
                press("Backspace")
            press("ArrowLeft" if is_red else "ArrowRight")
        assert opened.run("document.getElementById('done').hidden") is False
        press("ArrowLeft")  # nothing is left to answer
        answers = opened.run("document.getElementById('csv').value")
        assert opened.run("document.getElementById('save').href").startswith("blob:")
        assert all(url.startswith(("file:", "data:", "blob:")) for url in opened.requests)
        assert opened.complaints == []

    lines = answers.strip().split("\n")
    assert lines[0] == "trial,answer,seconds"
    assert [line.split(",")[1] for line in lines[1:]] == chosen
    assert {line.split(",")[0] for line in lines[1:]} == set(sides)
    (tmp_path / "answers.csv").write_text(answers)
    found = read(key, [tmp_path / "answers.csv"])["preferences"]
    wilson = stats.binomtest(3, 3).proportion_ci(0.95, method="wilson")
    assert [one["set"] for one in found] == [str(runs[0])]
    assert (found[0]["value"], found[0]["n"]) == (1.0, 3)
    assert found[0]["low"] == pytest.approx(wilson.low)


def test_a_page_says_nothing_of_whose_pictures_are(runs: list[Path], tmp_path: Path) -> None:
    make(runs, out=tmp_path / "survey.html")
    page = (tmp_path / "survey.html").read_text()
    assert "secret" not in page
    assert "<script>alert" not in page
    encoded = page.split("data:image/png;base64,")[1].split('"')[0]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        assert picture.info == {}


def test_order_and_sides_are_a_function_of_the_seed(runs: list[Path], tmp_path: Path) -> None:
    keys = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make(runs, out=tmp_path / f"{name}.html", seed=seed)
        keys.append(json.loads((tmp_path / f"{name}.key.json").read_text())["trials"])
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]
    make(runs, out=tmp_path / "few.html", trials=2)
    assert json.loads((tmp_path / "few.key.json").read_text())["trials"] == keys[0][:2]


def written(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(["trial,answer,seconds", *lines]) + "\n")
    return file


def test_answers_of_several_people_are_resampled_by_trial(tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    trials = [
        {"trial": str(n), "prompt": "p", "left": "A" if n % 2 else "B", "right": "B" if n % 2 else "A"}
        for n in range(4)
    ]
    write_json(key, {"sets": ["A", "B"], "trials": trials})
    one = written(tmp_path / "one.csv", "0,left,1.0", "1,left,1.0", "2,neither,1.0", "3,left,0.5")
    found = read(key, [one])
    # For A: trial 0 no (A is right), 1 yes, 2 half, 3 yes.
    assert found["preferences"][0]["value"] == pytest.approx(2.5 / 4)
    assert (found["left"], found["neither"], found["answers"]) == (3, 1, 4)
    assert read(key, [one, tmp_path / "." / "one.csv"]) == found, "a file given twice counts once"
    other = written(tmp_path / "other.csv", "0,right,1.0", "1,left,1.0")
    both = read(key, [one, other])["preferences"][0]
    assert both["value"] == pytest.approx((0.5 * 2 + 2 + 0.5 + 1) / 6)
    assert both["n"] == 6
    assert both["low"] < both["value"] < both["high"]


def test_what_does_not_belong_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        make(runs[:1], out=tmp_path / "one.html")
    other = run_folder(tmp_path / "other", RED, ["a cloud"])
    with pytest.raises(UsageError, check=coded("nothing_shared")):
        make([runs[0], other], out=tmp_path / "none.html")
    with pytest.raises(UsageError, check=coded("set_twice")):
        make([runs[0], runs[0]], out=tmp_path / "twice.html")
    make(runs, out=tmp_path / "survey.html")
    with pytest.raises(UsageError):  # it is there
        make(runs, out=tmp_path / "survey.html")
    key = tmp_path / "survey.key.json"
    name = json.loads(key.read_text())["trials"][0]["trial"]
    for lines, code in (
        ((f"{name},left,1", f"{name},right,1"), "answered_twice"),
        (("unknown,left,1",), "foreign"),
        ((f"{name},sideways,1",), "foreign"),
        ((), "no_answers"),
    ):
        with pytest.raises(UsageError, check=coded(code)):
            read(key, [written(tmp_path / "bad.csv", *lines)])
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, check=coded("no_answers")):
        read(key, [tmp_path / "bad.csv"])
    with pytest.raises(UsageError, check=coded("no_key")):
        read(runs[0] / "run.json", [tmp_path / "bad.csv"])
