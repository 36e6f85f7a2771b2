"""`--resume`: which run goes on and with which arguments, by the command and from Python, by the name of a recipe or of
an ablation that calls it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from robustclip import recipes
from robustclip.cli import app
from robustclip.errors import UsageError, coded
from robustclip.runs.folder import Run

HEAD = """
from __future__ import annotations
from typing import Any
from pydantic import FilePath, PositiveInt
from robustclip import recipes
from robustclip.errors import RunError
from robustclip.runs.folder import ResumeFrom, Run, RunFolder
"""

TAIL = """
    resume: ResumeFrom | None = None, device: str = "auto", dtype: str = "auto", seed: int = 0,
    out: RunFolder | None = None, quick: bool = False,
) -> dict[str, Any]:
"""

BASE = f'''{HEAD}
def recipe(
    *, steps: PositiveInt = 5, lr: float = 0.1, norm: str = "l2", data: FilePath | None = None, fail: bool = False,
{TAIL}
    """Pretend to train."""
    arguments = dict(locals())
    run = Run.start(out, resume, recipe="base", arguments=arguments)
    run.checkpoints.mkdir(exist_ok=True)
    (run.checkpoints / "checkpoint-00000001.pt").touch()
    with run:
        if fail:
            raise RunError("as told")
    return {{name: str(value) for name, value in arguments.items()}} | {{"run": str(run.folder)}}


def faults(steps: int, quick: bool):
    if quick and steps > 10:
        yield f"--steps {{steps}} is not quick"
'''

ABLATION = f'''{HEAD}
@recipes.preset("base", steps=50, norm="linf")
def recipe() -> None:
    """Pretend in another norm."""
'''


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A house of two recipes, and a folder to work in."""
    room = tmp_path / "house" / "robustify"
    room.mkdir(parents=True)
    (room / "base.py").write_text(BASE)
    (room / "ablation.py").write_text(ABLATION)
    monkeypatch.setattr(recipes, "SHIPPED", tmp_path / "house")
    monkeypatch.chdir(tmp_path)
    return room


def robustify(name: str, **arguments: object) -> dict[str, Any]:
    return recipes.robustify(name, **arguments)


def fail(name: str, **arguments: object) -> Path:
    """A run that ended before it was done."""
    before = set(Path("runs").glob("*"))
    with pytest.raises(RuntimeError, match="as told"):
        robustify(name, fail=True, **arguments)
    return (set(Path("runs").glob("*")) - before or {Path(str(arguments.get("out")))}).pop()


def test_what_is_not_given_is_what_the_run_had() -> None:
    folder = fail("base", steps=7, lr=0.5, seed=3)
    numbers = robustify("base", resume=folder, lr=0.25, fail=False)
    assert {name: numbers[name] for name in ("steps", "lr", "norm", "seed", "run")} == {
        "steps": "7",
        "lr": "0.25",
        "norm": "l2",
        "seed": "3",
        "run": str(folder),
    }
    again = robustify("base", resume=folder)
    assert (again["steps"], again["lr"]) == ("7", "0.25"), "the last start counts"


@pytest.mark.parametrize("name", ["ablation", "base"])
def test_a_run_of_an_ablation_goes_on_under_both_names(name: str) -> None:
    folder = fail("ablation", steps=9)
    assert Run.open(folder).called == "ablation"
    numbers = robustify(name, resume=folder, fail=False)
    assert {key: numbers[key] for key in ("steps", "norm", "run")} == {
        "steps": "9",
        "norm": "linf",
        "run": str(folder),
    }
    assert Run.open(folder).called == "ablation"


def test_the_latest_is_the_one_of_this_name_that_was_started_last() -> None:
    first, second = fail("base", lr=1), fail("base", lr=2)
    ablation, other = fail("ablation"), fail("base", out=Path("elsewhere"), lr=3)
    assert (ablation.name, other) == ("base-3", Path("elsewhere"))
    assert robustify("base", resume="latest", fail=False)["run"] == str(second)
    assert robustify("ablation", resume="latest", fail=False)["run"] == str(ablation)
    record = json.loads((first / "run.json").read_text())
    record["resumed"] = [{"started": "2999-01-01T00:00:00+00:00", "arguments": record["arguments"]}]
    (first / "run.json").write_text(json.dumps(record))
    assert robustify("base", resume="latest", fail=False)["run"] == str(first)


