"""Public functions called from Python with values of the wrong type: a UsageError that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import robustclip
from robustclip import attacks, data, images, recipes
from robustclip.attacks.threat import ThreatModel
from robustclip.errors import UsageError, coded
from robustclip.evaluation.generation.judge import judge
from robustclip.inits.fit import fit
from robustclip.referees.base import check_images, check_texts
from robustclip.runs.folder import Run
from robustclip.signatures import typed

NAME = "emoji-robust"
PICTURES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
THREAT = ThreatModel("linf", 4 / 255, 8)


def explain(**given: Any) -> Any:
    return robustclip.explain(**{"referees": NAME, "images": "emoji/scenes", "out": Path("nowhere"), **given})


def pgd(*given: Any, **named: Any) -> Any:
    defaults = (PICTURES, lambda x: x.sum((1, 2, 3)), THREAT)
    return attacks.pgd(*given, *defaults[len(given) :], **{"steps": 1, **named})


CALLS: dict[str, tuple[Callable[[], object], Callable[[BaseException], bool]]] = {
    "evaluate limit": (lambda: robustclip.evaluate(NAME, limit="x"), coded("int_parsing", argument="limit", given="x")),
    "evaluate half a limit": (
        lambda: robustclip.evaluate(NAME, limit=2.5),
        coded("int_from_float", argument="limit", given=2.5),
    ),
    "evaluate true limit": (
        lambda: robustclip.evaluate(NAME, limit=True),
        coded("truth_value", argument="limit", given=True),
    ),
    "evaluate tasks": (lambda: robustclip.evaluate(NAME, tasks=3), coded("literal_error", argument="tasks", given=3)),
    "evaluate no tasks": (
        lambda: robustclip.evaluate(NAME, tasks=None),
        coded("is_instance_of", argument="tasks", given=None),
    ),
    "evaluate attack": (lambda: robustclip.evaluate(NAME, attack=3), coded("string_type", argument="attack", given=3)),
    "evaluate data": (lambda: robustclip.evaluate(NAME, data=None), coded("string_type", argument="data", given=None)),
    "evaluate seed": (lambda: robustclip.evaluate(NAME, seed="x"), coded("int_parsing", argument="seed", given="x")),
    "evaluate out": (lambda: robustclip.evaluate(NAME, out=3), coded("path_type", argument="out", given=3)),
    "evaluate masking": (
        lambda: robustclip.evaluate(NAME, masking="x"),
        coded("bool_parsing", argument="masking", given="x"),
    ),
    "evaluate sigma": (
        lambda: robustclip.evaluate(NAME, sigma="x"),
        coded("float_parsing", argument="sigma", given="x"),
    ),
    "evaluate prompts": (
        lambda: robustclip.evaluate(NAME, prompts=["\ud800"]),
        coded("not_utf8", argument="prompts", given=["\ud800"]),
    ),
    "evaluate nobody": (lambda: robustclip.evaluate(), coded("missing", argument="referees")),
    "evaluate three": (lambda: robustclip.evaluate(3), coded("string_type", argument="referees", given=3)),
    "evaluate limits": (lambda: robustclip.evaluate(NAME, limits=2), coded("unknown_argument", argument="limits")),
    "explain images": (lambda: explain(images=3), coded("string_type", argument="images", given=3)),
    "explain texts": (lambda: explain(texts=["\ud800"]), coded("not_utf8", argument="texts", given=["\ud800"])),
    "explain attack": (lambda: explain(attack=None), coded("string_type", argument="attack", given=None)),
    "explain method": (lambda: explain(method=3), coded("literal_error", argument="method", given=3)),
    "explain layer": (lambda: explain(layer=3), coded("string_type", argument="layer", given=3)),
    "explain limit": (lambda: explain(limit=-1), coded("greater_than", argument="limit", given=-1)),
    "explain batch": (lambda: explain(batch_size=0), coded("greater_than", argument="batch_size", given=0)),
    "explain nothing": (lambda: robustclip.explain(images="emoji/scenes"), coded("missing", argument="referees")),
    "export run": (lambda: robustclip.export(3, name="unheard-of"), coded("path_type", argument="run", given=3)),
    "export name": (lambda: robustclip.export("x", name=3), coded("string_type", argument="name", given=3)),
    "export to": (lambda: robustclip.export("x", name="x", to=3), coded("path_type", argument="to", given=3)),
    "export format": (
        lambda: robustclip.export("x", name="x", format=3),
        coded("literal_error", argument="format", given=3),
    ),
    "export nameless": (lambda: robustclip.export("x"), coded("missing", argument="name")),
    "load a number": (lambda: robustclip.load_referee(3), coded("string_type", argument="name", given=3)),
    "load with nothing": (
        lambda: robustclip.load_referee(NAME, nothing=3),
        coded("unknown_argument", argument="nothing"),
    ),
    "judge nothing": (lambda: judge(None), coded("is_instance_of", argument="pictures", given=None)),
    "judge seed": (lambda: judge(["x"], seed="x"), coded("int_parsing", argument="seed", given="x")),
    "judge metrics": (lambda: judge(["x"], metrics=3), coded("literal_error", argument="metrics", given=3)),
    "fit size": (
        lambda: fit("emoji/unseen-styles", out="m.safetensors", size="x"),
        coded("int_parsing", argument="size", given="x"),
    ),
    "fit components": (
        lambda: fit("emoji/unseen-styles", out="m.safetensors", components=True),
        coded("truth_value", argument="components", given=True),
    ),
    "robustify three": (lambda: robustclip.robustify(3), coded("unknown_recipe", given=3)),
    "robustify nothing": (lambda: robustclip.robustify(None), coded("unknown_recipe", given=None)),
    "robustify steps": (
        lambda: robustclip.robustify("emoji", steps="x"),
        coded("int_parsing", argument="steps", given="x"),
    ),
    "plan three": (lambda: robustclip.plan(3), coded("unknown_recipe", given=3)),
    "synthesize by three": (
        lambda: robustclip.synthesize("cat", 3),
        coded("not_a_referee", argument="referee", given=3),
    ),
    "synthesize by nobody": (
        lambda: robustclip.synthesize("cat", None),
        coded("not_a_referee", argument="referee", given=None),
    ),
    "synthesize recipe": (lambda: robustclip.synthesize("cat", recipe=None), coded("unknown_recipe", given=None)),
    "reproduce three": (lambda: recipes.run(3, "evaluate", {}), coded("unknown_recipe", given=3)),
    "pgd images": (lambda: pgd(PICTURES.numpy()), coded("wrong_type", type="ndarray")),
    "pgd loss": (lambda: pgd(PICTURES, 3), coded("wrong_type", argument="loss_fn", given=3)),
    "pgd threat": (lambda: pgd(PICTURES, lambda x: x, "l2"), coded("wrong_type", argument="threat", given="l2")),
    "pgd steps": (lambda: pgd(steps=1.5), coded("wrong_type", argument="steps", given=1.5)),
    "pgd step": (lambda: pgd(step_size="x"), coded("wrong_type", argument="step_size", given="x")),
    "pgd start": (lambda: pgd(start=3), coded("wrong_type", argument="start", given=3)),
    "pgd generator": (lambda: pgd(generator=3), coded("wrong_type", argument="generator", given=3)),
    "pgd module": (lambda: pgd(module=3), coded("wrong_type", argument="module", given=3)),
    "pgd one loss": (lambda: pgd(PICTURES, lambda _: 3.0), coded("wrong_type", type="float")),
    "attack spec": (lambda: attacks.AttackSpec.parse(None), coded("not_an_attack")),  # type: ignore[arg-type]
    "split": (lambda: data.load_split("emoji", None), coded("wrong_type", argument="split", given=None)),  # type: ignore[arg-type]
    "save a batch": (lambda: images.save_image(PICTURES, "x.png"), coded("wrong_shape", shape=(2, 3, 8, 8))),
    "save three": (lambda: images.save_image(3, "x.png"), coded("wrong_type", type="int")),  # type: ignore[arg-type]
    "texts half": (lambda: check_texts(["a", "\ud800"]), coded("not_utf8", given="\ud800")),
    "texts three": (lambda: check_texts([3]), coded("wrong_type", type="int")),  # type: ignore[list-item]
    "texts nothing": (lambda: check_texts(None), coded("wrong_type", type="NoneType")),  # type: ignore[arg-type]
    "texts bytes": (lambda: check_texts([b"cat"]), coded("wrong_type", type="bytes")),  # type: ignore[list-item]
    "images list": (lambda: check_images([PICTURES]), coded("wrong_type", type="list")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CALLS)
def test_a_value_of_the_wrong_type_is_a_fault_of_the_call(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, check = CALLS[name]
    with pytest.raises(UsageError, check=check):
        call()
    assert not list(tmp_path.iterdir())


def test_all_faults_come_at_once_and_what_came_is_read_as_on_the_command_line() -> None:
    @typed
    def command(names: list[str], count: int = 1, *, device: str = "cpu", quick: bool = False) -> tuple[Any, ...]:
        return names, count, device, quick

    assert command("a", "3") == (["a"], 3, "cpu", False)  # type: ignore[arg-type]
    assert command(["a"], device=torch.device("cpu")) == (["a"], 1, "cpu", False)  # type: ignore[arg-type]
    assert command(np.array(["a", "b"]))[0] == ["a", "b"]  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        command(3, "x", True, nothing=1)  # type: ignore[call-arg, arg-type]
    told = str(caught.value)
    assert all(words in told for words in ("3 arguments by place", "names= 3", "count= 'x'", "nothing=: unknown"))
    with pytest.raises(UsageError, match="names= is given twice"):
        command(["a"], names=["b"])


def test_a_painting_takes_the_referee_of_its_config_and_of_the_run_that_it_resumes(tmp_path: Path) -> None:
    (tmp_path / "call.yaml").write_text("referee: emoji-vanilla\nsteps: 0\ninit: grey\ndevice: cpu\n")
    robustclip.synthesize("a cat", config=tmp_path / "call.yaml", out=tmp_path / "run")
    robustclip.synthesize("a cat", seeds=[0, 1], resume=tmp_path / "run")
    record = Run.open(tmp_path / "run").record
    calls = [one["arguments"] for one in (record, *record["resumed"])]
    assert [(one["referee"], one["seeds"]) for one in calls] == [(["emoji-vanilla"], [0]), (["emoji-vanilla"], [0, 1])]


def test_a_referee_checks_texts() -> None:
    referee = robustclip.load_referee("emoji-vanilla")
    for texts in (["\ud800"], [3], None):
        with pytest.raises(UsageError):
            referee.embed_texts(texts)  # type: ignore[arg-type]
