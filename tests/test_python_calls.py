"""Public functions called from Python with values of the wrong type: a UsageError that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import robustclip
from robustclip import attacks, data, images, recipes
from robustclip.attacks.threat import ThreatModel
from robustclip.errors import UsageError
from robustclip.evaluation.generation.judge import judge
from robustclip.inits.fit import fit
from robustclip.referees.base import check_images, check_texts
from robustclip.signatures import typed

NAME = "emoji-robust"
PICTURES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
THREAT = ThreatModel("linf", 4 / 255, 8)


def explain(**given: Any) -> Any:
    return robustclip.explain(**{"referees": NAME, "images": "emoji/scenes", "out": Path("nowhere"), **given})


def pgd(*given: Any, **named: Any) -> Any:
    defaults = (PICTURES, lambda x: x.sum((1, 2, 3)), THREAT)
    return attacks.pgd(*given, *defaults[len(given) :], **{"steps": 1, **named})


CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "evaluate limit": (lambda: robustclip.evaluate(NAME, limit="x"), "limit= 'x': should be a valid integer"),
    "evaluate half a limit": (lambda: robustclip.evaluate(NAME, limit=2.5), "limit= 2.5"),
    "evaluate true limit": (lambda: robustclip.evaluate(NAME, limit=True), "limit= True: is a boolean"),
    "evaluate tasks": (lambda: robustclip.evaluate(NAME, tasks=3), "tasks="),
    "evaluate no tasks": (lambda: robustclip.evaluate(NAME, tasks=None), "tasks="),
    "evaluate attack": (lambda: robustclip.evaluate(NAME, attack=3), "attack= 3: should be a valid string"),
    "evaluate data": (lambda: robustclip.evaluate(NAME, data=None), "data= None"),
    "evaluate seed": (lambda: robustclip.evaluate(NAME, seed="x"), "seed= 'x'"),
    "evaluate out": (lambda: robustclip.evaluate(NAME, out=3), "out= 3"),
    "evaluate masking": (lambda: robustclip.evaluate(NAME, masking="x"), "masking= 'x'"),
    "evaluate sigma": (lambda: robustclip.evaluate(NAME, sigma="x"), "sigma= 'x'"),
    "evaluate prompts": (lambda: robustclip.evaluate(NAME, prompts=["\ud800"]), "prompts= .*not UTF-8"),
    "evaluate nobody": (lambda: robustclip.evaluate(), "referees= is missing"),
    "evaluate three": (lambda: robustclip.evaluate(3), "referees= 3: .*instance of TwoTower"),
    "evaluate limits": (lambda: robustclip.evaluate(NAME, limits=2), "did you mean limit="),
    "explain images": (lambda: explain(images=3), "images= 3"),
    "explain texts": (lambda: explain(texts=["\ud800"]), "texts= .*not UTF-8"),
    "explain attack": (lambda: explain(attack=None), "attack= None"),
    "explain method": (lambda: explain(method=3), "method= 3"),
    "explain layer": (lambda: explain(layer=3), "layer= 3"),
    "explain limit": (lambda: explain(limit=-1), "limit= -1"),
    "explain batch": (lambda: explain(batch_size=0), "batch_size= 0"),
    "explain nothing": (lambda: robustclip.explain(images="emoji/scenes"), "referees= is missing"),
    "export run": (lambda: robustclip.export(3, name="unheard-of"), "run= 3: .*instance of TwoTower"),
    "export name": (lambda: robustclip.export("x", name=3), "name= 3"),
    "export to": (lambda: robustclip.export("x", name="x", to=3), "to= 3"),
    "export format": (lambda: robustclip.export("x", name="x", format=3), "format= 3"),
    "export nameless": (lambda: robustclip.export("x"), "name= is missing"),
    "load a number": (lambda: robustclip.load_referee(3), "name= 3"),
    "load with nothing": (lambda: robustclip.load_referee(NAME, nothing=3), "nothing=: unknown argument"),
    "judge nothing": (lambda: judge(None), "pictures= None"),
    "judge seed": (lambda: judge(["x"], seed="x"), "seed= 'x'"),
    "judge metrics": (lambda: judge(["x"], metrics=3), "metrics= 3"),
    "fit size": (lambda: fit("emoji/unseen-styles", out="m.safetensors", size="x"), "size= 'x'"),
    "fit components": (lambda: fit("emoji/unseen-styles", out="m.safetensors", components=True), "boolean"),
    "robustify three": (lambda: robustclip.robustify(3), "a recipe is a name or a path, not 3"),
    "robustify nothing": (lambda: robustclip.robustify(None), "a recipe is a name or a path, not None"),
    "robustify steps": (lambda: robustclip.robustify("emoji", steps="x"), "steps= 'x'"),
    "plan three": (lambda: robustclip.plan(3), "a recipe is a name or a path"),
    "synthesize by three": (lambda: robustclip.synthesize("cat", 3), "3 is not a referee"),
    "synthesize by nobody": (lambda: robustclip.synthesize("cat", None), "None is not a referee"),
    "synthesize recipe": (lambda: robustclip.synthesize("cat", recipe=None), "a recipe is a name or a path"),
    "reproduce three": (lambda: recipes.run(3, "evaluate", {}), "a recipe is a name or a path"),
    "pgd images": (lambda: pgd(PICTURES.numpy()), "not a ndarray"),
    "pgd loss": (lambda: pgd(PICTURES, 3), r"pgd\(loss_fn=3\)"),
    "pgd threat": (lambda: pgd(PICTURES, lambda x: x, "l2"), r"pgd\(threat='l2'\)"),
    "pgd steps": (lambda: pgd(steps=1.5), "steps must be a whole number"),
    "pgd step": (lambda: pgd(step_size="x"), "step_size must be a number"),
    "pgd start": (lambda: pgd(start=3), r"pgd\(start=3\)"),
    "pgd generator": (lambda: pgd(generator=3), r"pgd\(generator=3\)"),
    "pgd module": (lambda: pgd(module=3), r"pgd\(module=3\)"),
    "pgd one loss": (lambda: pgd(PICTURES, lambda _: 3.0), "must return a tensor"),
    "attack spec": (lambda: attacks.AttackSpec.parse(None), "cannot read the attack None"),  # type: ignore[arg-type]
    "split": (lambda: data.load_split("emoji", None), "a split is a name"),  # type: ignore[arg-type]
    "save a batch": (lambda: images.save_image(PICTURES, "x.png"), r"give one, e.g. images\[0\]"),
    "save three": (lambda: images.save_image(3, "x.png"), "a picture is a tensor"),  # type: ignore[arg-type]
    "texts half": (lambda: check_texts(["a", "\ud800"]), "lone surrogate"),
    "texts three": (lambda: check_texts([3]), "got a int"),  # type: ignore[list-item]
    "texts nothing": (lambda: check_texts(None), "got a NoneType"),  # type: ignore[arg-type]
    "texts bytes": (lambda: check_texts([b"cat"]), "got a bytes"),  # type: ignore[list-item]
    "images list": (lambda: check_images([PICTURES]), "images are a list"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CALLS)
def test_a_value_of_the_wrong_type_is_a_fault_of_the_call(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, message = CALLS[name]
    with pytest.raises(UsageError, match=message):
        call()
    assert not list(tmp_path.iterdir())


def test_all_faults_come_at_once_and_what_came_is_read_as_on_the_command_line() -> None:
    @typed
    def command(names: list[str], count: int = 1, *, device: str = "cpu", quick: bool = False) -> tuple[Any, ...]:
        return names, count, device, quick

    assert command("a", "3") == (["a"], 3, "cpu", False)  # type: ignore[arg-type]
    assert command(["a"], device=torch.device("cpu")) == (["a"], 1, "cpu", False)  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        command(3, "x", True, nothing=1)  # type: ignore[call-arg, arg-type]
    told = str(caught.value)
    assert all(words in told for words in ("3 arguments by place", "names= 3", "count= 'x'", "nothing=: unknown"))
    with pytest.raises(UsageError, match="names= is given twice"):
        command(["a"], names=["b"])


def test_a_referee_checks_texts() -> None:
    referee = robustclip.load_referee("emoji-vanilla")
    for texts in (["\ud800"], [3], None):
        with pytest.raises(UsageError):
            referee.embed_texts(texts)  # type: ignore[arg-type]
