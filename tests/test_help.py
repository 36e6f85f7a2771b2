"""What help says of every command, what a shell completes, and where flags end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import PositiveFloat

from robustclip.cli import app
from robustclip.commands import TypedCommand, _unwrapped
from robustclip.errors import UsageError


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    """The words of every command below `group`."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name)


@pytest.mark.parametrize("words", list(commands(app)), ids=" ".join)
def test_every_command_takes_the_common_flags(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*words, "--help"])
    assert shown.exit_code == 0, shown.exception
    group: click.Command = app
    for word in words:
        assert isinstance(group, click.Group)
        found = group.get_command(click.Context(group), word)
        assert found is not None
        group = found
    with suppress(UsageError):  # what the call lacks, after the flags are known
        group.make_context(words[-1], ["--device", "cpu"])
    common = {"--config", "--print-config", "--json", "--device", "--dtype", "--seed"}
    assert common <= {flag for option in group.params for flag in option.opts}
    assert "no effect" not in shown.stdout
    assert not re.search(r"default:\s+(\[\]|\"\"|\(\)|None)", shown.stdout)
    assert not re.search(r"0\.\d{9}", shown.stdout), "a number has a short name, such as 2/255"


@pytest.mark.parametrize("words", list(commands(app)), ids=" ".join)
def test_lists_in_help_stay_lists(words: tuple[str, ...]) -> None:
    for line in CliRunner().invoke(app, [*words, "--help"]).stdout.partition("Options:")[0].splitlines()[1:]:
        assert not re.search(r"\S {3,}\S", line.removeprefix("  ")) or re.match(r"\s+\S.*? {2,}\S", line), line
        assert len(re.findall(r"(?<=\S) {3,}(?=\S)", line)) < 2, line


def test_a_list_of_terms_is_wrapped_below_its_meanings() -> None:
    told = _unwrapped(
        "gradcam        class activation maps; also others, of which there are more than a line holds, or two\n"
        "               and more\nmutual-information   in nats"
    )
    assert told.splitlines()[0] == "\b"
    assert [line[:21].rstrip() for line in told.splitlines()[1:]] == ["gradcam", "", "mutual-information"]
    assert " ".join(told.split()[1:]).startswith("gradcam class activation maps; also others, of which")


def test_verbs_come_in_the_order_of_work() -> None:
    names = app.list_commands(click.Context(app))
    assert names.index("plan") < names.index("robustify") < names.index("evaluate") < names.index("export")
    assert names.index("export") < names.index("synthesize") < names.index("judge") < names.index("runs")
    assert set(names) == set(app.commands)


@pytest.mark.parametrize(
    ("words", "prompts"),
    [
        (["--", "--help"], ["--help"]),
        (["a cat", "--steps", "3", "--", "-h", "--steps"], ["a cat", "-h", "--steps"]),
        (["--steps", "3", "--", "--", "--json"], ["--", "--json"]),
        (["--", "-5 degrees", "--size=0"], ["-5 degrees", "--size=0"]),
    ],
    ids=["help", "after others", "twice", "what looks like a value"],
)
def test_what_follows_two_dashes_is_no_flag(words: list[str], prompts: list[str]) -> None:
    command = TypedCommand("paint", lambda: _paints, summary="", show=str)
    context = command.make_context("paint", words)
    assert context.params["arguments"]["prompt"] == prompts


def test_after_two_dashes_nothing_is_taken_where_nothing_is_positional() -> None:
    command = TypedCommand("attack", lambda: _attacks, summary="", show=str)
    with pytest.raises(UsageError, match="--quick: unexpected argument"):
        command.make_context("attack", ["--eps", "2/255", "--", "--quick"])
    with pytest.raises(click.BadOptionUsage, match="--texts"):
        command.make_context("attack", ["--texts", "--", "a"])


def _paints(prompt: list[str], *, steps: int = 5, eps: PositiveFloat = 2 / 255, way: Literal["a", "bc"] = "a") -> None:
    """Paint."""


