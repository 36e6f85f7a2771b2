"""VQGANs (Esser et al. 2021) in diffusers' format: encode pictures to codes and decode them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustclip.canvases.latents import check_whole
from robustclip.data import embedded
from robustclip.diffusion.fitting import WEIGHTS, write_model
from robustclip.errors import UsageError
from robustclip.referees.base import check_images
from robustclip.runs.files import is_file, new_folder, read_json, sha256, write_json

try:
    from diffusers import VQModel
except ImportError as error:
    raise UsageError("generators are diffusers': pip install 'robustclip[synthesis]'") from error

CONFIG, CARD = "config.json", "card.json"
AT_ONCE: Final = 1 << 24
"""Distances of vectors and codes in memory at a time."""


@final
class VQGAN(nn.Module):
    """A frozen VQModel of diffusers, in eval mode, for pictures in [0,1].

    factor: pixels per code along a side; channels: of a code; codebook: (K,C); low, high: (C,), the
    smallest and largest value of each channel in the codebook.
    """

    codebook: Float[Tensor, "k c"]
    low: Float[Tensor, " c"]
    high: Float[Tensor, " c"]

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        config = model.config
        if config.get("lookup_from_codebook") or config.get("norm_type") == "spatial":
            raise UsageError(
                "this VQModel is MOVQ's, whose decoder sees the codes in each norm: give a plain VQGAN", "movq"
            )
        if (config["in_channels"], config["out_channels"]) != (3, 3):
            ends = f"{config['in_channels']} and {config['out_channels']}"
            message = f"this VQModel is of {ends} channels: give one of pictures, which have 3"
            raise UsageError(message, "other_channels", channels=(config["in_channels"], config["out_channels"]))
        self.factor = 2 ** (len(config["block_out_channels"]) - 1)
        codebook = model.quantize.embedding.weight.detach().float()
        self.channels = codebook.shape[1]
        self.register_buffer("codebook", codebook.clone())
        self.register_buffer("low", codebook.amin(0))
        self.register_buffer("high", codebook.amax(0))
        self.eval()

    def encode(self, images: Float[Tensor, "p 3 H W"]) -> Float[Tensor, "p c h w"]:
        """Pictures in [0,1] as vectors before quantisation.

        Raises UsageError for sides that are not multiples of `factor`.
        """
        check_images(images)
        check_whole(images.shape[-2:], self.factor, "codes")
        return self.model.encode(images * 2 - 1).latents

    def quantise(self, latents: Float[Tensor, "p c h w"]) -> Float[Tensor, "p c h w"]:
        """Nearest code of each vector, with straight-through gradient."""
        codes = self.codebook[nearest(latents, self.codebook)].permute(0, 3, 1, 2).to(latents.dtype)
        return latents + (codes - latents).detach()

    def decode(self, codes: Float[Tensor, "p c h w"]) -> Float[Tensor, "p 3 H W"]:
        """Pictures of codes, not clamped to [0,1]."""
        return (self.model.decode(codes, force_not_quantize=True).sample + 1) / 2


@torch.no_grad()
def nearest(latents: Float[Tensor, "p c h w"], codebook: Float[Tensor, "k c"]) -> Int[Tensor, "p h w"]:
    """Index of the nearest code of each vector."""
    flat = latents.permute(0, 2, 3, 1).flatten(0, 2).to(codebook.dtype)
    parts = flat.split(max(1, AT_ONCE // len(codebook)))
    index = torch.cat([torch.cdist(part, codebook).argmin(1) for part in parts])
    return index.view(len(latents), *latents.shape[2:])


def load_vqgan(given: str | Path, device: str | torch.device = "cpu") -> VQGAN:
    """A VQGAN by its embedded name, or from a folder that diffusers or `robustclip convert` wrote.

    Raises UsageError for a missing or other folder and weights that do not fit the config; RunError for damaged weights
    and NaN or infinity in them.
    """
    folder = embedded.folders("generators", CONFIG).get(str(given), Path(given))
    config = _config(folder, given)
    weights = folder / WEIGHTS
    if not is_file(weights):
        raise UsageError(
            f"{folder} has no {WEIGHTS}: generators are loaded from safetensors only", "no_weights", folder=folder
        )
    from robustclip.referees.weights import check_finite, check_fit, read_weights

    try:
        with torch.device("meta"):  # so that no config allocates memory
            model: Any = VQModel.from_config(config)
    except Exception as error:  # a malformed config can raise any exception
        raise UsageError(
            f"{folder / CONFIG} is not a config of a VQModel ({str(error)[:200]})", "not_a_config", path=folder / CONFIG
        ) from error
    found = read_weights(weights)
    check_fit(model, found, source=str(weights), hint="Give a whole folder, or convert it again")
    model.load_state_dict({name: tensor.float() for name, tensor in found.items()}, assign=True)
    check_finite(model, source=str(weights))
    return VQGAN(model).to(device)


def save_vqgan(model: VQGAN | Any, folder: Path, card: Mapping[str, Any], *, half: bool = False) -> None:
    """Write a folder that diffusers loads too: config, weights (`half`: in float16), and a card with the
    weights' sha256; atomic. Raises UsageError if the path exists."""
    inner = model.model if isinstance(model, VQGAN) else model
    with new_folder(folder) as draft:
        write_model(inner, draft, half=half)
        write_json(draft / CARD, {**card, "weights_sha256": sha256(draft / WEIGHTS)})


def embedded_names() -> list[str]:
    """Names of the embedded VQGANs."""
    return list(embedded.folders("generators", CONFIG))


def _config(folder: Path, given: str | Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not is_file(path):
        names = ", ".join(embedded_names()) or "none"
        raise UsageError(
            f"there is no generator {str(given)[:200]!r}: give a folder with {CONFIG} and {WEIGHTS}, "
            f"or a name ({names}){embedded.hint(given)}",
            "unknown_generator",
            given=given,
        )
    config = read_json(path)
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind != "VQModel":
        message = f"{folder} holds a {str(kind)[:60]} instead of a VQModel: give a VQGAN's folder"
        raise UsageError(message, "other_class", found=kind, expected="VQModel")
    return config
