"""The benchmark's prompts, and the pictures of each: matched by what they say or are called, never by their order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from robustclip.errors import UsageError
from robustclip.evaluation.generation.pictures import LISTS, Pictures, chosen, read_named, read_pictures, says_prompts
from robustclip.runs.files import is_file, read_lines

Category = Literal["color", "shape", "texture", "spatial", "non-spatial", "complex", "numeracy"]
CATEGORIES: Final[tuple[Category, ...]] = (
    *("color", "shape", "texture", "spatial"),
    *("non-spatial", "complex", "numeracy"),
)
PER_PROMPT: Final = 10
"""Pictures of a prompt (T2I-CompBench, §5)."""
SHOWN: Final = 12  # faults that a message lists


def read_prompts(file: Path) -> list[str]:
    """One prompt a line, as in the benchmark's color_val.txt. Raises UsageError for none, or one that comes twice."""
    prompts = [line for line in read_lines(file) if line]
    if not prompts:
        raise UsageError(f"{file} holds no prompt: one a line, as in the benchmark's color_val.txt", "no_prompts")
    if twice := [key for key, count in Counter(map(normal, prompts)).items() if count > 1]:
        raise UsageError(
            f"{file} has the prompt {twice[0][:100]!r} twice, and pictures of the two can't be told apart",
            "prompt_twice",
        )
    return prompts


def normal(prompt: str) -> str:
    """A prompt as names of files keep it: lower case, single spaces, no full stop at the end (as the release)."""
    return " ".join(prompt.lower().split()).rstrip(" .")


def read_benchmark(
    folder: Path, prompts: Sequence[str], *, per_prompt: int = PER_PROMPT, size: int | None = None
) -> Pictures:
    """The pictures of a run of `synthesize`, of a folder with a list, or of one whose pictures are named
    PROMPT_NUMBER.png, as the release has them (samples/ may lie between). See `match`.
    """
    if says_prompts(folder) or any(is_file(folder / name) for name in LISTS):
        return match(read_pictures(folder, size=size), prompts, per_prompt=per_prompt)
    return match(read_named(folder, size=size), prompts, per_prompt=per_prompt)


def match(pictures: Pictures, prompts: Sequence[str], *, per_prompt: int = PER_PROMPT) -> Pictures:
    """The same pictures in the order of the prompts, each with the benchmark's wording of its prompt.

    Raises UsageError that lists which prompts lack pictures or have too many, and pictures of no prompt.
    """
    known = {normal(prompt): prompt for prompt in prompts}
    places: dict[str, list[int]] = defaultdict(list)
    for place, prompt in enumerate(pictures.prompts):
        places[normal(prompt)].append(place)
    if faults := list(_faults(pictures, known, places, per_prompt)):
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        counts = sorted({len(found) for key, found in places.items() if key in known})
        hint = (
            f"; --per-prompt {counts[0]} judges {counts[0]} of each"
            if len(counts) == 1 and len(places) == len(known)
            else ""
        )
        raise UsageError(
            f"{pictures.name} does not hold {per_prompt} pictures of each of {len(known)} prompts{hint}:\n  "
            + "\n  ".join(faults[:SHOWN])
            + more,
            "pictures_do_not_match",
            listed=faults,
        )
    order = [place for key in known for place in sorted(places[key], key=lambda one: pictures.ids[one])]
    found = chosen(pictures, order)
    found.prompts[:] = [known[normal(prompt)] for prompt in found.prompts]
    return found


def _faults(pictures: Pictures, known: Iterable[str], places: dict[str, list[int]], per_prompt: int) -> Iterator[str]:
    for key in known:
        count = len(places.get(key, ()))
        if count != per_prompt:
            yield f"{key[:100]!r} has {count} of {per_prompt} pictures"
    for key in places:
        if key not in known:
            first = pictures.ids[places[key][0]]
            yield f"no prompt is {key[:100]!r}, of which there are {len(places[key])} pictures ({first[:100]})"
