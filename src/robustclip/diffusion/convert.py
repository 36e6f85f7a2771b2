"""`robustclip convert taming-vqgan`: convert a published VQGAN checkpoint to a diffusers folder.

taming-transformers (Esser et al. 2021) and diffusers' VQModel build the same network under different names. In
taming-transformers, level i of encoder and decoder has 1/2^i of the picture's size; diffusers numbers the decoder's
levels in reverse. Its 1x1 convolutions of attention are linear layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import torch
from diffusers import VQModel
from pydantic import AfterValidator
from torch import Tensor
from torch.serialization import safe_globals

from robustclip.diffusion.vqgan import save_vqgan
from robustclip.errors import RunError, UsageError
from robustclip.referees.weights import read_dense_weights, some
from robustclip.runs.files import check_new_folder, is_file, read_yaml, sha256
from robustclip.signatures import typed

GROUPS: Final = 32  # of its group norms, which shapes do not show
RESOLUTION: Final = 256  # pixels, of the ImageNet models; nothing depends on it

DROPPED: Final = {
    "loss.": "of the training loss: LPIPS and the discriminator",
    "model_ema.": "running averages of the weights",
    "transformer.": "of the transformer that draws codes",
    "cond_stage_model.": "of what conditions the transformer",
}
"""Prefixes of tensors that do not belong to the VQGAN."""

NAMES: Final = (
    (r"norm_out\.", "conv_norm_out."),
    (r"mid\.block_1\.", "mid_block.resnets.0."),
    (r"mid\.attn_1\.", "mid_block.attentions.0."),
    (r"mid\.block_2\.", "mid_block.resnets.1."),
    (r"(down|up)\.(\d+)\.block\.", r"\1_blocks.\2.resnets."),
    (r"(down|up)\.(\d+)\.attn\.", r"\1_blocks.\2.attentions."),
    (r"(down|up)\.(\d+)\.(down|up)sample\.", r"\1_blocks.\2.\3samplers.0."),
)
"""Names of parts of an encoder or decoder, matched at the beginning."""
ENDINGS: Final = (
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)
"""Names of parts of a block."""


@dataclass(frozen=True)
class Layout:
    """Hyperparameters of a VQGAN, inferred from the shapes of its checkpoint.

    channels: of each level, finest first; *_attention: levels with self-attention; latent: channels of the encoder's
    output; code, codes: width and number of the codebook's entries.
    """

    channels: tuple[int, ...]
    blocks: int
    encoder_attention: tuple[int, ...]
    decoder_attention: tuple[int, ...]
    latent: int
    code: int
    codes: int

    @property
    def factor(self) -> int:
        """Pixels per code along a side."""
        return 1 << (len(self.channels) - 1)

    def config(self, resolution: int = RESOLUTION) -> dict[str, Any]:
        """The arguments of diffusers' VQModel."""
        levels = range(len(self.channels))
        return {
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": tuple(_kind("Down", "Encoder", level in self.encoder_attention) for level in levels),
            "up_block_types": tuple(
                _kind("Up", "Decoder", level in self.decoder_attention) for level in reversed(levels)
            ),
            "block_out_channels": self.channels,
            "layers_per_block": self.blocks,
            "latent_channels": self.latent,
            "num_vq_embeddings": self.codes,
            "vq_embed_dim": self.code,
            "norm_num_groups": GROUPS,
            "sample_size": resolution,
        }


def _kind(direction: str, side: str, attends: bool) -> str:
    """diffusers' name of a level's block."""
    return f"{'Attn' if attends else ''}{direction}{side}Block2D"


@dataclass(frozen=True)
class Taming:
    """A parsed checkpoint: network layout, weights by diffusers' keys, and unused tensors counted by reason."""

    layout: Layout
    weights: dict[str, Tensor]
    dropped: dict[str, int]

    def model(self, resolution: int = RESOLUTION) -> Any:
        """The VQModel of diffusers with these weights, in eval mode, on their device."""
        with torch.device("meta"):
            model: Any = VQModel(**self.layout.config(resolution))
        model.load_state_dict(self.weights, assign=True)
        return model.eval().requires_grad_(False)


