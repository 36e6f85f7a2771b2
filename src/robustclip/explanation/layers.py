"""Choose the layer of an image tower for class activation maps: the last one with a spatial grid and gradients.

Layers are found by one forward pass: an output (B,C,h,w) is a map, one (B,T,C) or (T,B,C) tokens if T is the number of
patches plus a few. This covers open_clip's ViT, ResNet and ConvNeXt, timm's towers and transformers' CLIP, with grids
that need not be square.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.attacks.gradient import eval_mode
from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower
from robustclip.referees.smoothed import refuse_wrapped

SMALLEST: Final = 7
"""Minimal cells per side: those of ViT-B/32 and the last stage of a ResNet at 224 pixels. At 64 pixels that stage has
2, so an earlier one is chosen (ours; measured in docs/maps.md)."""
MOST_CLASS_TOKENS: Final = 16  # maximal number of class and register tokens
BLOCK = re.compile(r"(?:.*\.)?(?:resblocks|blocks|layers)\.\d+")  # open_clip, timm, transformers
FIRST_NORMS: Final = ("ln_1", "norm1", "layer_norm1")  # of a block, by the same three
SHOWN: Final = 8  # names in an error


@dataclass(frozen=True)
class Layer:
    """A module of the image tower whose output has a grid of h x w cells.

    name           its path below `referee.image_tower`
    class_tokens   number of tokens before the patches; None for a (B,C,h,w) map
    length_first   tokens are (T,B,C), as in open_clip's towers with batch_first=False
    """

    name: str
    module: nn.Module = field(repr=False)
    grid: tuple[int, int]
    class_tokens: int | None = None
    length_first: bool = False

    def as_map(self, output: Tensor) -> Float[Tensor, "b c h w"]:
        """The layer's output, or a gradient of its shape, as a float32 map without class tokens."""
        if self.class_tokens is None:
            return output.float()
        return self._tokens(output)[:, self.class_tokens :].transpose(1, 2).unflatten(2, self.grid)

    def class_token(self, output: Tensor) -> Float[Tensor, "b c"]:
        """The first token of the layer's output, or of a gradient of its shape."""
        return self._tokens(output)[:, 0]

    def _tokens(self, output: Tensor) -> Float[Tensor, "b t c"]:
        return (output.transpose(0, 1) if self.length_first else output).float()


def choose_layer(referee: TwoTower, name: str | None = None, *, at_output: bool = False) -> Layer:
    """The layer called `name`, or the default one.

    Default of a ViT: the first LayerNorm of the last block, after which patches do not reach the embedding
    (pytorch-grad-cam's choice), or with `at_output` the last block (gScoreCAM's). Default of a CNN: the last block with
    a grid of at least 7 cells per side, `layer4[-1]` of a ResNet at 224, as in gScoreCAM.

    Raises UsageError for an unknown name or one without a grid, and for a tower without any.
    """
    found = spatial_layers(referee)
    if not found:
        raise UsageError(
            f"{referee.card.name} has no spatial layer: no output of its image tower is a grid of at least 2x2. Use "
            "--method gradient, which needs none",
            "no_spatial_layer",
        )
    if name is not None:
        return _named(referee, name, found)
    blocks = [layer for layer in found.values() if layer.class_tokens is not None and BLOCK.fullmatch(layer.name)]
    if blocks:
        last = blocks[-1]
        norms = [found[path] for norm in FIRST_NORMS if (path := f"{last.name}.{norm}") in found]
        return last if at_output or not norms else norms[0]
    parts = list(_parts(referee.image_tower, "", found)) or list(found.values())
    wide = [layer for layer in parts if min(layer.grid) >= SMALLEST and any(True for _ in layer.module.parameters())]
    return (wide or parts)[-1]


@torch.no_grad()
def spatial_layers(referee: TwoTower) -> dict[str, Layer]:
    """All layers with a grid of at least 2x2 cells by name, in the order of a forward pass."""
    tower, (height, width) = referee.image_tower, referee.image_size
    refuse_wrapped(tower, "runs its tower many times per image", "explain its base, or use the method gradient")
    outputs: dict[str, Tensor] = {}
    handles = [module.register_forward_hook(_recorder(outputs, name)) for name, module in tower.named_modules() if name]
    try:
        with eval_mode(tower):
            tower(torch.zeros(2, 3, height, width, device=referee.device, dtype=referee.preprocess.mean.dtype))
    finally:
        for handle in handles:
            handle.remove()
    modules = dict(tower.named_modules())
    patches = next(
        (
            tuple(outputs[name].shape[-2:])
            for name, module in modules.items()
            if isinstance(module, nn.Conv2d) and name in outputs and _cuts_patches(module)
        ),
        None,
    )
    found: dict[str, Layer] = {}
    for name, output in outputs.items():
        for layer in _read(name, modules[name], output, patches, (height, width)):
            found[name] = layer
    return found


def _read(
    name: str, module: nn.Module, output: Tensor, patches: tuple[int, ...] | None, size: tuple[int, int]
) -> Iterator[Layer]:
    """The layer, if its output for two images has a grid."""
    shape = tuple(output.shape)
    if len(shape) == 4 and shape[0] == 2 and min(shape[2:]) > 1 and _same_aspect((shape[2], shape[3]), size):
        yield Layer(name, module, (shape[2], shape[3]))
    elif len(shape) == 3 and patches is not None and 2 in shape[:2]:
        grid = (patches[0], patches[1])
        length_first = shape[0] != 2
        before = shape[0 if length_first else 1] - grid[0] * grid[1]
        if min(grid) > 1 and 0 <= before <= MOST_CLASS_TOKENS:
            yield Layer(name, module, grid, before, length_first)


def _recorder(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, object], None]:
    def record(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.pop(name, None)  # a module that runs twice is placed at its last run
            outputs[name] = output

    return record


def _cuts_patches(convolution: nn.Conv2d) -> bool:
    return convolution.kernel_size == convolution.stride and max(convolution.stride) > 1


def _same_aspect(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a grid has the image's aspect ratio up to a cell; that of (B,h,w,C) in a ConvNeXt block has not."""
    return abs(grid[0] * size[1] - grid[1] * size[0]) <= max(size)


def _parts(module: nn.Module, path: str, found: dict[str, Layer]) -> Iterator[Layer]:
    """The outermost modules with a map, in order: blocks of a ResNet, stages of a ConvNeXt. A Sequential is replaced by
    its parts (`layer4[-1]`)."""
    if path in found and found[path].class_tokens is None and not isinstance(module, nn.Sequential):
        yield found[path]
        return
    for name, child in module.named_children():
        yield from _parts(child, f"{path}.{name}".removeprefix("."), found)


def _named(referee: TwoTower, name: str, found: dict[str, Layer]) -> Layer:
    if name in found:
        return found[name]
    modules = [path for path, _ in referee.image_tower.named_modules() if path]
    near = [other for other in get_close_matches(name, modules, n=SHOWN, cutoff=0.5) if other in found]
    has = "has no grid in its output" if name in modules else "is not a layer of it"
    few = near or [layer for layer in found if layer.count(".") <= 2][-SHOWN:]
    raise UsageError(
        f"{referee.card.name} cannot be mapped at {name!r}, which {has}; layers with a grid are, among others, "
        f"{', '.join(few or list(found)[-SHOWN:])}",
        "no_grid" if name in modules else "unknown_layer",
        given=name,
    )
