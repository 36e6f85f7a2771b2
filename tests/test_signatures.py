from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, FilePath, NewPath, PositiveFloat, PositiveInt

from robustclip.errors import UsageError, raise_faults
from robustclip.signatures import as_config, as_flag, as_keyword, bind, parameters, unknown, written


def even(number: int) -> int:
    if number % 2:
        raise UsageError(f"{number} is odd: give {number + 1}", "odd")
    return number


def command(
    names: Annotated[Sequence[str], "what to read"],
    *,
    steps: Annotated[PositiveInt, "how often"] = 10,
    step_size: PositiveFloat = 0.5,
    norm: Literal["l2", "linf"] = "l2",
    captions: FilePath | None = None,
    sizes: list[int] = [64],  # noqa: B006
    pairs: Annotated[int, AfterValidator(even)] = 2,
    out: Path | None = None,
    quick: bool = False,
) -> None:
    raise AssertionError("binding must not call")


def test_text_is_read_as_the_types_say() -> None:
    given: dict[str, object] = {
        "names": ("a", "b"),
        "steps": "3",
        "step_size": "1e-2",
        "norm": "linf",
        "sizes": ["1", "2"],
        "pairs": "2",
        "out": "runs/x",
        "quick": True,
    }
    arguments, faults = bind(command, given)
    assert faults == []
    assert arguments == {
        "names": ("a", "b"),
        "steps": 3,
        "step_size": 0.01,
        "norm": "linf",
        "captions": None,
        "sizes": [1, 2],
        "pairs": 2,
        "out": Path("runs/x"),
        "quick": True,
    }


def codes(faults: list[UsageError]) -> dict[object, str]:
    return {fault.values["argument"]: fault.code for fault in faults}


def test_all_faults_come_at_once_each_with_its_fix() -> None:
    given = {"steps": "ten", "step_size": -1, "norm": "l3", "captions": "nowhere.csv", "pairs": 3, "stepsize": 1}
    _, faults = bind(command, given)
    assert codes(faults) == {
        "steps": "int_parsing",
        "step_size": "greater_than",
        "norm": "literal_error",
        "captions": "path_not_file",
        "pairs": "odd",
        "stepsize": "unknown_argument",
        "names": "missing",
    }
    told = dict(zip(codes(faults), map(str, faults), strict=True))
    assert told["norm"] == "norm= 'l3': should be 'l2' or 'linf' (default: l2)"
    assert "give 4" in told["pairs"]
    assert told["stepsize"].endswith("did you mean step_size= or steps=?")
    assert "what to read" in told["names"]


def test_faults_are_spelled_as_the_caller_would() -> None:
    _, faults = bind(command, {"step_size": 0}, spell=as_flag)
    assert [str(fault).split(" ")[0] for fault in faults] == ["--step-size", "NAMES"]


def test_a_default_may_be_at_fault(tmp_path: Path) -> None:
    def writes(*, out: NewPath = tmp_path) -> None: ...

    _, faults = bind(writes, {}, spell=as_flag)
    assert codes(faults) == {"out": "path_exists"}
    assert bind(writes, {"out": tmp_path / "new"}) == ({"out": tmp_path / "new"}, [])


def faults(norm: str, step_size: float) -> Iterator[UsageError]:
    """Which `bind` finds here, in the module of `command`."""
    if norm == "linf" and step_size >= 1:
        yield UsageError(f"{step_size} is no step for linf", "step_in_255", step_size=step_size)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"norm": "linf", "step_size": 4}, ["step_in_255"]),
        ({"norm": "linf", "step_size": "0.1"}, []),
        ({"norm": "l2", "step_size": 4}, []),
        ({"norm": "linf", "step_size": "x"}, ["float_parsing"]),
    ],
    ids=["illegal", "legal", "legal by default", "silent beside a fault of its own"],
)
def test_illegal_pairs(given: dict[str, object], expected: list[str]) -> None:
    _, found = bind(command, given | {"names": ["a"]})
    assert [fault.code for fault in found] == expected


QUICK = {"steps": 2, "sizes": [8], "pairs": lambda call: 4 if call["steps"] > 5 else call["pairs"]}


