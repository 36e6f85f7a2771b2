"""What was tried on explain: as in `cases`."""

from __future__ import annotations

from collections.abc import Iterator

from .cases import ENDLESS, HELLO, NUL, TURN, Case

TOY = "--referees {toy} --out {out}"
UNREADABLE = (
    *("png_claim", "png_claim_30000", "truncated", "empty_picture", "text_as_picture", "svg", "eps", "bmp"),
    *("one_pixel_wide", "16_bits", "pipe", "zeros", "unreadable", "dangling", "sparse"),
)
"""Folders with a picture that can't be one, beside others that can."""
ONE = f"explain {TOY} --images emoji/judge-heldback --limit 1 --texts"


def images() -> Iterator[Case]:
    """What is no image, no folder, and no set."""
    for given, words in (
        ("nowhere.png", "no image or folder at 'nowhere.png'"),
        ("{pipe}", "no image or folder at"),
        ("/dev/zero", "no image or folder at '/dev/zero'"),
        ("emoji/nothing", 'no split "nothing"'),
        ("emoji/../../etc", "no split"),
        ("{file}", "no image is left to explain"),
        ("{folder}", "no image is left to explain"),
        ("{data_empty}", "no image is left to explain"),
        ("{data_no_pictures}", "no image is left to explain"),
        ("{toy}", "not pictures left out"),
    ):
        yield "images", f"explain {TOY} --images {given} --texts cat", 2, words
    yield "images", ["explain", "--referees", "{toy}", "--images", ENDLESS, "--texts", "cat"], 2, "no image or folder"
    yield "images", ["explain", "--referees", "{toy}", "--images", NUL, "--texts", "cat"], 2, "holds a zero byte"
    yield "images", f"explain {TOY} --texts cat", 2, "--images"


def texts() -> Iterator[Case]:
    """Texts that say nothing, and others that have none to belong to."""
    for text in ("", "   ", "\t"):
        yield "texts", ["explain", "--referees", "{toy}", "--images", "emoji/scenes", "--texts", text], 2, "is empty"
    for given, words in (
        ("cat --negations a b", "2 negations for 1 texts"),
        ("cat --negations ''", "a negation is empty"),
        ("cat --objective targeted", "needs a target"),
        ("cat --objective targeted --targets a b", "2 targets for 1 texts"),
        ("cat --targets dog", "no effect with the objective 'negation'"),
        ("cat --objective denial", "'denial'"),
    ):
        yield "texts", f"{ONE} {given}", 2, words
    for text in (HELLO, TURN, "<script>alert(1)</script>"):  # odd, and texts all the same
        yield "texts", [*f"{ONE} x".split()[:-1], text, "--attack", "l2"], 2, "cannot read the attack 'l2'"


def flags() -> Iterator[Case]:
    """Values that a flag of explain can't have."""
    for given, words in (
        ("--method gradcamm", "'gradcamm'"),
        ("--method gradcam-cls", "no class token"),
        ("--target loss", "'cosine', 'logit' or 'softmax'"),
        ("--method gradient --target cosine", "leave out the target"),
        ("--layer nowhere", "which is not a layer of it"),
        ("--layer 3", "no grid in its output"),
        ("--method gradient --layer 0", "maps pixels, not a layer"),
        ("--attack l2:nan@2", "is not a positive number"),
        ("--attack linf:8@2", "looks as if given in /255"),
        ("--attack l2:1@0", "is not a whole number"),
        ("--limit 0", "--limit"),
        ("--batch-size -1", "--batch-size"),
        ("--device abacus", "unknown device 'abacus'"),
        ("--dtype int3", "int3"),
        ("--out {file}", "is not a folder"),
        ("--referees nowhere", "nowhere"),
    ):
        yield "flags", f"{ONE} cat {given}", 2, words
    yield "flags", "explain --referees {toy} {toy} --images emoji/scenes --limit 1", 2, "are called"


EXPLAIN: tuple[Case, ...] = (*images(), *texts(), *flags())
