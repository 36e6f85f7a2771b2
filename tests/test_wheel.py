"""What is installed is what is here: recipes and assets travel inside the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from robustclip import recipes

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "robustclip"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_recipes_and_assets_are_inside(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    shipped = {f"robustclip/_recipes/{path.relative_to(recipes.CHECKOUT)}" for path in recipes.CHECKOUT.rglob("*.py")}
    assets = {path for path in (PACKAGE / "assets").rglob("*") if path.is_file()}
    assets |= set((PACKAGE / "explanation" / "templates").iterdir())
    assert shipped
    assert shipped <= held
    assert {f"robustclip/{path.relative_to(PACKAGE)}" for path in assets if "__pycache__" not in path.parts} <= held
    assert not [name for name in held if name.startswith(("tests/", "tools/", "recipes/"))]


def test_recipes_are_found_by_name_without_a_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    shown = subprocess.run(
        [sys.executable, "-m", "robustclip", "robustify", "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = [recipe.name for recipe in recipes.available("robustify")]
    assert names
    assert all(name in shown for name in names)