@pytest.mark.parametrize(
    ("given", "file", "expected"),
    [
        ({}, {}, (10, [64], 2)),
        ({"quick": False, "steps": 3}, {}, (3, [64], 2)),
        ({"quick": True}, {}, (2, [8], 2)),
        ({"quick": True, "steps": "3"}, {}, (3, [8], 2)),
        ({"quick": True, "steps": "6"}, {}, (6, [8], 4)),
        ({"quick": True, "steps": "6", "pairs": 6}, {}, (6, [8], 6)),
        ({"quick": True, "sizes": [16]}, {"steps": 500, "sizes": [32]}, (2, [16], 2)),
        ({}, {"steps": 500, "quick": True}, (500, [8], 4)),
        ({"steps": 7}, {"steps": 500, "quick": True}, (7, [8], 4)),
        ({"quick": False}, {"steps": 500, "quick": True}, (500, [64], 2)),
    ],
)
def test_values_of_quick_yield_to_what_is_given_beside_it(
    given: dict[str, object], file: dict[str, object], expected: tuple[object, ...], tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(as_config(file))
    arguments, found = bind(command, {"names": ["a"], "config": tmp_path / "run.yaml", **given})
    assert (arguments["steps"], arguments["sizes"], arguments["pairs"], found) == (*expected, [])


def test_a_config_file_holds_arguments_that_the_call_overrides(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("names: [a, b]\nstep-size: 4/255\nsteps: 3\nquick: true\nsizes: 8\n")
    arguments, faults = bind(command, {"config": file, "steps": "5"})
    assert faults == []
    assert (arguments["names"], arguments["step_size"], arguments["steps"]) == (["a", "b"], 4 / 255, 5)
    assert (arguments["quick"], arguments["sizes"]) == (True, [8])
    file.write_text(as_config(arguments))
    assert "step_size: 4/255" in file.read_text()
    assert bind(command, {"config": file}) == (arguments, [])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("- 3", "not_a_config"),
        ("config: other.yaml", "not_a_config"),
        ("steps: 5\nsteps: 6", "not_yaml"),
        ("step-size: 5\nstep_size: 6", "given_twice"),
        ("a: [", "not_yaml"),
        ("a: &x [1]\nb: *x", "not_yaml"),
        ("[" * 200, "not_yaml"),
        ("stps: 3\nnames: a", "unknown_argument"),
        ("steps: yes\nnames: a", "truth_value"),
    ],
)
def test_a_config_file_that_cannot_be_used_is_a_fault_beside_the_others(text: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    _, faults = bind(command, {"config": tmp_path / "run.yaml", "norm": "l3"})
    assert {code, "literal_error"} <= {fault.code for fault in faults}


def test_what_is_shown_of_a_parameter() -> None:
    shown = {p.name: (p.label, p.help, p.repeated, p.required, p.positional) for p in parameters(command)}
    assert shown["names"] == ("TEXT", "what to read", True, True, True)
    assert shown["steps"] == ("INTEGER", "how often", False, False, False)
    assert shown["step_size"][0] == "NUMBER"
    assert shown["norm"][0] == "l2|linf"
    assert shown["captions"][0] == "PATH"
    assert shown["sizes"] == ("INTEGER", "", True, False, False)
    assert shown["quick"][0] == ""
    assert [as_flag(p) for p in parameters(command)][:3] == ["NAMES", "--steps", "--step-size"]
    assert as_keyword(parameters(command)[1]) == "steps="


def untyped(*, steps=3) -> None: ...  # type: ignore[no-untyped-def]
def gathers(**others: Any) -> None: ...


@pytest.mark.parametrize("function", [untyped, gathers])
def test_a_parameter_that_cannot_be_a_flag_is_refused(function: Any) -> None:
    with pytest.raises(UsageError, check=lambda error: error.code == "untyped_parameter"):
        parameters(function)


def test_one_error_lists_all_faults() -> None:
    raise_faults("f()", [])
    with pytest.raises(UsageError, match=r"^a fault in the call of f\(\)\n  x$"):
        raise_faults("f()", ["x"])
    with pytest.raises(UsageError, match=r"^2 faults in the call of f\(\)\n  x\n  y\nsee g$") as caught:
        raise_faults("f()", ["x", UsageError("y", "size_mismatch", sizes=(2, 3))], "see g")
    assert caught.value.codes == ["faults", "size_mismatch"]
    assert caught.value.faults[1].values == {"sizes": (2, 3)}


def test_unknown_names_what_is_near_or_nothing() -> None:
    assert unknown("--stepps", ["--steps", "--seed"], "flag") == "--stepps: unknown flag; did you mean --steps?"
    assert unknown("--wonder", ["--steps", "--seed"], "flag") == "--wonder: unknown flag"


@pytest.mark.parametrize(
    ("text", "number"),
    [("2/255", 2 / 255), (" 8 / 255 ", 8 / 255), ("1.5/2", 0.75), ("4/7", 4 / 7), ("0.5", 0.5), (2 / 255, 2 / 255)],
)
def test_a_quotient_is_a_number(text: object, number: float) -> None:
    def attacks(*, eps: PositiveFloat = 1.0, alpha: Annotated[PositiveFloat | None, "a step"] = None) -> None: ...

    assert bind(attacks, {"eps": text, "alpha": text}) == ({"eps": number, "alpha": number}, [])


def test_lists_of_numbers_take_quotients() -> None:
    def attacks(*, eps: list[PositiveFloat]) -> None: ...

    assert bind(attacks, {"eps": ["1/255", "0.5"]}) == ({"eps": [1 / 255, 0.5]}, [])


@pytest.mark.parametrize("text", ["2/0", "2/-255", "1/2/3", "/255", "2/", "a/b", "inf/1", "nan/2", "\u0662/255"])
def test_what_is_no_quotient_is_refused(text: str) -> None:
    _, faults = bind(command, {"names": ["a"], "step_size": text})
    assert [fault.code for fault in faults] == ["float_parsing"]


def test_only_floats_are_quotients() -> None:
    def reads(*, folder: Path | None = None, name: str = "", steps: int = 1, either: float | str = "") -> None: ...

    arguments, faults = bind(reads, {"folder": "2/255", "name": "2/255", "either": "2/255"})
    assert (arguments["folder"], arguments["name"], arguments["either"]) == (Path("2/255"), "2/255", "2/255")
    assert faults == []
    assert bind(reads, {"steps": "4/2"})[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2 / 255, "2/255"),
        (5 / 255, "5/255"),
        (128 / 224, "4/7"),
        (0.5, "0.5"),
        (1e-5, "1e-05"),
        (3, "3"),
        (["a", 1 / 255], "a, 1/255"),
        (0.1 + 0.2, "0.30000000000000004"),
    ],
)
def test_numbers_are_written_short_and_read_back_as_they_were(value: object, text: str) -> None:
    assert written(value) == text
    if isinstance(value, float):
        assert bind(command, {"names": ["a"], "step_size": text})[0]["step_size"] == value
