"""Every flag that takes pictures reads them by the guarded reader: an EPS file named .png never starts Ghostscript."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import click
import pytest
from PIL import EpsImagePlugin, Image

from robustclip import signatures
from robustclip.cli import app, main
from robustclip.commands import TypedCommand

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
QUICK = ["--quick", "--device", "cpu", "--out", "OUT"]
EXPLAINED = ["explain", "--referees", "emoji-robust", "--texts", "a cat", "--attack", "none", "--no-gradients"]
FLAGS: dict[tuple[str, str], list[str]] = {
    ("synthesize clipag", "PROMPT"): ["synthesize", "clipag", "image:FILE", *QUICK],
    ("synthesize clipag", "--init"): ["synthesize", "clipag", "a cat", "--init", "FILE", *QUICK],
    ("synthesize clipag-faithful", "--init"): ["synthesize", "clipag-faithful", "a cat", "--init", "FILE", *QUICK],
    ("synthesize clipdraw", "--init"): ["synthesize", "clipdraw", "a cat", "--init", "FILE", *QUICK],
    ("synthesize clipstyler", "--content"): ["synthesize", "clipstyler", "made of gold", "--content", "FILE", *QUICK],
    ("synthesize vqgan", "--init"): ["synthesize", "vqgan", "a cat", "--init", "FILE", *QUICK],
    ("synthesize referee-can-play", "--init"): [
        *("synthesize", "referee-can-play", "a red fish and a blue hat", "--init", "FILE", *QUICK)
    ],
    ("synthesize inr", "--init"): ["synthesize", "inr", "a cat", "--init", "FILE", *QUICK],
    ("synthesize inr", "--reference"): ["synthesize", "inr", "a cat", "--reference", "CAPTIONED", *QUICK],
    ("synthesize doodl", "--init"): ["synthesize", "doodl", "a cat", "--init", "FILE", *QUICK],
    ("synthesize doodl", "--exemplar"): ["synthesize", "doodl", "a cat", "--exemplar", "FILE", *QUICK],
    ("explain", "--images"): [*EXPLAINED, "--images", "FILE", "--out", "OUT"],
    ("evaluate", "--data"): ["evaluate", "emoji-robust", "--data", "CLASSES", "--size", "64", "--device", "cpu"],
    ("judge", "PICTURES"): ["judge", "LISTED", "--device", "cpu", "--metrics", "cosine"],
    ("judge", "--reference"): [
        *("judge", "GOOD", "--device", "cpu", "--metrics", "cmmd", "--reference", "CLASSES", "--size", "64")
    ],
    ("distance", "A"): ["distance", "FILE", "GOOD/good.png", "--device", "cpu"],
    ("distance", "B"): ["distance", "GOOD/good.png", "FILE", "--device", "cpu"],
    ("survey make", "PICTURES"): ["survey", "make", "LISTED", "GOOD", "--out", "OUT.html"],
    ("mixture fit", "DATA"): [
        "mixture",
        "fit",
        "CLASSES",
        "--out",
        "OUT.safetensors",
        "--components",
        "1",
        "--size",
        "4",
    ],
    ("robustify fare-vit-l14", "--data"): ["robustify", "fare-vit-l14", "--data", "CLASSES", *QUICK],
}
TRAINED = {("robustify fare-vit-l14", "--data")}
"""Calls that take as long as a quick training."""
SAME = {"PROMPT": ("synthesize clipag", "PROMPT"), "--data": ("robustify fare-vit-l14", "--data")}
"""Flags that several recipes hand to one reader, by the call that tries it."""
OTHERS = {
    *("--pag", "--layer", "--templates", "--prompts", "--masking-source", "--out", "--texts", "--source", "--notes"),
    *("--content-features", "--vision", "--aesthetics", "--inception-weights", "--question", "--start"),
}
"""Flags whose help speaks of pictures and that take none."""


def flags() -> Iterator[tuple[str, str]]:
    """(verb, flag) of all that take texts or paths and speak of pictures."""

    def commands(group: click.Group, *path: str) -> Iterator[tuple[str, TypedCommand]]:
        for name in group.list_commands(click.Context(group)):
            command = group.get_command(click.Context(group), name)
            if isinstance(command, click.Group):
                yield from commands(command, *path, name)
            elif isinstance(command, TypedCommand):
                yield " ".join((*path, name)), command

    for verb, command in commands(app):
        if verb.startswith(("plan ", "reproduce ")):
            continue
        for parameter in signatures.parameters(command.load()):
            of_pictures = re.search(r"pictur|image|drawing|photo|exemplar", f"{parameter.help} {parameter.name}")
            if of_pictures and re.search("TEXT|PATH", parameter.label):
                yield verb, signatures.as_flag(parameter)


@pytest.mark.slow  # imports every recipe
def test_no_flag_that_takes_a_picture_is_left_out() -> None:
    found = {(verb, flag) for verb, flag in flags() if flag not in OTHERS}
    missing = {(verb, flag) for verb, flag in found if (verb, flag) not in FLAGS and SAME.get(flag) not in FLAGS}
    assert ("explain", "--images") in found
    assert not missing, f"add calls with these flags to the table: {missing}"


@pytest.mark.parametrize(
    ("verb", "flag"),
    [pytest.param(*key, id=" ".join(key), marks=pytest.mark.slow if key in TRAINED else ()) for key in FLAGS],
)
def test_an_eps_named_png_is_refused_or_counted_and_never_run(
    verb: str, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    for folder in ("CLASSES/cat", "CLASSES/dog", "LISTED", "GOOD", "CAPTIONED"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("FILE", "CLASSES/cat/named.png", "LISTED/named.png", "CAPTIONED/named.png"):
        (tmp_path / file).with_suffix(".png").write_bytes(EPS)
    for file in ("CLASSES/dog/good.png", "LISTED/good.png", "GOOD/good.png", "GOOD/other.png", "GOOD/third.png"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / file)
    (tmp_path / "CAPTIONED" / "named.txt").write_text("a cat")
    for folder, names in (("LISTED", ("named", "good")), ("GOOD", ("good", "other", "third"))):
        lines = [f'{{"file": "{name}.png", "prompt": "a cat"}}\n' for name in names]
        (tmp_path / folder / "prompts.jsonl").write_text("".join(lines))
    places = {"FILE": "FILE.png"} | {name: name for name in ("CLASSES", "CAPTIONED", "LISTED", "GOOD", "OUT")}
    words = [
        re.sub("|".join(places), lambda found: str(tmp_path / places[found[0]]), word) for word in FLAGS[verb, flag]
    ]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err, pytest.raises(SystemExit) as end:
        main(words)
    told = out.getvalue() + err.getvalue() + caplog.text
    assert "Traceback" not in told
    if end.value.code in (0, None):  # one broken picture among others is counted
        assert re.search(r"skipped|Skipped|left out|not read|could not|cannot|no picture|unreadable", told), told
    else:
        assert re.search(r"FILE|named\.png|none of", told), told
