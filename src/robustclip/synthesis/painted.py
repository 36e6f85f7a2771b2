"""Results of synthesis, per batch and per run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from robustclip.data.images import load_image, to_pil
from robustclip.errors import UsageError
from robustclip.synthesis.items import Item
from robustclip.synthesis.pictures import contact_sheet


@dataclass
class Painted:
    """A batch of P pictures. `similarity` is that of the final picture to its prompt; `trace` has a number of each
    picture for each of S steps; `frames` are the pictures after the steps in `steps_of_frames`; `texts` are
    further text files of each picture, by suffix ("svg"); `others` further pictures of each, by folder
    ("gradients")."""

    images: Float[Tensor, "p 3 h w"]
    similarity: Float[Tensor, " p"]
    trace: dict[str, Float[Tensor, "s p"]] = field(default_factory=dict)
    frames: Float[Tensor, "f p 3 h w"] | None = None
    steps_of_frames: list[int] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=list)
    others: dict[str, list[Float[Tensor, "3 h2 w2"]]] = field(default_factory=dict)


class Watch(Protocol):
    """Called after each step of a batch; may raise to stop it."""

    def __call__(self, step: int, images: Float[Tensor, "p 3 h w"], numbers: Mapping[str, Float[Tensor, " p"]]) -> None:
        """`images` as they are after `step` steps, and their numbers: `similarity` and each term's loss."""

    def announce(self, loss: str) -> None:
        """Announce the objective before the first step."""


Paint = Callable[[Sequence[Item], Watch], Painted]
"""Paints a batch of pictures that fits the accelerator."""


@dataclass(repr=False)
class Result:
    """The pictures of a run, in the order of its items.

    `similarity` is read from the pictures' files. `trace` (S,N) and `frames`, by item id, cover pictures painted by
    this call; they are NaN or missing for existing pictures, those of other processes, and runs of more than 1,000.
    `ended` are the steps of pictures with frames, which a held-out judge may stop early.
    """

    folder: Path
    items: list[Item]
    similarity: Float[Tensor, " n"]
    trace: dict[str, Float[Tensor, "s n"]] = field(default_factory=dict)
    frames: dict[str, Float[Tensor, "f 3 h w"]] = field(default_factory=dict)
    steps_of_frames: list[int] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict, repr=False)
    kept: dict[str, Float[Tensor, "3 h w"]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        shown = f", mean similarity {self.similarity.mean().item():.3f}" if len(self) else ""
        return f"<Result of {len(self)} picture{'s' * (len(self) != 1)} in {str(self.folder)!r}{shown}>"

    @property
    def files(self) -> list[Path]:
        """The pictures' files."""
        return [self.folder / "images" / f"{item.id}.png" for item in self.items]

    def image(self, index: int) -> Float[Tensor, "3 h w"]:
        """A picture in [0,1], in full precision if this call painted it, else from its file (8 bits)."""
        kept = self.kept.get(self.items[index].id)
        return load_image(self.files[index]) if kept is None else kept

    @cached_property
    def images(self) -> Float[Tensor, "n 3 h w"]:
        """All pictures, on the CPU; read lazily for large runs."""
        return torch.stack([self.image(index) for index in range(len(self))])

    def numbers(self) -> dict[str, Any]:
        """Plain values, as `--json` writes them."""
        pictures = [
            {"id": item.id, "prompt": str(item.prompt), "seed": item.seed, "file": str(file), "similarity": similarity}
            for item, file, similarity in zip(self.items, self.files, self.similarity.tolist(), strict=True)
        ]
        mean = self.similarity.mean().item()
        return {"run": str(self.folder), "pictures": len(self), "similarity": mean, "each": pictures}

    def sheet(self) -> Image.Image:
        """The pictures, prompts x seeds, each with its title."""
        return to_pil(contact_sheet(self.items, self.image))

    def film(self, index: int = 0) -> Image.Image:
        """Film strip of a picture's optimisation. Raises UsageError if this call did not paint it."""
        from robustclip.synthesis.pictures import film_strip

        frames = self.frames.get(self.items[index].id)
        if frames is None:
            raise UsageError(
                f"picture {index} was not painted by this call: its frames are not available", "no_frames", index=index
            )
        *before, last = self.steps_of_frames[: len(frames)]
        return to_pil(film_strip(frames, [*before, self.ended.get(self.items[index].id, last)]))

    def _repr_png_(self) -> bytes | None:  # for notebooks
        return self.sheet()._repr_png_()
