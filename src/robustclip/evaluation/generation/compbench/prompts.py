"""T2I-CompBench's prompts, and their pictures, matched by provenance or file name."""

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
            f"{file} has the prompt {twice[0][:100]!r} twice, so its pictures are ambiguous: remove one",
            "prompt_twice",
        )
    return prompts


def normal(prompt: str) -> str:
    """A prompt normalised as in the release's file names: lower case, single spaces, no full stop at the end."""
    return " ".join(prompt.lower().split()).rstrip(" .")


def read_benchmark(
    folder: Path, prompts: Sequence[str], *, per_prompt: int = PER_PROMPT, size: int | None = None
) -> Pictures:
    """The pictures of a `synthesize` run, of a folder with a prompt list, or of one with pictures named
    PROMPT_NUMBER.png, as in the release (optionally in samples/). See `match`.
    """
    if says_prompts(folder) or any(is_file(folder / name) for name in LISTS):
        return match(read_pictures(folder, size=size), prompts, per_prompt=per_prompt)
    return match(read_named(folder, size=size), prompts, per_prompt=per_prompt)


def match(pictures: Pictures, prompts: Sequence[str], *, per_prompt: int = PER_PROMPT) -> Pictures:
    """The pictures in the order of the prompts, with the benchmark's wording of each prompt.

    Raises UsageError that lists prompts with too few or too many pictures, and pictures without a prompt.
    """
    by_key = {normal(prompt): prompt for prompt in prompts}
    places: dict[str, list[int]] = defaultdict(list)
    for place, prompt in enumerate(pictures.prompts):
        places[normal(prompt)].append(place)
    if faults := list(_faults(pictures, by_key, places, per_prompt)):
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        counts = sorted({len(of_one) for key, of_one in places.items() if key in by_key})
        hint = (
            f"; --per-prompt {counts[0]} judges {counts[0]} of each"
            if len(counts) == 1 and len(places) == len(by_key)
            else ""
        )
        raise UsageError(
            f"{pictures.name} does not hold {per_prompt} pictures of each of {len(by_key)} prompts{hint}:\n  "
            + "\n  ".join(faults[:SHOWN])
            + more,
            "pictures_do_not_match",
            listed=faults,
        )
    order = [place for key in by_key for place in sorted(places[key], key=lambda one: pictures.ids[one])]
    matched = chosen(pictures, order)
    matched.prompts[:] = [by_key[normal(prompt)] for prompt in matched.prompts]
    return matched


def _faults(pictures: Pictures, by_key: Iterable[str], places: dict[str, list[int]], per_prompt: int) -> Iterator[str]:
    for key in by_key:
        count = len(places.get(key, ()))
        if count != per_prompt:
            yield f"{key[:100]!r} has {count} of {per_prompt} pictures"
    for key in places:
        if key not in by_key:
            first = pictures.ids[places[key][0]]
            yield f"no prompt is {key[:100]!r}, of which there are {len(places[key])} pictures ({first[:100]})"