def _attacks(*, eps: PositiveFloat = 2 / 255, texts: list[str] = []) -> None:  # noqa: B006
    """Attack."""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("robustclip sy", {"synthesize"}),
        ("robustclip robustify emoji-f", {"emoji-fare"}),
        ("robustclip runs list --js", {"--json"}),
        ("robustclip runs clean --", {"--json", "--dry-run"}),
        ("robustclip synthesize no-such --st", set()),
    ],
)
def test_shells_complete_verbs_recipes_and_flags(words: str, offered: set[str]) -> None:
    told = CliRunner().invoke(
        app,
        [],
        prog_name="robustclip",
        env={
            "_ROBUSTCLIP_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        },
    )
    assert (told.exit_code, told.stderr) == (0, ""), told.output
    assert offered <= {line.partition(",")[2] for line in told.stdout.splitlines()}


def test_shells_complete_the_words_that_a_type_names() -> None:
    command = TypedCommand("paint", lambda: _paints, summary="", show=str)
    context = command.make_context("paint", ["--steps"], resilient_parsing=True)
    way = next(option for option in command.params if option.name == "way")
    assert [item.value for item in way.shell_complete(context, "")] == ["a", "bc"]
    assert [item.value for item in way.shell_complete(context, "b")] == ["bc"]


@pytest.mark.parametrize(
    ("words", "names", "value"),
    [
        (["robustify", "emoji", "--eps= 8 / 255", "--norm", "linf"], "eps", 8 / 255),
        (["robustify", "fare-vit-l14", "--data", "x", "--step-size", "0.5/255"], "step_size", 0.5 / 255),
        (["robustify", "emoji-trades", "--beta", "13/2"], "beta", 6.5),
        (["evaluate", "emoji-robust", "--tasks", "certification", "--sigma", "1/4"], "sigma", 0.25),
        (["mixture", "fit", "x", "--out", "new.safetensors", "--ridge", "1/1000"], "ridge", 0.001),
        (["synthesize", "clipag", "a", "--noise", "1/20", "--size", "64"], "noise", 0.05),
        (["synthesize", "clipag", "--size", "64", "--", "-5 degrees"], "prompt", ["-5 degrees"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_quotients_and_dashes_reach_every_verb(words: list[str], names: str, value: object) -> None:
    group: click.Command = app
    rest = list(words)
    while isinstance(group, click.Group):
        found = group.get_command(click.Context(group), rest.pop(0))
        assert found is not None
        group = found
    bound = group.make_context("it", rest).params["arguments"][names]
    assert (list(bound) if isinstance(value, list) else bound) == value


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "offered"),
    [("robustclip explain --method gradc", {"gradcam", "gradcam++"}), ("robustclip plan clipag-l", {"clipag-linf"})],
)
def test_every_shell_is_answered(shell: str, words: str, offered: set[str]) -> None:
    last = words.split()[-1]
    place = last if shell == "fish" else str(len(words.split()) - 1)
    asked = {"_ROBUSTCLIP_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": place}
    told = CliRunner().invoke(app, [], prog_name="robustclip", env=asked).stdout
    assert offered <= set(re.split(r"[\n,\t]", told))
    source = CliRunner().invoke(app, [], prog_name="robustclip", env={"_ROBUSTCLIP_COMPLETE": f"{shell}_source"})
    assert f"_ROBUSTCLIP_COMPLETE={shell}_complete" in source.stdout


@pytest.mark.parametrize(
    ("words", "told", "untold"),
    [
        (["judge", "pics", "--dry-run"], "reads pictures: pics/ (1 item)", "writes out"),
        (["mixture", "fit", "pics", "--out", "m.safetensors", "--dry-run"], "writes out: m.safetensors", "reads notes"),
        (["synthesize", "clipag", "pics", "--dry-run"], "writes out: a new folder below runs/", "reads prompt"),
        (["evaluate", "emoji-robust", "--data", "pics", "--dry-run"], "reads data: pics/", "writes out"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_dry_run_takes_words_for_words_and_files_for_files(
    words: list[str], told: str, untold: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").touch()
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    assert told in done.stdout
    assert untold not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["pics"]
