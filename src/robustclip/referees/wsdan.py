"""WS-DAN classifiers (Hu et al. 2019) of DOODL, from checkpoints of GuYuc/WS-DAN.PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.errors import UsageError
from robustclip.referees.weights import check_finite, check_fit, read_weights

SIZE: Final = (512, 512)  # DOODL demo: inputs of the classifiers
FEATURES: Final = 768
LAYERS: Final = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
)
"""Of torchvision's InceptionV3, in the order of the port's `features`."""


class WSDAN(nn.Module):
    """InceptionV3 up to Mixed_6e, `maps` attention maps, bilinear attention pooling, a linear layer without bias."""

    def __init__(self, classes: int, maps: int = 32) -> None:
        super().__init__()
        from torchvision.models.inception import BasicConv2d, Inception3

        whole: Any = Inception3(aux_logits=False, init_weights=False)
        self.features = nn.Sequential(*(getattr(whole, name) for name in LAYERS))
        self.attentions = BasicConv2d(FEATURES, maps, kernel_size=1)
        self.fc = nn.Linear(maps * FEATURES, classes, bias=False)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        features = self.features(x)
        maps = self.attentions(features)
        pooled = torch.einsum("bmhw,bfhw->bmf", maps, features) / features.shape[-2] / features.shape[-1]
        pooled = pooled.flatten(1)
        pooled = pooled.sign() * (pooled.abs() + 1e-6).sqrt()  # the port's
        return self.fc(100 * F.normalize(pooled, dim=-1))


def load_wsdan(path: Path) -> tuple[WSDAN, int]:
    """A checkpoint's network, and how many classes it has. Raises UsageError for a file of another layout."""
    weights = {name.removeprefix("module."): one for name, one in read_weights(path).items()}
    last, attention = weights.get("fc.weight"), weights.get("attentions.conv.weight")
    maps = 0 if attention is None else attention.shape[0]
    if last is None or last.ndim != 2 or not maps or last.shape[1] != FEATURES * maps or last.shape[0] > 2**16:
        raise UsageError(
            f"{path} is no checkpoint of WS-DAN (features.*, attentions.*, fc.weight): give one, or a folder as timm "
            "saves its classifiers"
        )
    with torch.device("meta"):
        model = WSDAN(last.shape[0], maps)
    kept = {name: one for name, one in weights.items() if not name.startswith("bap.")}
    for name, one in model.state_dict().items():  # which old checkpoints lack
        if name.endswith("num_batches_tracked") and name not in kept:
            kept[name] = torch.zeros(one.shape, dtype=one.dtype)
    check_fit(model, kept, source=str(path), hint="Give a checkpoint of WS-DAN with InceptionV3")
    model.load_state_dict(kept, assign=True)
    check_finite(model, source=str(path))
    return model, last.shape[0]