def read_taming(path: Path) -> Taming:
    """Read a taming-transformers VQGAN checkpoint without executing code in it.

    Raises UsageError for a missing file, another kind of file, an unsafe pickle, and weights of another network;
    RunError for a damaged file and for NaN or infinity in the weights.
    """
    with safe_globals([(_Callback, f"pytorch_lightning.callbacks.{name}") for name in _CALLBACKS]):
        weights = read_dense_weights(path)
    if broken := sorted(name for name, tensor in weights.items() if not tensor.isfinite().all()):
        message = f"{path} holds NaN or infinity in {some(broken)}: get it again, and compare its sha256"
        raise RunError(message, "not_finite", names=broken)
    return from_weights(weights, str(path))


def from_weights(weights: Mapping[str, Tensor], source: str) -> Taming:
    """`read_taming` of named tensors, which may be on the meta device; messages name `source`."""
    kept, dropped = _kept(weights)
    layout = _layout(kept, source)
    renamed = {_renamed(name, layout): _as_stored(name, tensor) for name, tensor in kept.items()}
    with torch.device("meta"):
        model: Any = VQModel(**layout.config())
    wanted = model.state_dict()
    _compare(kept, renamed, wanted, layout, source)
    return Taming(layout, {name: renamed[name].float().contiguous() for name in wanted}, dropped)


