"""What was tried on synthesize, judge, mixture and reproduce: as in `cases`."""

from __future__ import annotations

from collections.abc import Iterator

from .cases import ENDLESS, HELLO, NINES, NUL, TURN, Case

TOY = "--referee {toy} --init noise --quick"


def prompts() -> Iterator[Case]:
    """Prompts that say nothing, too much, or something else."""
    for text, words in (
        ("", "the prompt is empty"),
        ("   ", "the prompt is empty"),
        (" | ", "a part of the prompt is empty"),
        ("a cat:much", "the weight 'much' is not a number"),
        ("a cat:nan", "the weight 'nan' is not a number"),
        ("a cat:1e999", "from -100 to 100"),
        ("a cat:0", "from -100 to 100"),
        ("badly drawn:-0.3", "only pushes away"),
        ("ratio 16:9", "is 9 a weight?"),
        ("image:", "names no file"),
        (NUL, "holds a zero byte"),
        (ENDLESS * 3, "15000 characters"),
    ):
        yield "a prompt", ["synthesize", "clipag", text], 2, words
    for text, words in (
        ("image:{file}", "is not a readable picture"),
        ("image:{folder}", "no image at"),
        ("image:nowhere.png", "no image at"),
    ):
        yield "a prompt", ["synthesize", "clipag", text, *TOY.split()], 2, words
    long = " ".join(["turtle"] * 200)
    yield "a prompt", ["synthesize", "clipag", long, "--init", "noise", "--quick"], 2, "and emoji-robust reads 77"
    for text in (HELLO, TURN, "a" * 300):  # odd, and prompts all the same
        call = ["synthesize", "clipag", text, *TOY.split(), "--steps", "-1"]
        yield "a prompt", call, 2, "--steps '-1'"


def files_of_prompts() -> Iterator[Case]:
    """Files that hold no captions."""
    for given, words in (
        ("nowhere.txt", "is not a file"),
        ("{folder}", "is not a file"),
        ("{pipe}", "is not a file"),
        ("/dev/zero", "is not a file"),
    ):
        yield "a file of prompts", f"synthesize clipag --prompts {given} {TOY}", 2, words
    yield "a file of prompts", f"synthesize clipag {TOY}", 2, "there is no prompt"
    yield "a file of prompts", f"synthesize clipag cat --prompts {{file}} {TOY}", 2, "give one of the two"


def flags() -> Iterator[Case]:
    """Values that a flag of synthesize can't have."""
    for given, words in (
        ("--size 0", "is not a size of a picture"),
        ("--size -3", "is not a size of a picture"),
        ("--size 5000", "is not a size of a picture"),
        ("--size 64x", "is not a size of a picture"),
        ("--size 64x64x64", "is not a size of a picture"),
        ("--size 1e3", "is not a size of a picture"),
        (f"--size {NINES}", "is not a size of a picture"),
        ("--seeds 3..1", "write 1..3"),
        ("--seeds -1", "is not a seed"),
        ("--seeds a", "is not a seed"),
        ("--seeds 0,0", "names the seed 0 twice"),
        ("--seeds 0..99999999", "at most 10000"),
        (f"--seeds {NINES}", "is not a seed"),
        ("--seed x", "valid integer"),
        ("--candidates 1000000000000", "candidates take at least"),
        ("--lr 1e-320", "beyond the numbers of 32 bits"),
        ("--lr 1e300", "beyond the numbers of 32 bits"),
        ("--noise 1e39", "beyond the numbers of 32 bits"),
        ("--steps -1", "greater than or equal to 0"),
        ("--steps 1.5", "valid integer"),
        ("--lr 0", "greater than 0"),
        ("--lr nan", "finite number"),
        ("--strength 2", "less than or equal to 1"),
        ("--views 0", "greater than 0"),
        ("--batch-size 0", "greater than 0"),
        ("--canvas clay", "'pixels' or 'pyramid'"),
        ("--augment much", "'nudges', 'diffaug' or 'none'"),
        ("--init {folder}", "there is no file"),
        ("--init nowhere", "there is no file"),
        ("--referee emoji-robust=much", "is not a positive number"),
        ("--referee emoji-robust=-1", "is not a positive number"),
        ("--referee emoji-robust=nan", "is not a positive number"),
        ("--out {file}", "is not a folder"),
        ("--out {folder}", "is not empty"),
        ("--resume {folder}", "is not a run's folder"),
    ):
        yield "a flag of synthesize", f"synthesize clipag cat --quick {given}", 2, words
    for given, words in (
        ("--referee {toy} --init {file}", "is not a readable picture"),
        ("--referee nobody", "there is no referee 'nobody'"),
        ("--referee {toy} --referee {toy} --init noise", "comes twice"),
    ):
        yield "what synthesize meets", f"synthesize clipag cat --quick {given}", 2, words
    many = "synthesize clipag cat --referee {toy} --init noise --views 100000000000"
    yield "what synthesize meets", many, 2, "views each, at a time, take at least"
    yield "a recipe", "synthesize clipagg cat", 2, "did you mean clipag"
    yield "a recipe", "synthesize ../robustify/emoji cat", 2, "unknown recipe"
    yield "an out", f"synthesize clipag cat {TOY} --out {{file}}/x", 1, "no run can be kept"


def judgements() -> Iterator[Case]:
    """Pictures that can't be judged, mixtures that can't be fitted, tables that are none."""
    for given, words in (
        ("nowhere", "no folder of pictures"),
        ("{file}", "no folder of pictures"),
        ("{folder}", "contains no pictures"),
        ("{folder} --metrics beauty", "should be 'r-precision'"),
        ("{folder} --metrics fid", "need Inception's weights"),
        ("{folder} --metrics frechet", "is a distance to real images"),
        ("{folder} --candidates 1", "at least one other"),
        ("{folder} --aesthetics {file}", "add aesthetics to the metrics"),
    ):
        yield "a judgement", f"judge {given}", 2, words
    for given, words in (
        ("nowhere --out m.safetensors", "no data at"),
        ("{file} --out m.safetensors", "no data at"),
        ("emoji/guide-style --out m.safetensors", "has no split"),
        ("emoji/guide-styles --out m.png", "a mixture is a .safetensors file"),
        ("emoji/guide-styles --out m.safetensors --size 0", "greater than or equal to 1"),
        ("emoji/guide-styles --out m.safetensors --components 0", "greater than 0"),
        ("emoji/guide-styles --out m.safetensors --ridge nan", "finite number"),
        ("emoji/guide-styles", "--out is missing"),
    ):
        yield "a mixture", f"mixture fit {given}", 2, words
    yield "a table", "reproduce table9", 2, "unknown recipe"
    yield "a table", "reproduce table1 --candidates 0", 2, "greater than 0"
    yield "a table", "reproduce table1 --prompts nowhere.txt", 2, "is not a file"


SYNTHESIS: tuple[Case, ...] = (*prompts(), *files_of_prompts(), *flags(), *judgements())
