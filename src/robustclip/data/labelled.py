"""In-memory images with labels and captions, for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True, repr=False)
class Labels:
    """What is known of N images besides their pixels.

    labels: (N,) int64 indices into `label_names`; label_names: every label of the data set, also those that no image
    here has; captions: for each image, one or more texts that describe it; ids: unique names; styles: the drawing
    style (or source) of each image.
    """

    labels: Int64[Tensor, " n"]
    label_names: list[str]
    captions: list[list[str]]
    ids: list[str]
    styles: list[str]

    def __post_init__(self) -> None:
        lengths = {len(self.labels), len(self.captions), len(self.ids), len(self.styles)}
        if len(lengths) != 1:
            raise ValueError(f"labels, captions, ids and styles differ in length: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} images, {len(self.label_names)} label names>"


@dataclass(frozen=True, repr=False)
class LabelledImages(Labels):
    """N images (N, 3, H, W), float32 in [0,1], with what is known of them."""

    images: Float[Tensor, "n 3 h w"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images but {len(self.labels)} labels")

    def subset(self, indices: Int64[Tensor, " m"] | list[int]) -> LabelledImages:
        """The images at `indices`, in that order; `label_names` stay whole."""
        index = torch.as_tensor(indices, dtype=torch.long)
        rows = index.tolist()
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            captions=[self.captions[row] for row in rows],
            ids=[self.ids[row] for row in rows],
            styles=[self.styles[row] for row in rows],
        )

    def sample(self, n: int, generator: torch.Generator) -> LabelledImages:
        """`n` different images drawn without replacement, kept in their order here; all of them if there are fewer."""
        drawn = torch.randperm(len(self), generator=generator)[:n]
        return self.subset(drawn.sort().values)

    @classmethod
    def joined(cls, parts: Sequence[LabelledImages]) -> LabelledImages:
        """The images of all parts, one after the other. Raises ValueError unless they number their labels alike."""
        names = parts[0].label_names
        if any(part.label_names != names for part in parts):
            raise ValueError("the parts number their labels differently")
        return cls(
            images=torch.cat([part.images for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            label_names=names,
            captions=[caption for part in parts for caption in part.captions],
            ids=[one for part in parts for one in part.ids],
            styles=[style for part in parts for style in part.styles],
        )
