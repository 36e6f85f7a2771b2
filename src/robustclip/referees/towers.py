"""Split a checkpoint's tensors by tower, below any key prefix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from robustclip.errors import UsageError
from robustclip.referees.weights import COUNTER, some

IMAGE_PREFIXES = ("model.", "visual.")
PLAIN_TEXT = ("text_projection", "positional_embedding", "token_embedding", "transformer.", "ln_final.")
"""What open_clip's plain CLIP calls the parts of its text tower; its CustomTextCLIP puts `text.` before them."""
LOGITS = ("logit_scale", "logit_bias")


@dataclass(frozen=True)
class Towers:
    """A checkpoint's tensors by tower: `image` with open_clip's `visual.` removed, `text` with `text.` removed.

    `text` is empty for an image-tower-only checkpoint; `rest` holds logit_scale and logit_bias where they are;
    `left_out` names the tensors of neither tower, such as a classifier's.
    """

    image: dict[str, Tensor]
    text: dict[str, Tensor]
    rest: dict[str, Tensor]
    left_out: tuple[str, ...] = ()


def split_towers(
    weights: Mapping[str, Tensor], image_names: Iterable[str] = (), *, source: Path | None = None
) -> Towers:
    """Tell a full CLIP from an image tower alone, by its keys, and sort them by tower.

    The CLIP may lie below a prefix (a Lightning module's attribute): what has `visual.` below it. Where nothing has,
    `image_names`, the names that the image tower's tensors should have, tell the prefix of an image tower alone.
    Raises UsageError where two keys would become one, and where a file, `source`, holds two CLIPs or two such image
    towers.
    """
    names = list(weights)
    below = {
        "".join(f"{part}." for part in parts[: parts.index("visual")])
        for name in names
        if "visual" in (parts := name.split("."))
    }
    prefix = "" if "" in below else _only(below, source)
    inside = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    outside = tuple(sorted(name for name in names if not name.startswith(prefix)))
    if not below or all(name.startswith("visual.") for name in inside):
        return _image_alone(inside, outside, set(image_names), source)
    image, text, rest, left_out = {}, {}, {}, list(outside)
    for name, value in inside.items():
        if name.startswith("visual."):
            image[name.removeprefix("visual.")] = value
        elif name.startswith("text."):
            text[name.removeprefix("text.")] = value
        elif name.startswith(PLAIN_TEXT):
            text[name] = value
        elif name in LOGITS:
            rest[name] = value
        else:
            left_out.append(prefix + name)
    for name in LOGITS:  # a module around the CLIP may hold them itself
        if name not in rest and name in left_out:
            rest[name] = weights[name]
            left_out.remove(name)
    twice = [name for name in inside if name.startswith(PLAIN_TEXT) and f"text.{name}" in inside]
    if twice:
        raise UsageError(f"the checkpoint has a text tower twice, with and without the prefix `text.` ({some(twice)})")
    text.pop("transformer.embeddings.position_ids", None)  # a buffer that older versions of transformers saved
    return Towers(image, text, rest, tuple(left_out))


def _image_alone(image: dict[str, Tensor], outside: tuple[str, ...], expected: set[str], source: Path | None) -> Towers:
    while prefix := next((p for p in IMAGE_PREFIXES if image and all(name.startswith(p) for name in image)), None):
        image = {name.removeprefix(prefix): value for name, value in image.items()}
    longest = max(expected, key=len, default="")
    below = {name.removesuffix(longest) for name in image if longest and f".{name}".endswith(f".{longest}")}
    below = {prefix for prefix in below if all(prefix + name in image for name in expected)}
    if not below:
        return Towers(image, {}, {}, outside)
    prefix = "" if "" in below else _only(below, source)
    kept = {name: image[prefix + name] for name in expected}
    counts = {name.removeprefix(prefix) for name in image if name.endswith(COUNTER) and name.startswith(prefix)}
    kept |= {name: image[prefix + name] for name in counts}
    left_out = (name for name in image if name.removeprefix(prefix) not in kept)
    return Towers(kept, {}, {}, (*outside, *sorted(left_out)))


def _only(prefixes: set[str], source: Path | None) -> str:
    """The one prefix. Raises UsageError where there are several."""
    if len(prefixes) > 1:
        one = sorted(prefixes)[0]
        place = "PATH" if source is None else repr(str(source))
        raise UsageError(
            f"the checkpoint holds {len(prefixes)} models, below {some(sorted(prefixes))}. Write the one you mean:\n"
            "from safetensors.torch import save_file\n"
            "from robustclip.referees.weights import read_weights\n"
            f"weights = read_weights({place})\n"
            f"save_file({{k.removeprefix({one!r}): v for k, v in weights.items() if k.startswith({one!r})}}, "
            "'one.safetensors')"
        )
    return next(iter(prefixes), "")


def join_towers(towers: Towers, *, custom_text: bool) -> dict[str, Tensor]:
    """The inverse of split_towers, in the key layout of open_clip's CLIP, or of its CustomTextCLIP."""
    text = "text." if custom_text else ""
    return {
        **{f"visual.{name}": value for name, value in towers.image.items()},
        **{f"{text}{name}": value for name, value in towers.text.items()},
        **towers.rest,
    }
