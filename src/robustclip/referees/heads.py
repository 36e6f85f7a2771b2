"""Small heads on CLIP embeddings: the aesthetic predictor.

Two families are in use, under one name, and what they print differs: so a head says its family and its file's hash.

mlp     christophschuhmann's improved-aesthetic-predictor: 768 -> 1024 -> 128 -> 64 -> 16 -> 1 on OpenAI's ViT-L/14
        (`sac+logos+ava1-l14-linearMSE.pth`), without activation functions, as its code has them commented out
linear  LAION-AI's aesthetic-predictor: one linear layer, for ViT-L/14 (768) or ViT-B/32 (512)
        (`sa_0_4_vit_l_14_linear.pth`, `sa_0_4_vit_b_32_linear.pth`)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.errors import UsageError
from robustclip.referees.weights import load_strictly, read_weights
from robustclip.runs.files import sha256

Family = Literal["mlp", "linear"]

WIDTHS: Final = (1024, 128, 64, 16, 1)
DROPOUTS: Final = (0.2, 0.2, 0.1)
LARGEST: Final = 65_536
"""Numbers of an embedding: none is near as wide, and the layer is built as wide as the file says."""


class AestheticsMLP(nn.Module):
    """(N,D) -> (N,): five linear layers with dropout between the first four, and no activations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for place, (before, after) in enumerate(zip((width, *WIDTHS), WIDTHS, strict=False)):
            modules.append(nn.Linear(before, after))
            modules += [nn.Dropout(DROPOUTS[place])] if place < len(DROPOUTS) else []
        self.layers = nn.Sequential(*modules)

    def forward(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return self.layers(embeddings)[:, 0]


class AestheticsLinear(nn.Linear):
    """(N,D) -> (N,)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)

    def forward(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return super().forward(embeddings)[:, 0]


@dataclass(frozen=True)
class Aesthetics:
    """A predictor of aesthetics, and where it came from: `sha256` is of its file."""

    name: str
    family: Family
    sha256: str
    width: int
    head: nn.Module

    @torch.no_grad()
    def __call__(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Scores, about 1 to 10 and not clipped, of unit embeddings of the CLIP that the head was trained on.

        Raises UsageError for embeddings of another width; of the same width, nobody can tell whose they are.
        """
        if embeddings.shape[-1] != self.width:
            raise UsageError(
                f"the aesthetics head {self.name} reads embeddings of {self.width} numbers, and the judge's have "
                f"{embeddings.shape[-1]}: judge with the CLIP it was trained on ({_clip(self.width)})"
            )
        return self.head(embeddings.float())

    def describe(self) -> str:
        """File, family and hash, for reports."""
        return f"{self.name} ({self.family}), sha256 {self.sha256}"


def load_aesthetics(path: str | Path) -> Aesthetics:
    """Read a head of either family, told apart by its keys, from the file as it was released (.pth) or safetensors.

    Raises UsageError for a missing or unsafe file and for keys or shapes of neither family, RunError for a damaged one
    and for weights that are not numbers.
    """
    path = Path(path)
    weights = read_weights(path)
    family: Family = "linear" if set(weights) == {"weight", "bias"} else "mlp"
    width = _width(weights, "weight" if family == "linear" else "layers.0.weight", path)
    head = AestheticsLinear(width) if family == "linear" else AestheticsMLP(width)
    load_strictly(head, weights, source=str(path), hint=_layouts())
    return Aesthetics(path.name, family, sha256(path), width, head.eval().requires_grad_(False))


def _width(weights: Mapping[str, Tensor], key: str, path: Path) -> int:
    first = weights.get(key)
    if first is None or first.ndim != 2 or not 0 < first.shape[1] <= LARGEST:
        raise UsageError(f"{path} is no aesthetics head: {_layouts()}")
    return first.shape[1]


def _layouts() -> str:
    return "one has the keys layers.{0,2,4,6,7}.{weight,bias} (768-1024-128-64-16-1), or weight and bias alone"


def _clip(width: int) -> str:
    return {768: "OpenAI's ViT-L/14", 512: "OpenAI's ViT-B/32"}.get(width, f"one of width {width}")
