"""What is installed is what is here: recipes travel in the code's wheel, the embedded world in a wheel of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from robustclip import recipes
from robustclip.data import embedded

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "robustclip"
WORLD = ROOT / "src" / "robustclip_emoji"
LEFT_OUT = ("icons/",)  # of the world's wheel: its pyproject.toml says why

pytestmark = pytest.mark.slow


def build(source: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(WORLD, tmp_path_factory.mktemp("world"))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command with the packages in `folder` before all others, and nothing of this checkout."""
    command = [sys.executable, "-c", HERE_ONLY, str(folder), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


HERE_ONLY = f"""import os, sys
folder = sys.argv.pop(1)
sys.path = [folder, *(path for path in sys.path if os.path.realpath(path or ".") != {os.path.realpath(ROOT / "src")!r})]
from robustclip.cli import main
main()
"""


def test_recipes_and_templates_are_inside(wheel: Path) -> None:
    held = names(wheel)
    shipped = {f"robustclip/_recipes/{path.relative_to(recipes.CHECKOUT)}" for path in recipes.CHECKOUT.rglob("*.py")}
    templates = {f"robustclip/{path.relative_to(PACKAGE)}" for path in (PACKAGE / "pages/templates").iterdir()}
    assert shipped
    assert shipped | templates | {"robustclip/py.typed", "robustclip/referees/released.toml"} <= held
    assert not [name for name in held if name.startswith(("tests/", "tools/", "recipes/", "robustclip_emoji/"))]
    assert wheel.stat().st_size < 2e6


def test_the_world_is_a_wheel_of_its_own(world: Path) -> None:
    listed = embedded.path("SHA256SUMS").read_text(encoding="utf-8").splitlines()
    held = names(world)
    files = {line.split("  ")[1] for line in listed}
    assert {f"robustclip_emoji/{file}" for file in files if not file.startswith(LEFT_OUT)} <= held
    assert all(name.startswith(("robustclip_emoji/", "robustclip_emoji-")) for name in held)
    assert any(name.endswith(".dist-info/licenses/NOTICE") for name in held)
    assert world.stat().st_size < 100e6


def test_the_code_stands_alone_and_finds_the_world_where_it_is_installed(
    wheel: Path, world: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    shown = run(tmp_path, "robustify", "--help")
    assert shown.returncode == 0, shown.stderr
    assert all(recipe.name in shown.stdout for recipe in recipes.available("robustify"))
    alone = run(tmp_path, "referees", "show", "emoji-robust")
    assert alone.returncode == 2
    assert "robustclip[emoji]" in alone.stderr
    with zipfile.ZipFile(world) as archive:
        archive.extractall(tmp_path)
    together = run(tmp_path, "referees", "show", "emoji-robust")
    assert together.returncode == 0, together.stderr
    assert "emoji-robust" in together.stdout
