"""`robustclip convert taming-vqgan`: convert a published VQGAN checkpoint to a diffusers folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import AfterValidator

from robustclip.diffusion.taming import RESOLUTION, Layout, read_taming
from robustclip.diffusion.vqgan import save_vqgan
from robustclip.errors import UsageError
from robustclip.runs.files import check_new_folder, is_file, read_text, sha256
from robustclip.signatures import typed

LONGEST_CONFIG: Final = 2**16  # bytes; the published ones have a thousand


@dataclass(frozen=True)
class Converted:
    """Result: the folder, the network's layout, its number of tensors, and the numbers of dropped tensors by reason."""

    folder: Path
    layout: Layout
    tensors: int
    dropped: dict[str, int]

    def __str__(self) -> str:
        left = "".join(f"; dropped: {count} tensors {reason}" for reason, count in self.dropped.items())
        side = self.layout.factor
        return (
            f"converted {self.tensors} tensors to {self.folder}: {self.layout.codes} codes of {self.layout.code} "
            f"channels, each for {side}x{side} pixels{left}"
        )


def _checkpoint(path: Path) -> Path:
    if not is_file(path):
        raise UsageError("is no file: give a published checkpoint, such as last.ckpt")
    return path


def _config(path: Path | None) -> Path | None:
    """Validated before the checkpoint, which can be gigabytes."""
    if path is not None:
        if not is_file(path):
            raise UsageError("is no file: give the model.yaml that came with the checkpoint, or leave it out")
        _params(path)
    return path


@typed
def convert(
    checkpoint: Annotated[Path, AfterValidator(_checkpoint), "a .ckpt of taming-transformers, or its .safetensors"],
    *,
    model_yaml: Annotated[
        Path | None, AfterValidator(_config), "its model.yaml, which the shapes are checked against"
    ] = None,
    out: Annotated[Path, AfterValidator(check_new_folder), "output folder, which must not exist"],
) -> Converted:
    """Convert a VQGAN checkpoint of taming-transformers to a diffusers folder, for `synthesize vqgan --model FOLDER`.

      robustclip convert taming-vqgan last.ckpt --model-yaml model.yaml --out imagenet-f16-16384

    Made for the ImageNet models of factor 16 with 1,024 and 16,384 codes; other models of this layout and the first
    stage of a transformer's checkpoint also work. The architecture is inferred from the shapes, so the config is
    optional. Every tensor is mapped or reported as unused (the training loss's). No code in the file is executed, and
    nothing is downloaded.

    Raises UsageError for other files and a config that contradicts the shapes; RunError for a damaged file.
    """
    taming = read_taming(checkpoint)
    resolution = RESOLUTION if model_yaml is None else check_config(taming.layout, model_yaml)
    card = {
        "name": out.name,
        "made_by": "robustclip convert taming-vqgan",
        "made_from": {"file": checkpoint.name, "sha256": sha256(checkpoint)},
        "left_behind": taming.dropped,
    }
    save_vqgan(taming.model(resolution), out, card)
    return Converted(out, taming.layout, len(taming.weights), taming.dropped)


def check_config(layout: Layout, path: Path) -> int:
    """Read the resolution of a model.yaml and check it against the checkpoint. Raises UsageError if it does not fit."""
    params = _params(path)
    resolution = params.get("resolution", RESOLUTION)
    if type(resolution) is not int or not 0 < resolution < 2**16:
        raise UsageError(f"{path} has the resolution {_shown(resolution)}: it is a number of pixels, as in 256")
    faults = [
        f"{name}: {_shown(params[name])} there, {found} in the checkpoint"
        for name, found in _found(layout, resolution)
        if name in params and params[name] != found
    ]
    if faults:
        raise UsageError(
            f"{path} is not this checkpoint's: {'; '.join(faults)}. Give its own, or leave out --model-yaml"
        )
    return resolution


def _shown(value: object) -> str:
    """A config value for a message; only short ones are written out, because YAML references can expand without
    limit."""
    short = isinstance(value, list) and len(value) < 20 and all(type(one) in (int, float) for one in value)
    return repr(value)[:80] if short or isinstance(value, int | float | str | None) else f"a {type(value).__name__}"


def _params(path: Path) -> dict[str, Any]:
    """The network's parameters in a model.yaml, flat."""
    text = read_text(path, LONGEST_CONFIG)
    try:
        params = yaml.safe_load(text)["model"]["params"]
        if "first_stage_config" in params:  # of a transformer
            params = params["first_stage_config"]["params"]
        return dict(params["ddconfig"]) | {name: params[name] for name in ("embed_dim", "n_embed") if name in params}
    except (yaml.YAMLError, RecursionError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} is not a config of a VQGAN (YAML with model, params, ddconfig): leave out --model-yaml"
        ) from error


def _found(layout: Layout, resolution: int) -> Iterator[tuple[str, object]]:
    """The same parameters from the checkpoint's shapes."""
    first = layout.channels[0]
    yield "ch", first
    yield "ch_mult", [number // first for number in layout.channels]
    yield "num_res_blocks", layout.blocks
    yield "attn_resolutions", [resolution >> level for level in layout.encoder_attention]
    yield "z_channels", layout.latent
    yield "embed_dim", layout.code
    yield "n_embed", layout.codes
    yield "in_channels", 3
    yield "out_ch", 3
    yield "double_z", False
