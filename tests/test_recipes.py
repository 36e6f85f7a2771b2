from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import robustclip
from robustclip import recipes
from robustclip.errors import UsageError, coded

COMMON = "device: str = 'auto', dtype: str = 'auto', seed: int = 0, out: str | None = None, quick: bool = False"

RECIPE = f'''
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Settings:
    steps: int

def faults(steps: int, quick: bool):
    if quick and steps > 10:
        yield f"steps={{steps}} is not quick: give 10 or fewer"

def recipe(*, steps: int = 5, {COMMON}) -> dict[str, object]:
    """Count the steps. And say
    no more.

    Second paragraph.
    """
    return {{"steps": Settings(steps).steps, "seed": seed}}
'''


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "count_steps.py"
    path.write_text(RECIPE)
    return path


def test_a_path_is_a_recipe(recipe_file: Path) -> None:
    recipe = recipes.find(str(recipe_file), "robustify")
    assert recipe.name == "count-steps"
    assert recipe.summary == "Count the steps"


def test_listing_a_recipe_does_not_run_it(tmp_path: Path) -> None:
    path = tmp_path / "boom.py"
    path.write_text('raise RuntimeError("ran")\ndef recipe():\n    """Explode."""\n')
    assert recipes.find(str(path), "robustify").summary == "Explode"


def test_names_are_found_with_hyphens_and_in_other_rooms(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    room = tmp_path / "house" / "robustify"
    room.mkdir(parents=True)
    (room / "count_steps.py").write_text(RECIPE)
    (room / "_shared.py").write_text("")
    monkeypatch.setattr(recipes, "SHIPPED", tmp_path / "house")
    assert [recipe.name for recipe in recipes.available("robustify")] == ["count-steps"]
    assert recipes.find("count-steps", "robustify").path == room / "count_steps.py"
    assert recipes.find("robustify/count-steps", "synthesize").path == room / "count_steps.py"
    for name, near in (("count-step", ["count-steps"]), ("wonder", [])):
        with pytest.raises(UsageError, check=coded("unknown_recipe", near=near)) as error:
            recipes.find(name, "robustify")
        assert (error.value.code, error.value.values["near"]) == ("unknown_recipe", near)


def test_a_path_that_leads_nowhere() -> None:
    with pytest.raises(UsageError, check=lambda error: error.code == "unknown_recipe"):
        recipes.find("no/where.py", "robustify")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "recipe = 3",
        "def recipe(*, steps: int = 3): ...",
        'def recipe(*, steps: int = 3, out: str = ""):\n    """Do."""',
    ],
    ids=["empty", "no function", "no docstring", "lacks flags"],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.py"
    path.write_text(text)
    with pytest.raises(UsageError, check=coded("not_a_recipe")):
        recipes.find(str(path), "robustify").load()


def test_the_python_face_runs_a_recipe(recipe_file: Path) -> None:
    assert robustclip.robustify(str(recipe_file), steps=3, seed="7") == {"steps": 3, "seed": 7}


def test_the_python_face_makes_the_same_checks(recipe_file: Path) -> None:
    with pytest.raises(UsageError) as error:
        robustclip.robustify(str(recipe_file), steps="three", sed=1)
    assert error.value.codes == ["faults", "int_parsing", "unknown_argument"]
    assert "did you mean seed=?" in str(error.value)
    with pytest.raises(UsageError, match="steps=11 is not quick"):
        robustclip.robustify(str(recipe_file), steps=11, quick=True)


PRESET = '''
from robustclip.recipes import preset

@preset({base!r}, {changed})
def recipe() -> None:
    """Count more steps."""
'''


def test_a_preset_is_another_recipe_with_other_defaults(recipe_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.py"
    path.write_text(PRESET.format(base=str(recipe_file), changed="steps=9"))
    recipe = recipes.find(str(path), "robustify")
    assert recipe.summary == "Count more steps"
    assert recipe.describe().signature.parameters["steps"].default == 9
    assert recipe.function.__doc__ == "Count more steps."
    assert robustclip.robustify(str(path))["steps"] == 9
    assert robustclip.robustify(str(path), steps=3) == {"steps": 3, "seed": 0}
    with pytest.raises(UsageError, match="steps=11 is not quick"):
        robustclip.robustify(str(path), steps=11, quick=True)
    path.write_text(PRESET.format(base=str(recipe_file), changed="stps=9"))
    for ask in (recipes.find(str(path), "robustify").describe, recipes.find(str(path), "robustify").load):
        with pytest.raises(UsageError, check=lambda error: error.code == "unknown_argument"):
            ask()


@pytest.mark.parametrize("recipe", recipes.available("robustify"), ids=lambda recipe: recipe.name)
def test_shipped_recipes_keep_the_contract(recipe: recipes.Recipe) -> None:
    function = recipe.load()
    assert recipe.summary
    assert f"robustclip robustify {recipe.name}" in (function.__doc__ or ""), "the docstring holds the command"


@pytest.mark.parametrize(
    ("docstring", "summary"),
    [
        ("CLIPAG's ablation: L-inf (App. C), less pleasing. More.", "CLIPAG's ablation: L-inf (App. C), less pleasing"),
        ("Untrue (Eq. 4) of Li et al. here.", "Untrue (Eq. 4) of Li et al. here"),
        ("At eps 0.5, e.g. so. More.", "At eps 0.5, e.g. so"),
        ("It does. And more.", "It does"),
    ],
)
def test_a_summary_is_a_whole_sentence(tmp_path: Path, docstring: str, summary: str) -> None:
    path = tmp_path / "one.py"
    path.write_text(f'def recipe():\n    """{docstring}"""\n')
    assert recipes.find(str(path), "robustify").summary == summary


EVERY = [
    one for verb in ("align", "evaluate", "pretrain", "robustify", "synthesize") for one in recipes.available(verb)
]


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.full_name)
def test_flags_given_beside_quick_win_over_its_values(recipe: recipes.Recipe) -> None:
    function = inspect.unwrap(recipe.load())
    shrunk = {name: value for name, value in function.__globals__["QUICK"].items() if not callable(value)}
    verb, needed = recipe.path.parent.name, {"emoji-diffusion": {"vae": "vae"}}
    common = {"prompt": ["a cat"]} if verb == "synthesize" else needed.get(recipe.name, {})
    quick, faults = recipe.bind({"quick": True, **common})
    assert not faults
    assert shrunk.items() <= quick.items()
    plain = recipe.bind(common)[0]
    given = {name: plain[name] for name in shrunk}
    assert given.items() <= recipe.bind({"quick": True, **common, **given})[0].items()
    assert any(value != plain[name] for name, value in shrunk.items())
