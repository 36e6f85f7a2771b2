"""Size of the code, import cycles, and files and functions that three calls pass: `python tools/house.py`.

With `--tree FOLDER` of another checkout, e.g. an earlier commit, its lines, modules and cycles.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Final

import grimp

PACKAGE: Final = "robustclip"
ROOT: Final = Path(__file__).parents[1]


def main(tree: Path) -> None:
    files = [file for folder in ("src", "recipes") for file in (tree / folder).rglob("*.py")]
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    print(f"lines in src and recipes: {lines:,}")
    print(f"modules: {len(files)}")
    print(f"import cycle: {cycle(tree / 'src') or 'none'}")
    if tree.resolve() != ROOT:
        return
    print("\n| call | files | functions |\n|---|---|---|")
    for name, call in journeys().items():
        passed = functions(call)
        print(f"| {name} | {len({file for file, _ in passed})} | {len(passed)} |")


def cycle(source: Path) -> str:
    """One cycle of modules that import each other, also inside functions; annotations' imports do not count."""
    sys.path.insert(0, str(source))
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    try:
        TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()
    except CycleError as error:
        return " -> ".join(error.args[1])
    return ""


def journeys() -> dict[str, Callable[[Path], object]]:
    """A prompt, an eps and a shard's picture (docs/architecture.md), each as a quick call that writes to a folder."""
    import robustclip_emoji
    from robustclip import evaluate, robustify, synthesize

    shard = str(Path(robustclip_emoji.__file__).parent / "emoji" / "emoji-noto.tar.gz")
    return {
        'synthesize clipag "a cat" --quick': lambda out: synthesize(
            ["a cat"], "emoji-robust", recipe="clipag", quick=True, out=out / "prompt"
        ),
        "evaluate emoji-vit-robust --attack l2:1.5@2 --limit 8": lambda _: evaluate(
            "emoji-vit-robust", attack=["l2:1.5@2"], limit=8
        ),
        "robustify clipag-vit-b32 --data SHARD --quick": lambda out: robustify(
            "clipag-vit-b32", data=[shard], workers=0, quick=True, out=out / "shard"
        ),
    }


def functions(call: Callable[[Path], object]) -> set[tuple[str, str]]:
    """(file, function) of this package and its recipes that a call enters, in its own thread."""
    passed: set[tuple[str, str]] = set()
    inside = (str(ROOT / "src" / PACKAGE), str(ROOT / "recipes"))

    def entered(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(inside) and not code.co_name.startswith("<"):
            passed.add((code.co_filename, code.co_qualname))

    with TemporaryDirectory() as folder:
        sys.setprofile(entered)
        try:
            call(Path(folder))
        finally:
            sys.setprofile(None)
    return passed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, help="a checkout")
    main(**vars(parser.parse_args()))
