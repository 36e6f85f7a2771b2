"""Files and folders that are no referees and no data: texts, pipes, loops, recipes, records of runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from .things import Maker, Payload, made, maker


def text_file(content: str | bytes, name: str = "file.txt") -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return make


@maker
def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


@maker
def loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


@maker
def folder(folder: Path) -> Path:
    (folder / "inside").touch()
    return folder


made("nowhere", lambda folder: folder / "not-here")
made("file", text_file("hello"))
made("templates_latin", text_file("a caf\xe9 of {}".encode("latin-1")))
made("templates_empty", text_file("\n\n"))
made("templates_no_place", text_file("a photo\n"))
made("templates_two_places", text_file("{} and {}\n"))
made("templates_megabytes", text_file(b"{}" * 20_000_000))
made("pickle_file", lambda folder: (torch.save({"a": Payload()}, folder / "x.pt"), folder / "x.pt")[1])
made("recipe_not_python", text_file("def recipe(:\n", "recipe.py"))
made("recipe_nul", text_file(b"a = 1\0\n", "recipe.py"))
made("recipe_latin", text_file("# caf\xe9\n".encode("latin-1"), "recipe.py"))
made("recipe_empty", text_file("", "recipe.py"))
made("recipe_raises", text_file("raise ValueError('boom')\n", "recipe.py"))
made("recipe_exits", text_file("import sys; sys.exit(0)\n", "recipe.py"))
made("recipe_imports", text_file("import a_module_that_is_not\n", "recipe.py"))
made("recipe_no_types", text_file("def recipe(steps, *rest):\n    'Do.'\n", "recipe.py"))
made("recipe_lacks_flags", text_file("def recipe(*, steps: int = 3):\n    'Do.'\n", "recipe.py"))
made("recipe_deep", text_file("(" * 100_000 + ")" * 100_000, "recipe.py"))
made("recipe_a_number", text_file("recipe = 3\n", "recipe.py"))


@maker
def recipe_folder(folder: Path) -> Path:
    (folder / "recipe.py").mkdir()
    return folder / "recipe.py"


@maker
def recipe_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "recipe.py")
    return folder / "recipe.py"


def run_folder(record: object) -> Maker:
    def make(folder: Path) -> Path:
        (folder / "run.json").write_text(record if isinstance(record, str) else json.dumps(record))
        return folder

    return make


made("run_bare", run_folder({}))
made("run_list", run_folder([]))
made("run_not_json", run_folder("{"))
made("run_of_another", run_folder({"recipe": "../../x", "status": "finished"}))
