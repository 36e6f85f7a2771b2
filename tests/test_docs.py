"""What the documentation tells readers to type is what the command line and the package take."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import takewhile
from pathlib import Path

import click
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import robustclip
from robustclip.cli import app
from robustclip.data.embedded import path
from robustclip.errors import UsageError, coded

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`(robustclip [a-z][^`\n]*)`(?!`)")
LEFT_OUT = "..."
PLACEHOLDER = re.compile(r"[A-Z]{3,}(\.\w+)?")


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if language in languages:
            yield text


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every call of robustclip on a page, without its launcher."""
    lines = [line for text in blocks(page, "sh", "bash") for line in text.replace("\\\n", " ").splitlines()]
    spans = SPAN.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    for line in [*lines, *(span for span in spans if not any(map(PLACEHOLDER.fullmatch, span.split())))]:
        words = shlex.split(line, comments=True)
        if "robustclip" not in words or words[:2] == ["pip", "install"]:
            continue
        call = words[words.index("robustclip") + 1 :]
        yield list(takewhile(lambda word: word not in ("&", ">"), call))


CALLS = [(page.relative_to(ROOT).as_posix(), call) for page in PAGES for call in commands(page)]


def check(words: list[str]) -> None:
    """Bind a call as the command line would, and stop before anything runs. Raises its faults, or click's."""
    command: click.Command = app
    context = click.Context(app, info_name="robustclip")
    words = list(words)
    while isinstance(command, click.Group):
        if not words or words[0].startswith("--"):
            assert set(words) <= {"--help", "--version"}, words
            return
        found = command.get_command(context, words[0])
        assert found is not None, f"robustclip has no command {words[0]}"
        command = found
        context = click.Context(command, info_name=words.pop(0), parent=context)
    if "--help" in words or not words:
        return
    tried = ["--quick"] if LEFT_OUT in words else []  # whose call lacks its data
    given = [word for word in words if word != LEFT_OUT]
    command.make_context(context.info_name, given + tried, parent=context.parent)


@pytest.mark.parametrize(
    ("page", "call"), CALLS, ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60]
)
def test_every_command_of_the_documentation_parses(
    page: str, call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # what the pages take for granted
    for folder in (
        "imagenet/val/cat",
        "imagenet/val/dog",
        "runs/clipag-1",
        "runs/clipag-2",
        "runs/jem-noise",
        "runs/control-noise",
    ):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("captions.jsonl", "color_val.txt", "spatial_val.txt", "complex_val.txt", "survey.key.json"):
        (tmp_path / name).touch()
    for name in ("last.ckpt", "blip2_pretrained.pth", "eva_vit_g.pth"):
        (tmp_path / name).touch()
    (tmp_path / "model.yaml").write_text("{model: {params: {ddconfig: {}}}}")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    for file in ("my-mixture.safetensors", "tiny.safetensors"):
        shutil.copy(path("mixtures", "emoji-groups.safetensors"), tmp_path / file)
    save_file({"delta": torch.ones(3, 8, 8)}, tmp_path / "delta.safetensors")
    written = {"survey make": "survey.key.json", "mixture fit": "tiny.safetensors"}.get(" ".join(call[:2]))
    if written is not None or call[0] == "universal":
        (tmp_path / (written or "delta.safetensors")).unlink()
    check(call)


def test_commands_are_found_in_all_their_forms() -> None:
    pages = {page for page, _ in CALLS}
    assert {"README.md", "docs/scaling.md", "docs/migration/open_clip.md"} <= pages
    assert len(CALLS) > 20
    launched = [call for page, call in CALLS if page == "docs/scaling.md"]
    assert all(call[0] in ("robustify", "plan") for call in launched)


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (["robustify", "emoji", "--stpes", "3"], coded("unknown_flag", flag="--stpes")),
        (["robustify", "clipag-vit-b32", "--lr", "1e-5"], coded("missing", argument="sbu")),
        (["robustify", "emojy"], coded("unknown_recipe", near=["emoji"])),
        (["plan", "emoji", "--gpu", "abacus"], coded("value_error", argument="gpu", given="abacus")),
    ],
)
def test_a_wrong_command_would_be_found(call: list[str], fault: Callable[[BaseException], bool]) -> None:
    with pytest.raises(UsageError, check=fault):
        check(call)


PYTHON = [(page.relative_to(ROOT).as_posix(), text) for page in PAGES for text in blocks(page, "python")]


@pytest.mark.parametrize(("page", "text"), PYTHON, ids=[f"{page} {number}" for number, (page, _) in enumerate(PYTHON)])
def test_every_name_of_robustclip_in_a_python_block_exists(page: str, text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("robustclip"):
            for alias in node.names:
                assert hasattr(import_module(node.module), alias.name)
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if re.fullmatch(r"robustclip(\.\w+)+", dotted):
                found: object = robustclip
                for name in dotted.split(".")[1:]:
                    found = getattr(found, name)


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_the_site_leads_to_every_page() -> None:
    """`make docs` fails for a page outside the navigation, and is not part of `make test`."""
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f" {page}\n" not in listed] == []


def test_the_loop_in_pixel_space_runs() -> None:
    page = ROOT / "docs" / "migration" / "clipag.md"
    (loop,) = (text for text in blocks(page, "python") if "AdamW" in text)
    names: dict[str, object] = {}
    exec(compile(loop, str(page), "exec"), names)
    assert float(names["loss"].detach()) < 0.8  # type: ignore[attr-defined]
    assert os.environ.get("ROBUSTCLIP_TRACEBACK") is None
