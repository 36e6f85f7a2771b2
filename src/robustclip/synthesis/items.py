"""Work items of synthesis: prompt, seed and file name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import torch
from pydantic import BeforeValidator

from robustclip.errors import UsageError
from robustclip.runs import rng
from robustclip.synthesis.names import apart, slug
from robustclip.synthesis.prompts import Prompt

MOST_SEEDS: Final = 10_000
MOST_PICTURES: Final = 1_000_000
LARGEST_SEED: Final = 2**63 - 1


@dataclass(frozen=True)
class Item:
    """A picture to be painted. `id` is its file's name without ending, unique in a run; `repeat` tells apart the same
    prompt given twice."""

    id: str
    prompt: Prompt
    seed: int
    repeat: int = 0

    def generator(self, purpose: str, *indices: int, device: str | torch.device = "cpu") -> torch.Generator:
        """The random numbers of this picture for a purpose, e.g. `item.generator("views", step)`: a function of seed,
        prompt and repeat alone, so that no picture depends on which others share its batch or process."""
        return rng.generator(self.seed, f"{purpose} of {self.prompt}", self.repeat, *indices, device=device)


@dataclass(frozen=True)
class Named:
    """A prompt with the name of its picture, and its own seed where it has one."""

    id: str
    prompt: Prompt
    seed: int | None = None


def items_of(prompts: Sequence[Prompt], seeds: Sequence[int] = (0,)) -> list[Item]:
    """Every prompt with every seed, prompt by prompt, named by what is wanted and its seed: `a-green-turtle-s0`."""
    _check_pictures(len(prompts), len(seeds))
    repeats = _repeats(prompts)
    names = apart((slug(prompt.wanted), f"{prompt} {again}") for prompt, again in zip(prompts, repeats, strict=True))
    return [
        Item(f"{name}-s{seed}", prompt, seed, again)
        for name, prompt, again in zip(names, prompts, repeats, strict=True)
        for seed in dict.fromkeys(seeds)
    ]


def items_of_named(named: Sequence[Named], seeds: Sequence[int] = (0,)) -> list[Item]:
    """Every named prompt with its own seed, else with every one of `seeds`. A picture has the name of its prompt; with
    several seeds the seed is added to all."""
    seeds = list(dict.fromkeys(seeds))
    _check_pictures(len(named), len(seeds))
    return [
        Item(f"{one.id}-s{seed}" if len(seeds) > 1 else one.id, one.prompt, seed, again)
        for one, again in zip(named, _repeats([one.prompt for one in named]), strict=True)
        for seed in (seeds if one.seed is None else [one.seed])
    ]


def _check_pictures(prompts: int, seeds: int) -> None:
    if prompts * seeds > MOST_PICTURES:
        raise UsageError(
            f"{prompts:,} prompts with {seeds:,} seeds are more than {MOST_PICTURES:,} pictures: split them"
        )


def parse_seeds(given: object) -> list[int]:
    """`0..3` is 0, 1, 2, 3; `0,5,7` three seeds, and `3` one; numbers and lists of them are taken as they are.

    Raises UsageError for what is none of these, more than 10,000 seeds, one twice, and one that is negative or beyond
    63 bits.
    """
    texts = given if isinstance(given, list | tuple | range) else str(given).split(",")
    seeds = [seed for text in texts for seed in _range(str(text).strip())]
    if not seeds:
        raise UsageError("gives no seed: write one number, a list (0,5,7) or a range (0..3)")
    _check_count(len(seeds))
    if twice := [seed for seed, count in Counter(seeds).items() if count > 1]:
        raise UsageError(f"names the seed {twice[0]} twice: the same picture would be painted again")
    return seeds


Seeds = Annotated[list[int], BeforeValidator(parse_seeds), "seeds: one, a list (0,5,7) or a range (0..3)"]
"""The type of a `seeds` flag."""


def _range(text: str) -> Sequence[int]:
    found = re.fullmatch(r"(\d{1,19})(?:\.\.(\d{1,19}))?", text, re.ASCII)
    if found is None:
        raise UsageError(f"{text[:50]!r} is no seed: write a number from 0 (3), a list (0,5,7) or a range (0..3)")
    first, last = int(found[1]), int(found[2] or found[1])
    if last > LARGEST_SEED:
        raise UsageError(f"the seed {last} is beyond the integers of 64 bits")
    if last < first:
        raise UsageError(f"the range {text} is empty: write {last}..{first}")
    _check_count(last - first + 1)
    return range(first, last + 1)


def _check_count(count: int) -> None:
    if count > MOST_SEEDS:
        raise UsageError(f"gives {count} seeds: at most {MOST_SEEDS} in one run")


def _repeats(prompts: Sequence[Prompt]) -> list[int]:
    """How often each prompt came before."""
    seen: Counter[Prompt] = Counter()
    found = []
    for prompt in prompts:
        found.append(seen[prompt])
        seen[prompt] += 1
    return found