def test_latest_and_out_are_one_line_to_queue_for_ever() -> None:
    fail("base", lr=1)
    out = Path("kept")
    assert fail("base", resume="latest", out=out, lr=2) == out
    assert robustify("base", resume="latest", out=out, fail=False)["lr"] == "2.0"
    assert robustify("base", resume="latest", out=out)["run"] == str(out), "when it is done, once more does no harm"
    assert len(Run.open(out).record["resumed"]) == 2


def test_out_may_repeat_what_resume_says() -> None:
    folder = fail("base")
    assert robustify("base", resume=folder, out=folder.absolute(), fail=False)["run"] == str(folder)


def faults(name: str, **arguments: object) -> list[UsageError]:
    with pytest.raises(UsageError) as error:
        robustify(name, **arguments)
    return list(error.value.faults)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "given", "code", "shown"),
    [
        ("base", {"resume": "latest"}, "no_such_run", "no run of base in runs/"),
        ("base", {"resume": "nowhere"}, "no_such_run", "or latest"),
        ("base", {"resume": "base-1"}, "no_such_run", "did you mean runs/base-1?"),
        ("base", {"resume": "."}, "not_a_run", "it has no run.json"),
        ("base", {"resume": "runs/base-1", "out": "x"}, "two_folders", "leave out --out x"),
        ("ablation", {"resume": "runs/base-1"}, "other_recipe", "robustclip robustify base --resume runs/base-1"),
        ("base", {"resume": "latest", "out": "photos"}, "not_a_run", "it has no run.json"),
    ],
)
def test_there_must_be_a_run_to_go_on_with(name: str, given: dict[str, object], code: str, shown: str) -> None:
    if given != {"resume": "latest"}:
        fail("base")
    Path("photos").mkdir()
    Path("photos/a.png").touch()
    (fault,) = faults(name, **given)
    assert (fault.code, fault.values["argument"]) == (code, "resume")
    assert shown in str(fault)


def test_a_run_that_still_runs_is_left_alone() -> None:
    Run.create(None, recipe="base", arguments={"steps": 3})
    (fault,) = faults("base", resume="latest")
    assert re.search(r"runs/base-1 is still running, as process \d+: stop it first, or wait", str(fault))


def test_all_faults_come_at_once() -> None:
    found = faults("base", resume="latest", steps="ten", sed=3)
    assert {fault.code for fault in found} == {"no_such_run", "int_parsing", "unknown_argument"}


def test_what_a_run_had_is_checked_again() -> None:
    Path("data.csv").touch()
    folder = fail("base", data="data.csv")
    Path("data.csv").unlink()
    assert [fault.code for fault in faults("base", resume=folder)] == ["path_not_file"]
    robustify("base", steps=20)
    (fault,) = faults("base", resume="runs/base-2", quick=True)
    assert "--steps 20 is not quick" in str(fault)


def test_arguments_that_the_recipe_no_longer_has_are_left_behind() -> None:
    folder = fail("base")
    record = json.loads((folder / "run.json").read_text())
    record["arguments"]["momentum"] = 0.9
    (folder / "run.json").write_text(json.dumps(record))
    assert robustify("base", resume=folder, fail=False)["run"] == str(folder)


def test_the_command_does_the_same() -> None:
    folder = fail("base", steps=7)
    done = CliRunner().invoke(app, ["robustify", "ablation", "--resume", "latest", "--wonder"])
    told = str(done.exception)
    assert "--resume 'latest': no run of ablation in runs/" in told
    assert "--wonder: unknown flag" in told
    assert Run.open(folder).status == "failed"
    flags = ["--resume", "latest", "--no-fail", "--lr", "0.75", "--json", "n.json"]
    done = CliRunner().invoke(app, ["robustify", "base", *flags])
    assert done.exit_code == 0, done.exception
    numbers = json.loads(Path("n.json").read_text())
    assert (numbers["steps"], numbers["lr"], numbers["run"]) == ("7", "0.75", str(folder))


def test_a_recipe_of_ones_own_is_found_again_by_its_file(house: Path) -> None:
    mine = Path("mine.py")
    mine.write_text(BASE)
    folder = fail("mine.py", steps=8)
    assert Run.open(folder).called == "mine.py"
    assert robustify("mine.py", resume="latest", fail=False)["steps"] == "8"
    with pytest.raises(UsageError, check=coded("no_such_run", argument="resume")):
        robustify("base", resume="latest")
    by_path = str(house / "base.py")
    assert recipes.find(by_path, "robustify").full_name == "base", "a shipped recipe's path is its name"
