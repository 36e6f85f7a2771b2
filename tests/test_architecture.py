"""Architecture checks: which module may import which optional library, and how long a file may be."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "robustclip"
PAGE = 400  # lines

# A library and the only files (or packages, with a slash at the end) of src/robustclip that may import it.
ONLY_IMPORTERS = {
    "accelerate": ["runs/distributed.py", "runs/records.py"],
    "diffusers": ["diffusion/"],
    "fsspec": ["data/tars.py"],
    "gradio": ["app.py"],
    "huggingface_hub": ["robustification/push.py", "runs/hub.py"],
    "IPython": ["synthesis/watching.py"],
    "imscore": ["evaluation/generation/scorers.py"],
    "jinja2": ["pages/rendering.py"],
    "kornia": ["views/"],
    "open_clip": ["referees/openclip.py"],
    "peft": ["diffusion/adapters.py"],
    "pytorch_grad_cam": ["explanation/gradcam.py"],
    "tensorboard": ["runs/records.py"],
    "torch.utils.tensorboard": ["runs/records.py"],
    "sklearn": ["inits/mixture.py"],
    "spacy": ["evaluation/generation/compbench/prompts.py"],
    "svgelements": ["drawing/svg_reader.py"],
    "t2v_metrics": ["evaluation/generation/scorers.py"],
    "torch_fidelity": ["evaluation/generation/measure.py"],
    "torchattacks": ["attacks/library.py"],
    "torchmetrics": ["evaluation/perceptual.py"],
    "transformers": [
        *("referees/huggingface.py", "referees/sentence.py", "referees/blip2_full.py", "referees/pair_readers.py"),
        *("referees/compbench.py", "diffusion/pipelines.py"),
    ],
    "webdataset": ["data/shards.py"],
}


def sources() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "recipes").rglob("*.py")])


def imports(text: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that is imported anywhere in a file, also inside functions."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def misplaced(text: str, file: str) -> list[tuple[int, str]]:
    """Lines of a file, with the library each imports against the table."""
    return [
        (line, library)
        for line, name in imports(text)
        for library, homes in ONLY_IMPORTERS.items()
        if f"{name}.".startswith(f"{library}.")
        and not any(file == home or (home.endswith("/") and file.startswith(home)) for home in homes)
    ]


def test_libraries_are_imported_by_their_modules_only() -> None:
    assert len(sources()) > 10
    faults = [
        f"{path.relative_to(ROOT)}:{line}: move `{library}` to {' or '.join(ONLY_IMPORTERS[library])}"
        for path in sources()
        for line, library in misplaced(
            path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix().removeprefix("src/robustclip/")
        )
    ]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize(
    ("line", "library"),
    [
        ("import open_clip", "open_clip"),
        ("import open_clip.transformer as t", "open_clip"),
        ("def f():\n    from transformers import CLIPModel", "transformers"),
        ("from torch.utils.tensorboard import SummaryWriter", "torch.utils.tensorboard"),
        ("from torch.utils import tensorboard", "torch.utils.tensorboard"),
        ("import webdataset", "webdataset"),
    ],
)
def test_the_table_finds_every_form_of_import(line: str, library: str) -> None:
    assert misplaced(line, "evaluation/zeroshot.py") == [(line.count("\n") + 1, library)]
    assert not misplaced(line, ONLY_IMPORTERS[library][0])


def test_namesakes_are_not_confused() -> None:
    assert not misplaced("import transformers_extra\nfrom . import transformers\nimport torch.utils.data", "cli.py")


def test_rooms_import_downwards_only() -> None:
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True, no_logo=True))"
    paths = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_no_page_is_too_long() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    faults = [
        f"{path.relative_to(ROOT)}: {length} lines, split it" for path, length in lengths.items() if length > PAGE
    ]
    assert not faults, "\n" + "\n".join(faults)


def test_help_of_an_evaluation_does_not_wait_for_torchvision() -> None:
    code = "import sys, robustclip.evaluation.evaluate; print('torchvision' in sys.modules)"
    paths = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=True
    )
    assert run.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    "start",
    [
        "import robustclip",
        "import runpy, sys; sys.argv = ['robustclip', '--help']; runpy.run_module('robustclip', run_name='__main__')",
        "from robustclip.cli import main; main(['synthesize', 'doodl', '--help'])",
    ],
    ids=["import robustclip", "robustclip --help", "robustclip synthesize doodl --help"],
)
def test_starting_imports_neither_torch_nor_psutil_nor_progress_bars(start: str) -> None:
    slow = {"torch", "psutil", "rich.progress"}
    code = f"import atexit, sys; atexit.register(lambda: print(bool({slow} & set(sys.modules)))); {start}"
    paths = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    "package", sorted({path.parent for path in PACKAGE.rglob("__init__.py")}), ids=lambda p: p.name
)
def test_a_package_has_all_that_it_exports(package: Path) -> None:
    module = import_module(".".join(package.relative_to(PACKAGE.parent).parts))
    assert [name for name in getattr(module, "__all__", []) if not hasattr(module, name)] == []