def _kept(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """(the VQGAN's tensors, numbers of dropped tensors by reason); the prefix of a transformer checkpoint's first stage
    is removed."""
    dropped: dict[str, int] = {}
    kept = {}
    for name, tensor in weights.items():
        own = name.removeprefix("first_stage_model.")
        reason = next((why for start, why in DROPPED.items() if own.startswith(start)), None)
        if reason is None:
            kept[own] = tensor
        else:
            dropped[reason] = dropped.get(reason, 0) + 1
    return kept, dropped


def _layout(weights: Mapping[str, Tensor], source: str) -> Layout:
    """The layout, from shapes. Raises UsageError for other networks and for those that diffusers cannot build."""
    if "quantize.embed.weight" in weights:
        raise UsageError(
            f"{source} is a Gumbel VQGAN, and this converts those with a nearest code: the f16 of ImageNet", "gumbel"
        )
    shape = _Shapes(weights, source)
    levels = shape.count(r"encoder\.down\.(\d+)\.")
    channels = tuple(shape(f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels))
    first, colours = shape("encoder.conv_in.weight", 4)[:2]
    codes, code = shape("quantize.embedding.weight", 2)
    if colours != 3 or first != channels[0]:
        raise UsageError(
            f"{source} begins with {colours} channels, {first} and {channels[0]}: diffusers has networks that begin "
            "with the 3 of a picture and as many as their first level (ch_mult 1)",
            "other_channels",
            channels=(colours, first, channels[0]),
        )
    if odd := [number for number in channels if number % GROUPS or not number]:
        message = f"{source} has a level of {odd[0]} channels: taming-transformers has multiples of {GROUPS}"
        raise UsageError(message, "other_channels", channels=odd[0])
    return Layout(
        channels=channels,
        blocks=shape.count(r"encoder\.down\.0\.block\.(\d+)\."),
        encoder_attention=shape.found(r"encoder\.down\.(\d+)\.attn\."),
        decoder_attention=shape.found(r"decoder\.up\.(\d+)\.attn\."),
        latent=shape("encoder.conv_out.weight", 4)[0],
        code=code,
        codes=codes,
    )


class _Shapes:
    """Shapes and numbered names of a checkpoint."""

    def __init__(self, weights: Mapping[str, Tensor], source: str) -> None:
        self.weights = weights
        self.source = source

    def __call__(self, name: str, dimensions: int) -> tuple[int, ...]:
        if name not in self.weights or self.weights[name].ndim != dimensions:
            raise UsageError(
                f"{self.source} is not a VQGAN of taming-transformers: it has no {name} of {dimensions} dimensions",
                "not_a_vqgan",
                tensor=name,
            )
        return tuple(self.weights[name].shape)

    def found(self, pattern: str) -> tuple[int, ...]:
        """The numbers that the group of `pattern` matches in names."""
        matches = (re.match(pattern, name) for name in self.weights)
        return tuple(sorted({int(match[1]) for match in matches if match}))

    def count(self, pattern: str) -> int:
        numbers = self.found(pattern)
        if not numbers or numbers != tuple(range(len(numbers))):
            raise UsageError(
                f"{self.source} is not a VQGAN of taming-transformers: it has no tensors "
                f"{pattern.replace(chr(92), '')}",
                "not_a_vqgan",
            )
        return len(numbers)


def _renamed(name: str, layout: Layout) -> str:
    """A tensor's name in diffusers; unknown names are unchanged."""
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    for pattern, there in NAMES:
        rest = re.sub(f"^{pattern}", there, rest)
    for pattern, there in ENDINGS:
        rest = re.sub(pattern, there, rest)
    last = len(layout.channels) - 1
    return f"{side}." + re.sub(r"^up_blocks\.(\d+)", lambda match: f"up_blocks.{last - int(match[1])}", rest)


def _as_stored(name: str, tensor: Tensor) -> Tensor:
    """A tensor as diffusers stores it: 1x1 convolutions of attention as matrices."""
    is_matrix = re.search(r"\.attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight$", name) and tensor.shape[2:] == (1, 1)
    return tensor[:, :, 0, 0] if is_matrix else tensor


def _compare(
    kept: Mapping[str, Tensor],
    renamed: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    layout: Layout,
    source: str,
) -> None:
    """Raise UsageError for unknown and missing tensors and those of another shape or type."""
    faults = []
    if unknown := sorted(name for name in kept if _renamed(name, layout) not in wanted):
        faults.append(f"{len(unknown)} without a place ({some(unknown)})")
    if missing := sorted(wanted.keys() - renamed.keys()):
        faults.append(f"{len(missing)} missing ({some(missing)}, as diffusers calls them)")
    if other := sorted(
        name
        for name in wanted.keys() & renamed.keys()
        if wanted[name].shape != renamed[name].shape or not renamed[name].is_floating_point()
    ):
        faults.append(f"{len(other)} of another shape or type ({some(other)}, as diffusers calls them)")
    if faults:
        message = f"{source} is not a VQGAN of taming-transformers that diffusers has, of tensors {'; '.join(faults)}"
        raise UsageError(message, "does_not_fit", unexpected=unknown, missing=missing, other=other)


class _Callback:
    """Stands for classes that old Lightning checkpoints use as keys; the weights-only reader creates no instance."""


_CALLBACKS: Final = ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping", "base.Callback")


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
        raise UsageError("is not a file: give a published checkpoint, such as last.ckpt")
    return path


def _config(path: Path | None) -> Path | None:
    """Validated before the checkpoint, which can be gigabytes."""
    if path is not None:
        if not is_file(path):
            raise UsageError("is not a file: give the model.yaml that came with the checkpoint, or leave it out")
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
        message = f"{path} has the resolution {resolution!r:.80}: it is a number of pixels, as in 256"
        raise UsageError(message, "not_a_size", resolution=resolution)
    differences = {
        name: (params[name], found)
        for name, found in _found(layout, resolution)
        if name in params and params[name] != found
    }
    if differences:
        faults = [
            f"{name}: {given!r:.80} there, {found} in the checkpoint" for name, (given, found) in differences.items()
        ]
        raise UsageError(
            f"{path} is not this checkpoint's: {'; '.join(faults)}. Give its own, or leave out --model-yaml",
            "other_config",
            differences=differences,
        )
    return resolution


def _params(path: Path) -> dict[str, Any]:
    """The network's parameters in a model.yaml, flat."""
    content = read_yaml(path)
    try:
        params = content["model"]["params"]
        if "first_stage_config" in params:  # of a transformer
            params = params["first_stage_config"]["params"]
        return dict(params["ddconfig"]) | {name: params[name] for name in ("embed_dim", "n_embed") if name in params}
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} is not a config of a VQGAN (YAML with model, params, ddconfig): leave out --model-yaml",
            "not_a_config",
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
