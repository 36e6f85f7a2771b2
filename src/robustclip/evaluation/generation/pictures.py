"""A set of judged pictures: their prompts, keys, and who guided them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustclip.data.pictures import Images
from robustclip.errors import UsageError


@dataclass(frozen=True)
class Pictures:
    """N images of one size in [0,1] with ids and prompts.

    prompts    the text that a judge is asked about: without weights, and without what was to be avoided.
    seeds      what each was painted with; None where nothing says it.
    guides     the referees that guided any of them, {"name", "fingerprint"}, as far as pictures or run say.
    generators fingerprints of the diffusion models that made any of them, likewise.
    notes      what to know before believing a number.
    """

    name: str
    images: Images
    prompts: list[str]
    ids: list[str]
    seeds: list[int | None] = field(default_factory=list)
    guides: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    generators: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        lengths = len(self.images), len(self.prompts), len(self.ids), len(self.seeds or self.ids)
        if len(set(lengths)) > 1:
            raise UsageError(
                f"{self.name} has {lengths[0]} images, {lengths[1]} prompts and {lengths[2]} ids: give one each"
            )
        if not self.ids:
            raise UsageError(f"there are no pictures in {self.name}: nothing to judge")
        if twice := [name for name, count in Counter(self.ids).items() if count > 1]:
            raise UsageError(f"{self.name} has two pictures with the id {twice[0]!r}: which is which, nobody could say")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def keys(self) -> list[str]:
        """What pictures of two methods are paired by: prompt and seed, and where these come again, how often before."""
        seen: Counter[tuple[str, int | None]] = Counter()
        found = []
        for prompt, seed in zip(self.prompts, self.seeds or [None] * len(self), strict=True):
            found.append(json.dumps([prompt, seed, seen[prompt, seed]], ensure_ascii=False))
            seen[prompt, seed] += 1
        return found


def from_tensor(images: Float[Tensor, "n 3 h w"], prompts: Sequence[str], *, name: str = "pictures") -> Pictures:
    """Wrap images in memory with their prompts; ids are their indices."""
    return Pictures(name, images, list(prompts), [str(place) for place in range(len(images))])


def places_of(pictures: Pictures, prompts: Sequence[str]) -> list[int]:
    """Where the pictures are that are to show one of `prompts`."""
    known = set(prompts)
    return [place for place, prompt in enumerate(pictures.prompts) if prompt in known]


def chosen(pictures: Pictures, places: Sequence[int]) -> Pictures:
    """A subset in the order of `places`; images are read lazily."""
    return replace(
        pictures,
        images=_Chosen(pictures.images, torch.tensor(places, dtype=torch.long)),
        prompts=[pictures.prompts[place] for place in places],
        ids=[pictures.ids[place] for place in places],
        seeds=[pictures.seeds[place] for place in places] if pictures.seeds else [],
    )


@final
class _Chosen:
    """Some of the images, in the order of their places."""

    def __init__(self, images: Images, places: Int[Tensor, " m"]) -> None:
        self.images, self.places = images, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, indices: Tensor, /) -> Float[Tensor, "b 3 h w"]:
        return self.images[self.places[indices]]
