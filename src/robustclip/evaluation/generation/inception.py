"""InceptionV3 features for FID and the Inception Score, by torch-fidelity, with weights from a file.

torch-fidelity's own reading is careful in what matters (TensorFlow's resizing, its pooling), so it is kept; only its
way to the weights (a download, or a pickle that may run code) is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.data.pictures import Images
from robustclip.errors import UsageError, require
from robustclip.referees.similarity import batches
from robustclip.referees.weights import check_finite, read_weights
from robustclip.runs.files import sha256

NAME: Final = "inception-v3-compat"
RELEASED: Final = "weights-inception-2015-12-05-6726825d.pth"
HOW: Final = (
    f"give {RELEASED} of torch-fidelity's release v0.2.0 (github.com/toshas/torch-fidelity) as --inception-weights FILE"
)


@dataclass(frozen=True)
class Inception:
    """The network on its device, and its file's name and hash."""

    name: str
    sha256: str
    network: nn.Module
    device: torch.device

    @torch.no_grad()
    def __call__(
        self, images: Images, *, batch_size: int = 64, title: str = ""
    ) -> tuple[Float[Tensor, "n 2048"], Float[Tensor, "n 1008"]]:
        """Features of FID and logits of the Inception Score, of [0,1] images, which are rounded to 8 bits and resized
        to 299x299 inside; float32, on the CPU."""
        features, logits = [], []
        for batch in batches(torch.arange(len(images)), batch_size, title):
            pixels = (images[batch].to(self.device).clamp(0, 1) * 255).round().to(torch.uint8)
            pooled, scores = self.network(pixels)
            features.append(pooled.cpu())
            logits.append(scores.cpu())
        return torch.cat(features), torch.cat(logits)


def check_installed() -> None:
    """Raise UsageError where torch-fidelity is not installed."""
    require("torch_fidelity", "evaluation", "Inception")


def load_inception(path: str | Path | None, device: torch.device) -> Inception:
    """torch-fidelity's Inception with the weights of `path`, read without running code.

    Raises UsageError where torch-fidelity is not installed, where no file is given (with where to get it), and for a
    file that does not fit.
    """
    if path is None:
        raise UsageError(f"FID and the Inception Score need Inception's weights, which do not come with us: {HOW}")
    check_installed()
    from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-untyped,unused-ignore]
        FeatureExtractorInceptionV3,
    )

    path, safe = Path(path), BytesIO()
    torch.save(read_weights(path), safe)
    safe.seek(0)  # its constructor unpickles whatever it is given: so it is given what was read safely
    try:
        network = FeatureExtractorInceptionV3(NAME, ["2048", "logits_unbiased"], feature_extractor_weights_path=safe)
    except RuntimeError as error:
        raise UsageError(f"{path} does not fit Inception ({str(error).splitlines()[0]}): {HOW}") from error
    check_finite(network, source=str(path))
    return Inception(path.name, sha256(path), network.to(device), device)
