"""Notebooks import and never define: what is worth defining is worth a place in the package."""

from __future__ import annotations

import ast
import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import robustclip

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def code_of(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_defines_nothing(path: Path) -> None:
    nodes = [node for cell in code_of(path) for node in ast.walk(ast.parse("".join(cell["source"])))]
    assert nodes
    assert not [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_public_names_only(path: Path) -> None:
    """`robustclip`, and from its public modules what they list; robustclip.data.images has no list."""
    for cell in code_of(path):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.Import):
                ours = [one.name for one in node.names if one.name.split(".")[0] == "robustclip"]
                assert ours in ([], ["robustclip"])
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "robustclip":
                room = (node.module or "").removeprefix("robustclip").removeprefix(".")
                assert room in ("", "data.images", *robustclip.__all__)
                listed = getattr(import_module(node.module or ""), "__all__", None)
                for one in node.names:
                    assert one.name in listed if listed else not one.name.startswith("_")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_its_outputs(path: Path) -> None:
    """tools/run_notebooks.py stores them, below 300 kB a notebook, and no path of the machine that it ran on."""
    cells = code_of(path)
    assert any(cell["outputs"] for cell in cells)
    assert all(cell["execution_count"] for cell in cells)
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert "error" not in kinds
    assert path.stat().st_size < 300_000
    assert not re.search(r"/(work|home|root|tmp)/", path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where its runs go
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    exec("\n".join("".join(cell["source"]) for cell in cells), {"__name__": "notebook"})
